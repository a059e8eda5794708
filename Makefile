# make demo    train a CLIP on real images in about five minutes, then look at runs/demo/report.html
# make test    the test suite (nine to twelve minutes on two cores); make test-all adds the slow ones
# make lint    ruff's rules and format; types of core and train by pyright
# make docs    the pages of docs/ as a site, figures and API among them, in docs/_build/html
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all lint docs clean

# Huge pages for a step's temporaries (glibc 2.35): a CPU step takes a quarter less time.
demo: export GLIBC_TUNABLES = glibc.malloc.hugetlb=1
demo: .venv/runtime
	$(BIN)/python -m vlx.train --config=configs/clip.py:demo --workdir=runs/demo

test: .venv/test
	$(BIN)/python -m pytest -n auto -m "not slow"

test-all: test .venv/compilers
	$(BIN)/python -m pytest -m slow

lint: .venv/lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright

docs: .venv/docs
	$(BIN)/sphinx-build -q -E -W --keep-going -b html docs docs/_build/html
	@echo docs/_build/html/index.html

.venv/runtime: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -r requirements.txt
	touch $@

.venv/test: .venv/runtime requirements-test.txt requirements-test-data.txt
	$(BIN)/pip install --quiet -r requirements-test.txt
	$(BIN)/pip install --quiet --no-deps -r requirements-test-data.txt
	touch $@

.venv/lint: .venv/runtime requirements-lint.txt
	$(BIN)/pip install --quiet -r requirements-lint.txt
	touch $@

.venv/docs: .venv/runtime requirements-docs.txt
	$(BIN)/pip install --quiet -r requirements-docs.txt
	touch $@

.venv/compilers: requirements-compile.txt
	$(BIN)/pip install --quiet --no-deps --target $@ -r requirements-compile.txt
	touch $@

clean:
	rm -rf .venv runs
