# Everything runs in an environment of its own, made on first use.
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help serve test test-fast test-tensorrt test-clients test-cluster test-page attack fuzz lint format graphs build check-image clean
# The tests share the CPUs: one process each, but no more than these, since each has engines in memory.
TEST_PROCESSES ?= 4
PARALLEL = -n logical --maxprocesses $(TEST_PROCESSES) --dist worksteal
INSTALL = -m pip install --disable-pip-version-check --root-user-action ignore
# Engines for TensorRT are built, not run, by a newer torch and the one distribution that needs no GPU for it (6 GB).
TENSORRT_VENV ?= .venv-tensorrt
MODELS ?= mae_tiny,mae_base
# Clients of other projects, on top of what the suite's own environment has.
CLIENTS_VENV ?= .venv-clients
PYTRITON_VENV ?= .venv-pytriton
# Ray, and other packages that are too heavy for the suite's own environment, on top of what that one has.
CLUSTER_VENV ?= .venv-cluster
# The page is tested in a browser, by an environment that has a driver for it and nothing of ours.
PAGE_VENV ?= .venv-page
# atheris, for fuzzing.
FUZZ_VENV ?= .venv-fuzz
FUZZ_MINUTES ?= 15

help:  ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

# An environment is finished when its stamp is there, which is written last: whatever is cut off is done again.
$(VENV)/.serve: pyproject.toml constraints.txt
	@echo "==> Making a Python environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@echo "==> Installing mae-serve and its dependencies into it (PyTorch and OpenVINO are the large ones)"
	@$(BIN)/python $(INSTALL) --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	@echo "==> Making a Python environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@echo "==> Installing mae-serve, its dependencies and the tools for tests into it"
	@$(BIN)/python $(INSTALL) --constraint constraints.txt --editable '.[dev]'
	@touch $(VENV)/.serve $@

serve: $(VENV)/.serve  ## serve the packaged model on port 8000
	@echo "==> Starting the server; the first start measures which precision is fastest on this CPU, and keeps the result"
	@exec $(BIN)/mae serve

test: $(VENV)/.dev  ## the whole suite
	$(BIN)/python -m pytest $(PARALLEL) --durations 10 $(PYTEST)

test-fast: $(VENV)/.dev  ## the tests that start no process and convert no model, in less than a minute
	$(BIN)/python -m pytest --fast $(PARALLEL) $(PYTEST)

$(TENSORRT_VENV)/.dev: pyproject.toml
	@echo "==> Making a Python environment with TensorRT in $(TENSORRT_VENV) (6 GB)"
	@$(PYTHON) -m venv $(TENSORRT_VENV)
	@$(TENSORRT_VENV)/bin/python $(INSTALL) --editable '.[tensorrt-rtx]' 'pytest>=8.3' 'scikit-image>=0.25'
	@touch $@

$(PAGE_VENV)/.dev: Makefile
	@echo "==> Making a Python environment with playwright and axe-core in $(PAGE_VENV)"
	@$(PYTHON) -m venv $(PAGE_VENV)
	@$(PAGE_VENV)/bin/python $(INSTALL) 'playwright==1.65.2' 'pytest>=8.3'
	@npm install --prefix $(PAGE_VENV) --no-audit --no-fund --silent axe-core@4.14.1
	@touch $@

test-page: $(VENV)/.dev $(PAGE_VENV)/.dev  ## the page in Chromium (CHROMIUM=PATH where it is not on the PATH)
	SERVER_VENV=$(abspath $(VENV)) AXE=$(abspath $(PAGE_VENV))/node_modules/axe-core/axe.min.js \
		$(PAGE_VENV)/bin/python -m pytest -c tests/page/pytest.ini --rootdir tests/page --confcutdir tests/page tests/page $(PYTEST)

test-tensorrt: $(TENSORRT_VENV)/.dev  ## build the TensorRT engines of MODELS, in an environment of its own
	$(TENSORRT_VENV)/bin/python -m pytest tests/tensorrt --models $(MODELS) $(PYTEST)

