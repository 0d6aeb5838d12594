# One file to remember: `make` alone lists what there is.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SECONDS_ARG := $(if $(SECONDS_TO_RUN),--seconds $(SECONDS_TO_RUN),)

.DEFAULT_GOAL := help
.PHONY: help demo test check format bench prove packages clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): setup.cfg pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "python3 is missing: install Python 3.11 or newer, or set PYTHON"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: set PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,hub]'
	@touch $@

demo: $(STAMP) ## real probes, an agent, a hub and an outage, until Ctrl-C
	@exec $(BIN)/observer-agent demo $(SECONDS_ARG)

test: $(STAMP) ## the fast tests; everything with SLOW=1 or CI=true
ifneq ($(SLOW)$(filter true,$(CI)),)
	@$(MAKE) --no-print-directory -j4 -k $(addprefix test-,$(PARTS))
else ifneq ($(ARGS),)
	$(BIN)/python -X dev -m pytest -q -m "not slow and not prove" $(ARGS)
else
	@echo "Four processes; each shows what it found when it is done, within two minutes or so."
	@$(MAKE) --no-print-directory -j4 -k -O $(addprefix fast-,$(FAST))
endif

# Half of the time the tests wait for real sockets and processes.
FAST := first second hub probes
GROUPED := tests/test_hub_*.py tests/test_probes_*.py
fast-hub: FILES := tests/test_hub_*.py
fast-probes: FILES := tests/test_probes_*.py tests/contracts
fast-first: FILES := $(filter-out $(wildcard $(GROUPED)),$(wildcard tests/test_[a-l]*.py))
fast-second: FILES := $(filter-out $(wildcard $(GROUPED)),$(wildcard tests/test_[m-z]*.py)) tests/packages
.PHONY: $(addprefix fast-,$(FAST))
$(addprefix fast-,$(FAST)): $(STAMP)
	@$(BIN)/python -X dev -m pytest -q -p no:cacheprovider -m "not slow and not prove" $(FILES)

# Most slow tests wait for real things: four processes at a time take a third of the time of one.
PARTS := scenes packages postgres hub first probes second
SCENES := tests/end_to_end tests/blind tests/prove
POSTGRES := tests/test_hub_postgres.py tests/test_hub_browser.py tests/test_page.py
test-scenes: FILES := $(SCENES)
test-packages: FILES := tests/packages
test-postgres: FILES := $(POSTGRES)
test-hub: FILES := $(filter-out $(POSTGRES),$(wildcard tests/test_hub_*.py))
test-probes: FILES := tests/test_probes_*.py tests/contracts
test-first: FILES := $(filter-out $(wildcard $(GROUPED)),$(wildcard tests/test_[a-l]*.py))
test-second: FILES := $(filter-out $(wildcard $(GROUPED)) $(POSTGRES),$(wildcard tests/test_[m-z]*.py))
.PHONY: $(addprefix test-,$(PARTS))
$(addprefix test-,$(PARTS)): $(STAMP)
	$(BIN)/python -X dev -m pytest -q -p no:cacheprovider -m "not prove" $(FILES) $(ARGS)

check: $(STAMP) ## format, lint, types, docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_floors.py tests/test_docs.py tests/test_guides.py tests/test_log_lines.py

format: $(STAMP) ## put every file into the house's form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP) ## figures of this machine, as ratios against named peers
	$(BIN)/python -m benchmarks

prove: $(STAMP) ## the long proofs: kills by the thousand and the like
	$(BIN)/python -X dev -m pytest -q -m prove $(ARGS)

packages: $(STAMP) ## the .deb, the .rpm and the wheel, into dist/
	$(BIN)/python packaging/build.py $(ARGS)

clean: ## take away what the targets above have made
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
