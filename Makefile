# Everything a fresh machine needs is Python 3.11-3.13, git and make. `make repro` sets up and runs the pipeline.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := $(VENV)/.installed-run
DEV := $(VENV)/.installed-dev
LOCK := uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --no-annotate --no-header
# uv is given pip's own settings (index, certificates); no file of this repository names an index.
UV := set -e; uv_env=$$($(BIN)/python scripts/uv_env.py); eval "$$uv_env"; export VIRTUAL_ENV="$(CURDIR)/$(VENV)"; $(BIN)/

TESTS := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n 2 --dist loadgroup

export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev repro suite test coverage lint bench lock clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /make \1\t/' | expand -t 20

setup: $(RUN)  ## install what the pipeline needs into .venv

setup-dev: $(DEV)  ## install what tests and linters need too

repro: $(RUN)  ## run the whole pipeline and print the group table
	$(BIN)/dvc repro
	@cat report/group_table.txt

suite: $(RUN)  ## compare methods over seeds: make suite SUITE="--name first --methods fp32 fq_qat" (docs/suite.md)
	$(BIN)/python -m scripts.suite $(SUITE)

test: $(DEV)  ## run the tests (two processes, under 10 minutes on 2 cores)
	$(TESTS) $(if $(COVERAGE),--cov --cov-report=term --cov-fail-under=95) $(PYTEST_ARGS)

coverage:  ## run the tests, measure what they cover, fail under 95 % (so does COVERAGE=1 make test)
	$(MAKE) test COVERAGE=1

lint: $(DEV)  ## check style, types, workflows, lock files and stage deps; needs no network
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/zizmor --offline --quiet .github
	$(BIN)/python -m scripts.check_requirements
	$(BIN)/python -m scripts.stage_deps --check

bench: $(DEV)  ## measure speed against the plain torch equivalents
	$(BIN)/python -m benchmarks $(BENCH)

lock: $(DEV)  ## resolve requirements.txt and requirements-dev.txt anew
	@$(UV)$(LOCK) --upgrade pyproject.toml -o requirements.txt
	@$(UV)$(LOCK) --upgrade --extra dev pyproject.toml -c requirements.txt -o requirements-dev.txt
	$(BIN)/python -m scripts.check_requirements

clean:  ## remove the virtual environment and caches; data, models and the DVC cache stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .coverage .coverage.* *.egg-info
	find fairquant stages tests scripts benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; v = sys.version_info; v[:2] >= (3, 11) and v[:2] < (3, 14) or sys.exit( \
		f"$(PYTHON): got Python {v[0]}.{v[1]}; allowed: 3.11-3.13, e.g. make PYTHON=python3.12 $(MAKECMDGOALS)")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'

$(RUN): requirements.txt pyproject.toml | $(BIN)/uv
	@$(UV)uv pip install --compile-bytecode -r requirements.txt
	@$(UV)uv pip install --no-deps --no-build-isolation -e .
	@touch $@

$(DEV): requirements-dev.txt pyproject.toml | $(BIN)/uv
	@$(UV)uv pip install --compile-bytecode -r requirements-dev.txt
	@$(UV)uv pip install --no-deps --no-build-isolation -e .
	@touch $@ $(RUN)
