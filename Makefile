# `make run` serves the example. `make check` and `make test` check a change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run check test lint docs translations screenshots vendor fuzz torture test-oldest test-between
.PHONY: benchmark benchmark-hour benchmark-history clean needed

# pip keeps no cache in the home of the user, here and in the tests.
export PIP_NO_CACHE_DIR := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# A virtual environment does not work after its folder has moved, or without its Python.
$(shell test ! -e $(VENV)/installed || { test -x $(BIN)/python && pwd | cmp -s - $(VENV)/installed; } \
	|| rm -rf $(VENV))

NO_PYTHON := Python 3.11 or newer is missing. Debian and Ubuntu: apt install python3-venv
CHECK := { command -v $(PYTHON) >/dev/null || { echo "$(NO_PYTHON)" >&2; exit 1; }; } \
	&& $(PYTHON) -I tests/support/prerequisites.py

# Install the package. Runs again when setup.cfg or pyproject.toml changes.
$(VENV)/installed: setup.cfg pyproject.toml
	@$(CHECK)
	@echo "Installing flask-imcallback into $(VENV). This needs the network."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --editable '.[serve]'
	@pwd > $@

$(VENV)/tested: $(VENV)/installed
	@echo "Installing what the checks and tests need. This takes a minute."
	@$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@

# Install the programs that read exports in the tests.
$(VENV)/readers: $(VENV)/tested
	@echo "Installing the programs that read exports. They take 350 MB."
	@$(BIN)/python -m pip install --quiet --editable '.[readers]'
	@touch $@

run: $(VENV)/installed
	@$(BIN)/python example_app.py

lint: $(VENV)/tested
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# Check lint, types and the import rule, and run the tests that need only SQLite.
check: lint
	$(BIN)/python -m pytest -n 2 -q -m "not servers and not slow"

# Name what the tests need from the system before anything is installed.
needed:
	@$(CHECK) test

# Run all checks and all tests except the long ones. Obtains PostgreSQL, MariaDB and Chromium first.
# A test that fails beside others runs once more, alone: a busy disk or processor can delay a server
# beyond the limits that tests of time have.
test: needed lint $(VENV)/readers
	PYTHONPATH=tests $(BIN)/python -m support.servers
	PYTHONPATH=tests $(BIN)/python -m support.browsers
	$(BIN)/python -m pytest -n 3 -m "not long" || { status=$$?; [ $$status = 1 ] || exit $$status; \
		echo "The tests that failed run once more, without other tests beside them."; \
		$(BIN)/python -m pytest -m "not long" --last-failed --last-failed-no-failures none \
			--maxfail 3; }

# Build the documentation into build/docs. A warning fails.
docs: $(VENV)/tested
	$(BIN)/sphinx-build --quiet --fail-on-warning docs build/docs

# Write the lists of settings and commands into docs/settings.md and docs/command-line.md.
.PHONY: reference
reference: $(VENV)/tested
	$(BIN)/python docs/generated.py

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

# Repeat tests of faults, servers and changed logs on further databases and on a Galera cluster.
.PHONY: test-long
test-long: needed $(VENV)/tested
	PYTHONPATH=tests $(BIN)/python -m support.servers
	$(BIN)/python -m pytest -n 2 -m long

# Run all tests with the oldest dependencies that setup.cfg allows.
test-oldest:
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet --editable '.[test,readers]' \
		--constraint tests/oldest.txt
	.venv-oldest/bin/python -m pytest -n 3 -m "not long"

# Run the tests that depend on dependencies between the oldest and the newest versions.
test-between:
	$(PYTHON) -m venv .venv-between
	.venv-between/bin/pip install --quiet --editable '.[test]' \
		--constraint tests/between.txt
	.venv-between/bin/python -m pytest -n 2 tests/storage tests/providers tests/hosts tests/history

.PHONY: $(VENV)-benchmark
$(VENV)-benchmark:
	@$(PYTHON) -m venv $@
	@$@/bin/pip install --quiet \
		--editable '.[postgresql,mysql,serve]' --requirement benchmarks/requirements.txt

# Measure how fast this extension and other apps store callbacks. Takes about 15 minutes.
# `.venv-benchmark/bin/python benchmarks/run.py --help` lists the options, for example a comparison
# with another commit.
benchmark: $(VENV)-benchmark
	$</bin/python benchmarks/run.py --output build/benchmark.md

# Measure an hour of load on ten million removals. DATABASE, SECONDS and REMOVALS change this.
DATABASE ?= sqlite
SECONDS ?= 3600
REMOVALS ?= 10000000
benchmark-hour: $(VENV)-benchmark
	$</bin/python benchmarks/hour.py --database $(DATABASE) --seconds $(SECONDS) \
		--removals $(REMOVALS) --output build/hour-$(DATABASE).md

# Measure the history on ten million removals, on SQLite and PostgreSQL. Takes half an hour.
benchmark-history: $(VENV)-benchmark
	$</bin/python benchmarks/history.py --output build/history.md

# Remove everything that the other commands make, except the data of the demo in `instance`.
clean:
	rm -rf $(VENV) .venv-oldest .venv-between .venv-benchmark build dist *.egg-info
	rm -rf .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
