# `make run` serves the example, `make test` runs everything that guards a change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run check test lint docs translations screenshots vendor fuzz torture test-oldest test-between benchmark benchmark-history
.PHONY: clean

# One install for both; made anew when what is asked for changes.
$(VENV)/installed: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[serve]'
	touch $@

$(VENV)/tested: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

run: $(VENV)/installed
	$(BIN)/flask --app example_app db upgrade
	$(BIN)/python example_app.py

lint: $(VENV)/tested
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# For every day: lint, types, the import rule, and the tests that need only SQLite.
check: lint
	$(BIN)/python -m pytest -n 2 -q -m "not servers and not slow"

# Everything. Obtains PostgreSQL, MariaDB and Chromium first.
test: lint
	PYTHONPATH=tests $(BIN)/python -m support.servers
	PYTHONPATH=tests $(BIN)/python -m support.browsers
	$(BIN)/python -m pytest -n 2

# The documentation, into build/docs; a warning stops it.
docs: $(VENV)/tested
	$(BIN)/sphinx-build --quiet --fail-on-warning docs build/docs

# The pictures in the documentation, into docs/images.
screenshots: $(VENV)/tested
	PYTHONPATH=tests $(BIN)/python -m support.screenshots

# The messages of the page in other languages, from the .po files.
translations: $(VENV)/tested
	$(BIN)/pybabel -q compile --domain imcallback --directory flask_imcallback/web/page/translations

# The files of others that the page consists of, from npm; what and which version: vendor.json there.
vendor:
	PYTHONPATH=tests $(PYTHON) -m support.vendor

# The addresses of the callbacks under 100,000 requests a provider; a quarter of an hour or more.
fuzz: $(VENV)/tested
	IMCALLBACK_FUZZ_EXAMPLES=100000 $(BIN)/python -m pytest -n 2 tests/receiving/test_fuzz.py

# Faults under load: ROUNDS of each scenario on each database, or of the SCENARIOS that are named.
ROUNDS ?= 100
torture: $(VENV)/tested
	PYTHONPATH=tests $(BIN)/python -m support.torture --rounds $(ROUNDS) $(SCENARIOS)

# All tests with the oldest dependencies that setup.cfg admits.
test-oldest:
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet --disable-pip-version-check --editable '.[test]' \
		--constraint tests/oldest.txt
	.venv-oldest/bin/python -m pytest -n 2

# The tests that depend on SQLAlchemy, Alembic or marshmallow, with the versions of many hosts.
test-between:
	$(PYTHON) -m venv .venv-between
	.venv-between/bin/pip install --quiet --disable-pip-version-check --editable '.[test]' \
		--constraint tests/between.txt
	.venv-between/bin/python -m pytest -n 2 tests/storage tests/providers tests/hosts tests/history

# How fast callbacks are stored, by us and by other ways to write it; about 20 minutes. What else it
# can measure: .venv-benchmark/bin/python benchmarks/run.py --help
benchmark:
	$(PYTHON) -m venv .venv-benchmark
	.venv-benchmark/bin/pip install --quiet --disable-pip-version-check \
		--editable '.[postgresql,mysql,serve]' --requirement benchmarks/requirements.txt
	.venv-benchmark/bin/python benchmarks/run.py --output build/benchmark.md

# How fast the history answers on ten million removals, SQLite and PostgreSQL; about half an hour.
benchmark-history:
	$(PYTHON) -m venv .venv-benchmark
	.venv-benchmark/bin/pip install --quiet --disable-pip-version-check \
		--editable '.[postgresql,mysql,serve]' --requirement benchmarks/requirements.txt
	.venv-benchmark/bin/python benchmarks/history.py --output build/history.md

clean:
	rm -rf $(VENV) .venv-oldest .venv-between .venv-benchmark build dist *.egg-info
