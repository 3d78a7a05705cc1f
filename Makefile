# Two commands on a fresh machine: "make demo" and "make test". Python 3.11+ is all they need.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
READY := $(VENV)/.ready

# What Sphinx warns of is an error: a link that leads nowhere, a page in no table of contents.
.PHONY: demo test docs lint format clean

# torch is named in the same command as what depends on it, so that one resolution picks its version.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("radin needs Python 3.11 or newer; set PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0 -e '.[dev]'
	@touch $@

demo: $(READY)
	$(RUN)/radin demo --out demo-run

test: lint
	$(RUN)/python -m pytest -n 2

docs: $(READY)
	$(RUN)/python -m sphinx -q -W --keep-going -b html docs site

lint: $(READY)
	$(RUN)/ruff check
	$(RUN)/ruff format --check
	$(RUN)/mypy

format: $(READY)
	$(RUN)/ruff check --fix
	$(RUN)/ruff format

clean:
	rm -rf $(VENV) demo-run site .pools .pytest_cache .mypy_cache .ruff_cache