# The packages of .venv come second: a client that needs another version of one gets its own.
$(CLIENTS_VENV)/.dev: $(VENV)/.dev tests/clients/requirements.txt
	@echo "==> Making a Python environment in $(CLIENTS_VENV), with clients of other projects beside the packages of $(VENV)"
	@$(PYTHON) -m venv $(CLIENTS_VENV)
	@$(BIN)/python -c 'import site; print(f"import site; site.addsitedir({site.getsitepackages()[0]!r})")' \
	    > $$($(CLIENTS_VENV)/bin/python -c 'import site; print(site.getsitepackages()[0])')/suite.pth
	@$(CLIENTS_VENV)/bin/python $(INSTALL) --requirement tests/clients/requirements.txt
	@touch $@

$(PYTRITON_VENV)/.dev: tests/clients/requirements-pytriton.txt
	@echo "==> Making a Python environment in $(PYTRITON_VENV) for PyTriton's client, which needs an older NumPy"
	@$(PYTHON) -m venv $(PYTRITON_VENV)
	@$(PYTRITON_VENV)/bin/python $(INSTALL) --requirement tests/clients/requirements-pytriton.txt
	@touch $@

test-clients: $(CLIENTS_VENV)/.dev $(PYTRITON_VENV)/.dev  ## real clients of other protocols against real servers, in an environment of its own
	PYTRITON_PYTHON=$(PYTRITON_VENV)/bin/python $(CLIENTS_VENV)/bin/python -m pytest tests/clients $(PYTEST)

$(CLUSTER_VENV)/.dev: $(VENV)/.dev tests/cluster/requirements.txt
	@echo "==> Making a Python environment in $(CLUSTER_VENV), with Ray and others beside the packages of $(VENV)"
	@$(PYTHON) -m venv $(CLUSTER_VENV)
	@$(BIN)/python -c 'import site; print(f"import site; site.addsitedir({site.getsitepackages()[0]!r})")' \
	    > $$($(CLUSTER_VENV)/bin/python -c 'import site; print(site.getsitepackages()[0])')/suite.pth
	@$(CLUSTER_VENV)/bin/python $(INSTALL) --requirement tests/cluster/requirements.txt
	@touch $@

test-cluster: $(CLUSTER_VENV)/.dev  ## Ray and other heavy packages of clusters and collections, in an environment of its own
	$(CLUSTER_VENV)/bin/python -m pytest tests/cluster $(PYTEST)

# tests/attacks/README.md lists them. Each prints one line with counts, and fails where it has seen what should not happen.
ATTACKS ?= connections cuts decodes drains keys hangs uploads overload kills patterns
attack: $(VENV)/.dev  ## hostile clients against real servers, half an hour; not part of the suite
	@for script in $(ATTACKS); do $(BIN)/python -m tests.attacks.$$script || failed=1; done; exit $${failed:-0}

$(FUZZ_VENV)/.dev: $(VENV)/.dev tests/attacks/requirements.txt
	@echo "==> Making a Python environment in $(FUZZ_VENV), with atheris beside the packages of $(VENV)"
	@$(PYTHON) -m venv $(FUZZ_VENV)
	@$(BIN)/python -c 'import site; print(f"import site; site.addsitedir({site.getsitepackages()[0]!r})")' \
	    > $$($(FUZZ_VENV)/bin/python -c 'import site; print(site.getsitepackages()[0])')/suite.pth
	@$(FUZZ_VENV)/bin/python $(INSTALL) --requirement tests/attacks/requirements.txt
	@touch $@

fuzz: $(FUZZ_VENV)/.dev  ## mutated images and requests, FUZZ_MINUTES each; not part of the suite
	@for target in decode parsers; do \
	    $(FUZZ_VENV)/bin/python -m tests.attacks.fuzz $$target --minutes $(FUZZ_MINUTES) || failed=1; done; exit $${failed:-0}

lint: $(VENV)/.dev  ## ruff, mypy and hadolint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile

graphs: $(VENV)/.dev  ## make the graphs in the package anew, after a change of weights, OpenVINO, NNCF or the code of graphs
	$(BIN)/python -m model.engines.openvino.pack

format: $(VENV)/.dev  ## let ruff rewrite
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

build: $(VENV)/.dev  ## the wheel, into dist/
	$(BIN)/python -m build --wheel

check-image:  ## build the cpu image and test what docker/README.md says of it
	docker/check_image.sh

clean:  ## remove the environment and what was built
	rm -rf $(VENV) $(TENSORRT_VENV) $(CLIENTS_VENV) $(PYTRITON_VENV) $(CLUSTER_VENV) $(PAGE_VENV) $(FUZZ_VENV) build dist *.egg-info
