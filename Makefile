# make demo   the whole path on an embedded task: sweep, table, report
# make test   what CI runs: lint, types, unit tests, and the tests that start Ray
# make test-all   these, the slow tests and those of faults
# Each creates the environment in .venv first, if it is not there or pyproject.toml or constraints.txt changed.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# uv does not read pip's variables; a wheel folder named for pip serves both.
ifneq ($(PIP_FIND_LINKS),)
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
endif

export RAY_USAGE_STATS_ENABLED := 0

.PHONY: demo test test-all tests unit ray-tests test-faults test-slow test-statistics docs release-check lint types environment clean

demo: $(STAMP)
	$(BIN)/slime-ray demo

test: lint types tests

test-all: test test-slow test-faults

# One thread per process: the tensors are small, and two workers share two cores. Nothing may reach for a hub. Bytecode is
# kept: sweeps start many processes.
tests unit ray-tests test-faults test-slow: export OMP_NUM_THREADS := 1
tests unit ray-tests test-faults test-slow: export HF_HUB_OFFLINE := 1
tests unit ray-tests test-faults test-slow: export TOKENIZERS_PARALLELISM := false
tests unit ray-tests test-faults test-slow: export PYTHONDONTWRITEBYTECODE :=

# Two processes, a file at a time, in the order of tests/conftest.py: those that start Ray first, which wait a good deal.
PYTEST := $(BIN)/python -m pytest --durations 15
SIDE_BY_SIDE := -n 2 --dist loadfile --no-loadscope-reorder

tests: $(STAMP)
	$(PYTEST) $(SIDE_BY_SIDE) -m "not slow and not faults"

unit: $(STAMP)
	$(PYTEST) $(SIDE_BY_SIDE) -m "not ray and not slow and not faults"

ray-tests: $(STAMP)
	$(PYTEST) $(SIDE_BY_SIDE) -m "ray and not slow and not faults"

# Everything that a sweep has to survive, and what it cost, as the table of docs/benchmarks/reliability.md; half an hour.
test-faults: $(STAMP)
	mkdir -p build && rm -f build/faults.jsonl
	$(BIN)/python -m pytest tests/faults --fault-table build/faults.jsonl
	$(BIN)/python -m pytest --ignore tests/faults -m faults
	$(BIN)/python -m tests.faults.table build/faults.jsonl

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

# Whether 95 % intervals cover a known truth in 93 to 97 of 100 simulated evaluations, and whether tables of ablations claim
# more than is there; the tables of docs/benchmarks/statistics.md.
test-statistics: $(STAMP)
	$(BIN)/python -m pytest -m slow tests/statistics

# The pages of docs/ as a site in build/site; a link that leads nowhere fails.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The wheel, installed alone into an empty environment, runs the demo.
release-check: $(STAMP)
	.ci/release

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The checker does not run slime_ray/__init__.py, which joins analysis/ and search_spaces/ to the package, so it is
# given the package as it is installed.
types: $(STAMP)
	rm -rf $(VENV)/types && mkdir $(VENV)/types
	cp -Rp slime_ray tests benchmarks pyproject.toml $(VENV)/types/
	cp -Rp analysis search_spaces $(VENV)/types/slime_ray/
	cd $(VENV)/types && MYPY_CACHE_DIR=$(CURDIR)/.mypy_cache ../bin/mypy --explicit-package-bases slime_ray tests benchmarks

environment: $(STAMP)

# pip knows dependency groups since 25.1, and would compile on one core. What cannot be compiled are templates in packages.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "slime_ray needs Python 3.11 or newer")'
	@echo "Installing into $(VENV), once: 2.3 GB, some minutes."
	@if command -v uv >/dev/null 2>&1; then \
		uv venv --quiet --allow-existing --python "$(PYTHON)" $(VENV) && \
		uv pip install --python $(BIN)/python -c constraints.txt --group dev -e .; \
	else \
		$(PYTHON) -m venv $(VENV) && \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check 'pip>=25.1' && \
		$(BIN)/python -m pip install --no-compile --progress-bar off --disable-pip-version-check \
			-c constraints.txt --group dev -e . && \
		{ $(BIN)/python -m compileall -q -q -j 0 $(VENV)/lib || true; }; \
	fi
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
