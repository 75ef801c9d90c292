# `make draw` and `make test` are all the set-up there is: both make .venv and install.
# PYTHON names another interpreter (3.10 or later); VENV another place.
PYTHON ?= python3
VENV   ?= .venv
DIGITS ?= 0123456789
MODEL  ?= mnist-scan
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help draw test check prose format report reproduce site ship clean

help:
	@echo "make draw     draw digits (DIGITS=2026 chooses them) and show them"
	@echo "make test     run the tests"
	@echo "make check    lint, formatting, types and prose"
	@echo "make prose    find unidiomatic English in pages, docstrings and messages"
	@echo "make format   put the formatting right"
	@echo "make report   render the tables of README.md and docs/ from the ledger"
	@echo "make reproduce how a model was trained and measured (MODEL=mnist-scan)"
	@echo "make site     build the pages of docs/ and the API into build/site, and check them"
	@echo "make ship     put a finished run's weights into the package (RECIPE=mnist-patch)"
	@echo "make clean    remove $(VENV) and everything that was built"

draw: $(VENV)/installed
	$(BIN)/mnist-transformer draw $(DIGITS) --out runs/$(DIGITS).png

test: $(VENV)/installed-test
	$(BIN)/python -m pytest -n 2 -m "not browser and not site"
	$(BIN)/python -m pytest -rs tests/test_browser.py

check: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m tools.prose

prose: $(VENV)/installed-test
	$(BIN)/python -m tools.prose

format: $(VENV)/installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

report: $(VENV)/installed
	$(BIN)/python -m tools.report

reproduce: $(VENV)/installed
	@$(BIN)/python -m tools.reproduce --model $(MODEL)

site: $(VENV)/installed-docs
	$(BIN)/python -m tools.pages
	$(BIN)/python -m tools.page || test -n "$(NPM_MAY_FAIL)"
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict -f build/mkdocs.yml
	$(BIN)/python -m pytest -rs tests/test_site.py tests/test_page.py

ship: $(VENV)/installed
	$(BIN)/python -m tools.ship $(RECIPE)

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 10) else "Python 3.10 or later is needed; PYTHON=... names one")'
	$(PYTHON) -m venv $(VENV)

# An install is repeated when what it depends on has changed.
$(VENV)/installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e .
	@touch $@

$(VENV)/installed-test: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[test]'
	@touch $@ $(VENV)/installed

$(VENV)/installed-docs: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[docs,test]'
	@touch $@ $(VENV)/installed $(VENV)/installed-test
