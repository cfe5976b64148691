# Everything runs in an environment of its own, made on first use.
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
.DEFAULT_GOAL := help
.PHONY: help serve test test-tensorrt lint format build check-image clean
# Engines for TensorRT are built, not run, by a newer torch and the one distribution that needs no GPU for it (6 GB).
TENSORRT_VENV ?= .venv-tensorrt
MODELS ?= mae_tiny,mae_base

help:  ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(BIN)/mae: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.dev: $(BIN)/mae
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

serve: $(BIN)/mae  ## serve the packaged model on port 8000
	exec $(BIN)/mae serve

test: $(VENV)/.dev  ## the whole suite
	$(BIN)/python -m pytest $(PYTEST)

$(TENSORRT_VENV)/.dev: pyproject.toml
	$(PYTHON) -m venv $(TENSORRT_VENV)
	$(TENSORRT_VENV)/bin/pip install --quiet --editable '.[tensorrt-rtx]' 'pytest>=8.3' 'scikit-image>=0.25'
	@touch $@

test-tensorrt: $(TENSORRT_VENV)/.dev  ## build the TensorRT engines of MODELS, in an environment of its own
	$(TENSORRT_VENV)/bin/python -m pytest tests/tensorrt --models $(MODELS) $(PYTEST)

lint: $(VENV)/.dev  ## ruff, mypy and hadolint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile

format: $(VENV)/.dev  ## let ruff rewrite
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

build: $(VENV)/.dev  ## the wheel, into dist/
	$(BIN)/python -m build --wheel

check-image:  ## build the cpu image and try all that README.md says of it
	docker/check_image.sh

clean:  ## remove the environment and what was built
	rm -rf $(VENV) $(TENSORRT_VENV) build dist *.egg-info
