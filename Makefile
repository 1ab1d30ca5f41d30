# Everything runs from a fresh clone with Python >= 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
PEER_STAMP := $(VENV)/.installed-peer
DOCS_STAMP := $(VENV)/.installed-docs
VIDEO ?= data/samples/room_walk.mp4
OUTPUT ?= outputs/$(basename $(notdir $(VIDEO)))
# The compile cache makes the second run of any target start at once.
export JAX_COMPILATION_CACHE_DIR ?= $(HOME)/.cache/align3r_jax/xla

.PHONY: help venv demo test test-slow test-peer lint benchmark benchmark-accuracy docs clean

help:
	@echo "make demo [VIDEO=my.mp4]   run the main job on the sample video, or on yours"
	@echo "make test                  the default test suite (make test-slow: the heavy ones)"
	@echo "make test-peer             networks against their PyTorch counterparts (installs PyTorch)"
	@echo "make lint                  ruff and mypy"
	@echo "make docs                  the pages with a reference of every module, in build/docs"
	@echo "make benchmark             time and memory of every stage"
	@echo "make benchmark-accuracy    errors on unseen procedural clips"

venv: $(STAMP)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; got $$($(PYTHON) --version 2>&1). Name one: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(STAMP): requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(DEV_STAMP): requirements.txt requirements-dev.txt | $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

$(PEER_STAMP): requirements-peer.txt | $(DEV_STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-peer.txt
	@touch $@

$(DOCS_STAMP): requirements-docs.txt | $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	@touch $@

demo: $(STAMP)
	$(BIN)/python -m experiments.reconstruct --video="$(VIDEO)" --output="$(OUTPUT)" --overwrite

test: $(DEV_STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile -q

test-slow: $(DEV_STAMP)
	$(BIN)/python -m pytest -q -m slow

test-peer: $(PEER_STAMP)
	$(BIN)/python -m pytest -q -m peer

lint: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

benchmark: $(STAMP)
	$(BIN)/python -m experiments.benchmark
	$(BIN)/python -m experiments.benchmark_networks

benchmark-accuracy: $(STAMP)
	$(BIN)/python -m experiments.benchmark_accuracy

docs: $(DOCS_STAMP)
	rm -rf docs/api
	SPHINX_APIDOC_OPTIONS=members \
	  $(BIN)/sphinx-apidoc -q --separate --module-first -o docs/api align3r_jax
	JAX_PLATFORMS=cpu $(BIN)/sphinx-build -q -W --keep-going -c docs/site . build/docs
	@echo "open build/docs/index.html"

clean:
	rm -rf outputs build/docs docs/api $(VENV)
