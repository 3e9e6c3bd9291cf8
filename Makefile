PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test test-all check format docs docs-serve figure checkup pages methods results studies bench bench-write clean

install: .venv/installed

# --prefer-binary and the pinned constraints keep pip to wheels that are known to work together
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --prefer-binary -c constraints.txt -e '.[dev]'
	touch $@

demo: install  ## the main job on built-in data: joint, D&R and OGM-GE over three seeds
	$(BIN)/evenly compare --out demo

# a process on each of two cores: threads of theirs would only wait for each other
test test-all: export OMP_NUM_THREADS = 1
test test-all: export OPENBLAS_NUM_THREADS = 1
PYTEST := $(BIN)/pytest -n 2 --dist loadgroup -o tmp_path_retention_count=1

test: check  ## before each commit: every method and module, without what takes long
	$(PYTEST) -m 'not slow'

test-all: check  ## everything that must hold, as in CI: also the pages, killed processes, the browser
	$(PYTEST)

check: install  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# mkdocs-material announces its successor in every run; mkdocs is pinned below 2
docs: export NO_MKDOCS_2_WARNING = 1
docs: install  ## the site of the documentation, in site/
	$(BIN)/mkdocs build --strict

docs-serve: export NO_MKDOCS_2_WARNING = 1
docs-serve: install  ## the same while you write, at http://localhost:8000
	$(BIN)/mkdocs serve

pages: methods  ## what programs write in docs: lists of commands and data sets, outputs of blocks
	$(BIN)/python docs/make_reference.py
	$(BIN)/python docs/run_pages.py

figure: demo  ## the pictures of README and docs; the second is taken with chromium
	$(BIN)/evenly report demo --figure docs/demo.svg
	$(BIN)/python docs/make_screenshot.py demo/report.html docs/report.png

checkup: install  ## the README's checkups, from ../shared/data (a quarter of an hour on two cores)
	$(BIN)/python docs/make_checkup.py

methods: install  ## docs/fidelity.md, measured; docs/methods.md, from what the methods declare
	$(BIN)/python docs/make_fidelity.py
	$(BIN)/python docs/make_methods.py

results: install  ## docs/results.md, from ../shared/data (hours on two cores)
	$(BIN)/python docs/make_results.py

studies: install  ## docs/studies.md, from ../shared/data (three to five hours on two cores)
	$(BIN)/python docs/make_studies.py

bench: install  ## every promise of speed, as a ratio from one run (two hours on two cores)
	$(BIN)/python benchmarks/run.py

bench-write: install  ## the same, noted down in benchmarks/results and docs/performance.md
	$(BIN)/python benchmarks/run.py --write

clean:
	rm -rf .venv demo runs site
