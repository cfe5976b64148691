# Everything runs in an environment of its own, made on first use.
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
.DEFAULT_GOAL := help
.PHONY: help serve test lint format build check-image clean

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
	rm -rf $(VENV) build dist *.egg-info
