# make train   environment, install, then the training recipe on a demo cohort
# make test    environment, install, lint, types, tests
# make quick   the tests that take seconds
# make proof   the tests with every kill, random case and step that is promised; hours
# make ceph    Ceph's daemons from Debian, as root: tests on Ceph are skipped without them
# make pandas2 the tests of tables, views, changes and export with pandas 2, which anndata needs, in an environment of its own
# make benchmarks  every benchmark in full, into benchmarks/results, and the page of them; about three hours
# Both from a clean clone; another interpreter: make test PYTHON=python3.12
PYTHON ?= python3
VENV ?= .venv/$(shell $(PYTHON) -c 'import sys; print("py%d.%d" % sys.version_info[:2])')
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed
DATA ?= ct_isotropic
ARGS ?=
JOBS ?= 2

AZURITE = .venv/npm/.installed

OLD = .venv/pandas2-$(notdir $(VENV))
OLD_TESTS = store_table expression views mutation format export

.PHONY: train test quick proof azurite ceph pandas2 benchmarks lint types tests docs wheel clean

# idle OpenMP threads sleep rather than spin: on two busy cores a step costs half the CPU time
train: export OMP_WAIT_POLICY ?= passive
train: $(INSTALLED)
	$(BIN)/python recipes/train.py +data=$(DATA) $(ARGS)

test: lint types tests

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy radiodata

tests: $(INSTALLED) $(AZURITE)
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

quick: $(INSTALLED) $(AZURITE)
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not slow" $(ARGS)

proof: $(INSTALLED) $(AZURITE)
	RADIODATA_PROOF=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

azurite: $(AZURITE)

# S3 as Ceph serves it, from Debian, for slow tests, which are skipped without it
ceph:
	command -v radosgw || { apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends radosgw ceph-mon ceph-osd ceph-common; }

pandas2: $(OLD)/.installed
	$(OLD)/bin/python -m pytest -n $(JOBS) --dist worksteal -m "not slow" $(OLD_TESTS:%=tests/test_%.py) $(ARGS)

benchmarks: $(VENV)/.bench
	for name in $$($(BIN)/python -c "from benchmarks.registry import NAMES; print(*NAMES)"); do \
		$(BIN)/python -m benchmarks run $$name --json benchmarks/results/$$name.json $(ARGS) || exit 1; done
	$(BIN)/python -m benchmarks report

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict

wheel: $(INSTALLED)
	rm -rf dist
	$(BIN)/python -m build --wheel

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

$(OLD)/.installed: pyproject.toml constraints.txt
	test -x $(OLD)/bin/python || $(PYTHON) -m venv $(OLD)
	grep -v '^pandas' constraints.txt > $(OLD)/constraints.txt
	$(OLD)/bin/python -m pip install --quiet --constraint $(OLD)/constraints.txt --editable ".[anndata,arrow,encryption]" \
		"pandas<3" pytest pytest-timeout pytest-xdist hypothesis
	touch $@

# a server of Azure Blob Storage for tests, which are skipped without it
$(AZURITE):
	mkdir -p $(@D)
	if command -v npm; then npm install --silent --no-audit --no-fund --prefix $(@D) azurite@3.35.0; \
	else echo "no npm: tests on Azure Blob Storage are skipped"; fi
	touch $@

# nnU-Net's own loader, too; without what it asks for and no benchmark needs
$(VENV)/.bench: $(INSTALLED) benchmarks/nnunet.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[bench]"
	$(BIN)/python -m pip install --quiet --no-deps --requirement benchmarks/nnunet.txt
	touch $@

$(VENV)/.docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	touch $@

clean:
	rm -rf .venv dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis
