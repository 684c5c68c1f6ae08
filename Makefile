# Two commands from a fresh clone: `make lab` (or `make demo` with no browser) and `make test`.
# They share one .venv, built from nothing and built again only when pyproject.toml or constraints.txt change.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

# `make lab CPU=1` takes PyTorch's CPU build, without the CUDA libraries: for a Linux machine without an NVIDIA GPU.
ifdef CPU
export PIP_EXTRA_INDEX_URL := $(shell . binder/torch-index && echo $$TORCH_INDEX)
endif

.PHONY: demo lab test check bench notebooks site stamp results clean

demo: $(STAMP)
	$(BIN)/apnb demo --out demo.html

lab: $(STAMP)
	$(BIN)/apnb lab

test: $(STAMP)
	$(BIN)/python -m pytest

check: $(STAMP)
	$(BIN)/ruff check apnb tests
	$(BIN)/ruff format --check apnb tests
	$(BIN)/python -m pytest -m "not slow and not browser" --numprocesses 2

# The series: executed again and checked; as static pages in site/; stamped with the address in pyproject.toml; its stored runs again.
notebooks: $(STAMP)
	$(BIN)/python -m apnb.reading execute
	$(BIN)/python -m apnb.reading check

site: $(STAMP)
	$(BIN)/python -m apnb.reading site --out site

stamp: $(STAMP)
	$(BIN)/python -m apnb.reading stamp

results: $(STAMP)
	$(BIN)/python -m apnb.reading results

bench: $(STAMP)
	$(BIN)/python -m tests.benchmarks

clean:
	rm -rf .venv demo.html site

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make: $(PYTHON) is older than 3.11; name a newer one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@
