# Everything that a person or a machine does with this repository. `make` alone lists it.
#
# PYTHON  a Python of 3.11 or newer; the environment is made from it
# VENV    where the environment lives; delete the folder to start afresh
# TORCH   what pip installs as PyTorch, before anything else: without a version pip may choose a build with gigabytes
#         of CUDA. On a machine without a GPU, the smallest download is
#         make demo TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
# WORKERS how many tests run at once
#
# ISOBIT_DATA, or ../shared/data, is a folder of data sets and weights; tests that need it are skipped without it.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
WORKERS ?= 2
DATA := $(or $(ISOBIT_DATA),../shared/data)
BIN := $(VENV)/bin

# One thread for each test process: more only wait for each other.
export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help
.PHONY: help demo test check engines isa bench docs

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

demo: $(VENV)/.demo ## train a small network, quantize it, run it on real engines, and write report.html
	$(BIN)/isobit demo --output out/demo
	@cp out/demo/report.html report.html
	@echo "report.html shows it all: open it in a browser"

test: check ## all linters, then all tests but the slow ones
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow"

check: $(VENV)/.dev ## linters alone: ruff, mypy, the direction of imports, the size of files and functions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/size.py > /dev/null

engines: $(VENV)/.dev ## install the engines that this machine can have, each where it conflicts with none, and test them
	@ISOBIT_TORCH_INDEX="$(or $(word 3,$(TORCH)),$(ISOBIT_TORCH_INDEX))" $(BIN)/isobit engines --install all; found=$$?; \
	$(BIN)/python -m pytest -m "not slow" tests/engines tests/contracts/test_engines.py && exit $$found

isa: $(VENV)/.dev ## the proofs of saturation on emulated machines, AVX2 without VNNI and Arm64, set up in out/isa (Debian)
	$(BIN)/python tools/isa.py out/isa

bench: $(VENV)/.dev ## the slow tests, then what isobit costs and gains beside other tools (up to an hour)
	$(BIN)/python -m pytest -m slow
	$(BIN)/python tools/bench_ptq.py
	$(BIN)/python tools/bench_latency.py
	@if [ -d "$(DATA)" ]; then set -ex; $(BIN)/python tools/bench_targets.py; $(BIN)/python tools/bench_mobilenet.py; \
	else echo "left out, no data at $(DATA) (set ISOBIT_DATA): tools/bench_targets.py, tools/bench_mobilenet.py"; fi

docs: $(VENV)/.dev ## run the code of README and docs
	$(BIN)/python -m pytest tests/docs

# The stamps remember what is installed; a change of pyproject.toml installs again.
$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "isobit needs Python 3.11 or newer: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(TORCH)
	@touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install --quiet --editable '.[demo,openvino]'
	@touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@
