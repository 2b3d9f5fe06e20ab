# `make demo` and `make test` need Python 3.11 or newer and a C compiler; everything else they install into .venv.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
ROOMS := dialects passes lowering runtime

.PHONY: demo test lint types lit pytest docs clean

test: lint types lit pytest

demo: $(INSTALLED)
	PATH="$(CURDIR)/$(BIN):$$PATH" sh examples/demo.sh

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[compiler,report,test]'
	touch $@

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

# The rooms lie at the root but are imported as moeloom.*: a folder of links shows the type checker the installed tree.
types: $(INSTALLED)
	rm -rf build/typecheck
	mkdir -p build/typecheck/moeloom
	ln -s $(wildcard $(CURDIR)/moeloom/*) $(addprefix $(CURDIR)/,$(ROOMS)) build/typecheck/moeloom
	cd build/typecheck && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml

lit: $(INSTALLED)
	$(BIN)/lit --quiet test

pytest: $(INSTALLED)
	$(BIN)/pytest --numprocesses 2 --dist loadfile

docs: $(INSTALLED)
	$(BIN)/python -m moeloom.tools.docs

clean:
	rm -rf build dist demo *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
