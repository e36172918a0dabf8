# Needs Python 3.11, git, make and g++. Everything else goes into .venv here; nothing is done twice.
#   make demo     datasets that ship, signatures of this machine → detector → verdict on a hidden platform
#   make test     the fast tests
#   make ci       what .ci/run does
#   make vllm llama-cpp      environments of their own for real inference servers
# torch is pinned by version alone. Where the default index would bring CUDA libraries that you do not want, name an
# index of CPU wheels:  make demo PIP_FLAGS='--extra-index-url <index of CPU wheels>'

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
PIP_FLAGS ?=
TORCH ?= 2.13.0
SMOKE := $(CURDIR)/.cache/smoke
DATA := data/zoo.dvc $(wildcard data/signatures/*.dvc)

# Quiet tools that keep to this folder and to the cores they are given; src/hspi/quiet.py sets the same for `hspi`.
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := true
export DVC_NO_ANALYTICS := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export PREFECT_HOME ?= $(CURDIR)/.prefect
export PREFECT_LOGGING_LEVEL ?= WARNING
export PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS := 90
export MLFLOW_LOGGING_LEVEL ?= WARNING
export MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR := false
export OPENBLAS_NUM_THREADS := 1
export OMP_WAIT_POLICY := passive
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PATH := $(BIN):$(PATH)

.PHONY: demo demo-smoke test slow lint ci install data repro constraints vllm llama-cpp mlflow prefect clean
.DEFAULT_GOAL := demo

# ---------------------------------------------------------------- environment

# Bytecode is compiled when a module is first imported (--no-compile): most of what is installed never is.
# A stamp is as new as the files that the environment was made from, so that a second run installs nothing.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python >= 3.11 is needed: make PYTHON=…"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: constraints.txt pyproject.toml | $(BIN)/python
	@echo "Installing pinned dependencies into .venv; this takes a few minutes the first time."
	$(BIN)/python -m pip install --no-compile $(PIP_FLAGS) -c constraints.txt -e '.[pipeline,engines]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --no-compile $(PIP_FLAGS) -c constraints.txt -e '.[pipeline,engines,dev]'
	@touch $@

install: $(VENV)/.installed-dev

# Resolves everything anew, in an environment of its own, and writes down what came. `+cpu` and the like are names of
# local builds, which no index but their own knows. torch is raised on purpose alone (TORCH=…), because another release
# may round otherwise: it is part of what is measured.
constraints:
	rm -rf .cache/constraints && $(PYTHON) -m venv .cache/constraints
	.cache/constraints/bin/python -m pip install --no-compile $(PIP_FLAGS) torch==$(TORCH) -e '.[pipeline,engines,dev]'
	{ sed -n '/^#/p' constraints.txt; \
	  .cache/constraints/bin/python -m pip freeze --exclude-editable | sed -E '/^(nvidia-|cuda-|triton)/d; s/\+[a-z0-9.]+$$//'; } > .cache/constraints.txt
	mv .cache/constraints.txt constraints.txt && rm -rf .cache/constraints

vllm:
	$(PYTHON) scripts/environments.py vllm

llama-cpp:
	$(PYTHON) scripts/environments.py llama-cpp

# ---------------------------------------------------------------- the two commands

# DVC pulls into no folder that holds files of its own, as this machine's dataset does while it grows: what is there is
# left then, and `hspi signatures` pulls what it lacks before it is versioned.
data: $(VENV)/.installed
	@dvc pull --quiet $(DATA) 2> /dev/null || \
	  for data in $(DATA:.dvc=); do [ -d $$data ] || dvc pull --quiet $$data.dvc || exit; done

repro: data
	dvc repro

demo: data
	$(BIN)/python scripts/demo.py
	dvc repro
	hspi demo
	hspi whoami

test: $(VENV)/.installed-dev data
	$(BIN)/python -m pytest -n 2 --dist loadgroup

# ---------------------------------------------------------------- for those who carry on

slow: $(VENV)/.installed-dev data
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m slow

lint: $(VENV)/.installed-dev
	ruff check && ruff format --check && mypy

# The whole demo on a handful of platforms and two models, in a copy of the tree, so that nothing here changes.
SMALL_DEMO := dvc pull --quiet $(DATA); python scripts/demo.py; dvc repro; hspi demo; hspi whoami
demo-smoke: $(VENV)/.installed
	$(BIN)/python scripts/smoke.py $(SMOKE)
	cd $(SMOKE) && PYTHONPATH=$(SMOKE)/src PREFECT_HOME=$(SMOKE)/.prefect sh -e -c '$(SMALL_DEMO)'
	rm -rf $(SMOKE)

ci:
	.ci/run

# Of the store here, whatever MLFLOW_TRACKING_URI names.
mlflow: PORT ?= 5000
mlflow: $(VENV)/.installed
	@env -u MLFLOW_TRACKING_URI -u MLFLOW_REGISTRY_URI HSPI_MLFLOW_PAGES=http://127.0.0.1:$(PORT) \
	  $(BIN)/python -c 'from hspi.tracking import pages; print(*pages.where_to_look(), sep="\n")'
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow server --host 127.0.0.1 --port $(PORT) --workers 1 --no-serve-artifacts \
	  --backend-store-uri sqlite:///mlruns/mlflow.db --default-artifact-root mlruns/artifacts

prefect: $(VENV)/.installed
	prefect server start --host 127.0.0.1

clean:
	rm -rf .cache build dist reports/tables reports/plots reports/figures
