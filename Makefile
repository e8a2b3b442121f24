# `make run` serves the example. `make check` and `make test` check a change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run check test lint docs translations screenshots vendor fuzz torture test-oldest test-between benchmark benchmark-history
.PHONY: clean

# Install the package. Runs again when setup.cfg or pyproject.toml changes.
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

# Check lint, types and the import rule, and run the tests that need only SQLite.
check: lint
	$(BIN)/python -m pytest -n 2 -q -m "not servers and not slow"

# Run all checks and all tests. Obtains PostgreSQL, MariaDB and Chromium first.
test: lint
	PYTHONPATH=tests $(BIN)/python -m support.servers
	PYTHONPATH=tests $(BIN)/python -m support.browsers
	$(BIN)/python -m pytest -n 2

# Build the documentation into build/docs. A warning fails.
docs: $(VENV)/tested
	$(BIN)/sphinx-build --quiet --fail-on-warning docs build/docs

# Make the pictures of the documentation in docs/images.
screenshots: $(VENV)/tested
	PYTHONPATH=tests:benchmarks $(BIN)/python -m support.screenshots

# Compile the texts of the web page in other languages from the .po files.
translations: $(VENV)/tested
	$(BIN)/pybabel -q compile --domain imcallback --directory flask_imcallback/web/page/translations

# Copy Bootstrap and uPlot from npm. vendor.json lists the versions.
vendor:
	PYTHONPATH=tests $(PYTHON) -m support.vendor

# Send 100,000 random requests to each provider. Takes 15 minutes or more.
fuzz: $(VENV)/tested
	IMCALLBACK_FUZZ_EXAMPLES=100000 $(BIN)/python -m pytest -n 2 tests/receiving/test_fuzz.py

# Cause faults under load: ROUNDS rounds of each scenario, or of the scenarios in SCENARIOS.
ROUNDS ?= 100
torture: $(VENV)/tested
	PYTHONPATH=tests $(BIN)/python -m support.torture --rounds $(ROUNDS) $(SCENARIOS)

# Run all tests with the oldest dependencies that setup.cfg allows.
test-oldest:
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet --disable-pip-version-check --editable '.[test]' \
		--constraint tests/oldest.txt
	.venv-oldest/bin/python -m pytest -n 2

# Run the tests that depend on dependencies between the oldest and the newest versions.
test-between:
	$(PYTHON) -m venv .venv-between
	.venv-between/bin/pip install --quiet --disable-pip-version-check --editable '.[test]' \
		--constraint tests/between.txt
	.venv-between/bin/python -m pytest -n 2 tests/storage tests/providers tests/hosts tests/history

# Measure how fast this extension and other apps store callbacks. Takes about 20 minutes.
# `.venv-benchmark/bin/python benchmarks/run.py --help` lists more measurements.
benchmark:
	$(PYTHON) -m venv .venv-benchmark
	.venv-benchmark/bin/pip install --quiet --disable-pip-version-check \
		--editable '.[postgresql,mysql,serve]' --requirement benchmarks/requirements.txt
	.venv-benchmark/bin/python benchmarks/run.py --output build/benchmark.md

# Measure the history on ten million removals, on SQLite and PostgreSQL. Takes half an hour.
benchmark-history:
	$(PYTHON) -m venv .venv-benchmark
	.venv-benchmark/bin/pip install --quiet --disable-pip-version-check \
		--editable '.[postgresql,mysql,serve]' --requirement benchmarks/requirements.txt
	.venv-benchmark/bin/python benchmarks/history.py --output build/history.md

clean:
	rm -rf $(VENV) .venv-oldest .venv-between .venv-benchmark build dist *.egg-info
