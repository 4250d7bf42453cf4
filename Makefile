# From nothing (Python 3.10 or newer, g++, make):
#   make run    train a DIWAE on handwritten digits, evaluate it with k = 5000, write pictures
#   make test   run the tests
#   make docs   build the pages, build/docs/html/index.html
# All make .venv, install what is needed there and build the extension.

# One version for everybody. On Linux, PyPI's own torch carries CUDA, gigabytes that nothing here needs;
# where pip is told of torch's CPU index (PIP_EXTRA_INDEX_URL), TORCH=torch==2.13.0+cpu takes less.
TORCH ?= torch==2.13.0
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

SOURCES := $(wildcard $(foreach end,cpp h inl cu cuh,csrc/*/*.$(end) csrc/*/*/*.$(end)))

.PHONY: run test lint docs bench prebuilt clean build

run: build
	$(BIN)/python -m dvae_fast train --model diwae --data digits --evaluate-k 5000

test: build
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# Style, types and formatting; changes nothing.
lint: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.inl' 'csrc/*.cu' 'csrc/*.cuh' 'tests/cpp/*.h' 'tests/cpp/*.cpp')

# The pages and the API reference; a warning is an error.
docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html -d build/docs/doctrees docs build/docs/html
	@echo "build/docs/html/index.html"

# Every benchmark but bench_likelihoods.py, and benchmarks/report/RESULTS.md from it, in some 10 minutes on
# two cores.
# pythae and Pyro are measured too where they are installed: .venv/bin/python -m pip install -e ".[bench]"
bench: build
	$(BIN)/python benchmarks/run.py

# The library with CUDA kernels, for a GPU machine that has no time to build its own.
prebuilt:
	scripts/prebuild.sh

build: $(VENV)/.built

$(VENV)/.tools:
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) not found; install Python 3.10 or newer, or say which: make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "make: Python 3.10 or newer is needed, $(PYTHON) is $$($(PYTHON) -V)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "make: Python's venv module is missing (Debian or Ubuntu: apt-get install python3-venv)" >&2; exit 1; }
	@command -v $${CXX:-g++} >/dev/null || { echo "make: no C++ compiler ($${CXX:-g++}); install one (Debian or Ubuntu: apt-get install g++), or set CXX" >&2; exit 1; }
	@test -w . || { echo "make: cannot write to $$(pwd), where .venv and the extension are built; use a folder of your own" >&2; exit 1; }
	@free=$$(df -Pk . | awk 'NR == 2 {print $$4}'); test "$$free" -ge 3000000 || { echo "make: about 3 GB are needed in $$(pwd), $$((free / 1024)) MB are free" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)" "setuptools>=77" wheel ninja "pybind11>=2.13" numpy
	@touch $@

$(VENV)/.built: $(VENV)/.tools setup.py pyproject.toml $(SOURCES)
	DVAE_FAST_CORE=1 $(BIN)/python -m pip install --quiet --no-build-isolation -e ".[train,test,dev]"
	@touch $@

# Pages need no compiled library: where there is none yet, the Python files alone are installed.
$(VENV)/.docs: $(VENV)/.tools pyproject.toml
	@test -e $(VENV)/.built || DVAE_FAST_PURE=1 $(BIN)/python -m pip install --quiet --no-build-isolation --no-deps -e .
	$(BIN)/python -m pip install --quiet "dvae_fast[train,docs]"
	@touch $@

clean:
	rm -rf build dist prebuilt *.egg-info dvae_fast/*.so $(VENV)
