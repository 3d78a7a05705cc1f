# Two commands on a fresh machine: "make demo" and "make test". Python 3.11+ is all they need. "make ci" is all there is.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
READY := $(VENV)/.ready

OLDEST := .venv-oldest
# Each worker begins with one half of the tests, so that most modules' fixtures are made once; the quicker one helps.
TESTS := -m pytest -n 2 --dist worksteal
# Of lines and branches of src, in per cent; a subset of the tests alone reaches 64.
COVERED := 64

# What "make oldest" runs: what touches the libraries that constraints-oldest.txt names, and needs no others.
CORE := tests/stats tests/estimate tests/data tests/outputs/test_files.py tests/outputs/test_outputs.py \
  tests/engine/test_evaluate.py tests/engine/test_gradient.py tests/engine/test_batchnorm.py tests/testing \
  tests/run/test_cook.py tests/run/test_session.py tests/search/test_search.py tests/search/test_rank.py \
  tests/search/test_paper.py tests/test_cli.py tests/weights/test_formats.py tests/weights/test_pool.py

.PHONY: demo test long docs lint format clean ci coverage oldest release-check

# torch is named in the same command as what depends on it, so that one resolution picks its version.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("radin needs Python 3.11 or newer; set PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0 -e '.[dev]'
	@touch $@

demo: $(READY)
	$(RUN)/radin demo --out demo-run

# All that is not marked as long: every room of src, in under ten minutes on two cores.
test: lint
	$(RUN)/python $(TESTS) -m "not long"

# What takes long by its nature: clusters, a browser, what the documentation shows, trainings, kills.
long: $(READY)
	$(RUN)/python $(TESTS) -m long

# All tests, with the share of lines and branches of src that they reach in their own processes.
coverage: $(READY)
	$(RUN)/python $(TESTS) --cov --cov-report=term --cov-fail-under=$(COVERED)

# What Sphinx warns of is an error: a link that leads nowhere, a page in no table of contents.
docs: $(READY)
	$(RUN)/python -m sphinx -q -W --keep-going -b html docs site

# What continuous integration runs. A test that is marked as clock and fails is run once more, and listed as such.
ci: TESTS += --rerun-clock -rfER
ci: test long docs

# The oldest versions that pyproject.toml allows. Its torch comes with CUDA's libraries: 3 GB to load, 5.5 GB on disk.
$(OLDEST)/.ready: constraints-oldest.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info[:2] == (3, 11) else "the oldest versions are those for Python 3.11; set PYTHON=python3.11")'
	$(PYTHON) -m venv --clear $(OLDEST)
	sed -n 's/==.*//p' constraints-oldest.txt > $(OLDEST)/names.txt
	$(OLDEST)/bin/python -m pip install --quiet --no-cache-dir --disable-pip-version-check -c constraints-oldest.txt -r $(OLDEST)/names.txt
	@touch $@

oldest: $(OLDEST)/.ready
	PYTHONPATH=src:tests:. $(OLDEST)/bin/python $(TESTS) $(CORE)

# Build what is published, install the wheel into an empty environment, and use it. RADIN_REPOSITORY: hatch_build.py.
release-check:
	$(PYTHON) .ci/release_check.py

lint: $(READY)
	$(RUN)/ruff check
	$(RUN)/ruff format --check
	$(RUN)/mypy

format: $(READY)
	$(RUN)/ruff check --fix
	$(RUN)/ruff format

clean:
	rm -rf $(VENV) $(OLDEST) dist demo-run site .pools .pytest_cache .mypy_cache .ruff_cache
