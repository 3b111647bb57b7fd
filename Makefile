# Each target does all of its own set-up; what is done already is not done again.
.PHONY: help test slow fuzz oldest newest lmms vllm vllm-slow prose book serve lint clean
.DEFAULT_GOAL := help

BIN := .venv/bin
READY := .venv/.ready
LMMS := .venv-lmms/bin
VLLM := .venv-vllm/bin
ASSETS := book/_static/vendor/mathjax/tex-mml-chtml.js
LIVE := book/_static/vendor/pocket/model.json
PORT ?= 8000
# Tests spread over the cores, each of them on one thread; and the quick ones of them.
SPREAD := OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto --maxprocesses 4
QUICK := $(SPREAD) -m "not slow"

# The transformers that is installed in a folder, with its version.
transformers = $$(basename $(1)/transformers-*.dist-info)

help:
	@echo "make test   quick tests        make book   run every page, build the site: book/_build/html"
	@echo "make slow   the other tests    make serve  serve it on http://127.0.0.1:$(PORT)"
	@echo "make lint   ruff               make clean  remove what the targets made"
	@echo "make oldest the quick tests with the oldest transformers that is supported (.venv-oldest)"
	@echo "make newest the same with the newest (.venv-newest)"
	@echo "make fuzz   300 drawn ways of asking, against a masked run (FOPRU_FUZZ_DRAWS, FOPRU_FUZZ_SEED)"
	@echo "make prose  the numbers of the book's prose, counted again from data/results/"
	@echo "make lmms   the tests with lmms-eval, in an environment of their own (.venv-lmms)"
	@echo "make vllm   the tests inside vLLM, on the CPU, in an environment of their own (.venv-vllm);"
	@echo "            make vllm-slow those with more engines: HTTP, two ranks, not eager"

test: $(READY)
	$(QUICK)

slow: $(READY)
	$(SPREAD) -m slow tests/test_*.py
	$(BIN)/pytest -q -m slow tests/book tests/pocket

fuzz: export FOPRU_FUZZ_DRAWS ?= 300
fuzz: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -q tests/fuzz

oldest: .venv-oldest/.ready
	PYTHONPATH=.venv-oldest $(QUICK) tests/test_*.py

newest: .venv-newest/.ready
	@if [ $(call transformers,.venv-newest) = $(call transformers,.venv/lib/python*/site-packages) ]; \
	  then echo "the newest is the one that make test runs with: nothing is left to test"; \
	  else PYTHONPATH=.venv-newest $(QUICK) tests/test_*.py; fi

lmms: .venv-lmms/.ready
	$(LMMS)/pytest -q tests/test_lmms.py

vllm: .venv-vllm/.ready
	OMP_NUM_THREADS=1 $(VLLM)/pytest -q -m "not slow" tests/test_vllm.py

vllm-slow: .venv-vllm/.ready
	OMP_NUM_THREADS=1 $(VLLM)/pytest -q -m slow tests/test_vllm.py

prose: $(READY)
	$(BIN)/python benchmarks/prose.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

book: $(READY) assets
	$(BIN)/jupyter-book build . --config book/_config.yml --toc book/_toc.yml \
	  --path-output book -W --keep-going -q
	@echo "book/_build/html/index.html is built; make serve shows it"

serve: $(READY)
	@test -f book/_build/html/index.html || { echo "no site yet: run make book first" >&2; exit 1; }
	$(BIN)/python -m http.server $(PORT) --bind 127.0.0.1 --directory book/_build/html

clean:
	rm -rf .venv .venv-oldest .venv-newest .venv-lmms .venv-vllm node_modules book/_build book/_static/vendor .jupyter_cache .pytest_cache .ruff_cache

$(READY): requirements/ci.txt pyproject.toml
	@set -e; for python in python3 python3.13 python3.12 python3.11; do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then break; fi; \
	  python=; done; \
	if [ -z "$$python" ]; then echo "fopru needs Python 3.11 or newer, and found none" >&2; exit 1; fi; \
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $$python -m venv --clear .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements/ci.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.venv-oldest/.ready: WANTED = transformers==$(shell sed -n 's/.*"transformers>=\([0-9.]*\),.*/\1/p' pyproject.toml).0
.venv-newest/.ready: WANTED = $(shell sed -n 's/.*"\(transformers>=[^"]*\)".*/\1/p' pyproject.toml)
.venv-oldest/.ready .venv-newest/.ready: pyproject.toml | $(READY)
	@rm -rf $(@D)
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --target $(@D) '$(WANTED)'
	@touch $@

.venv-lmms/.ready: requirements/lmms.txt pyproject.toml | $(READY)
	@$(LMMS)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m venv --clear .venv-lmms
	$(LMMS)/python -m pip install -q --disable-pip-version-check $$(grep ^torch== requirements/lmms.txt)
	$(LMMS)/python -m pip install -q --disable-pip-version-check --no-deps -r requirements/lmms.txt
	$(LMMS)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.venv-vllm/.ready: requirements/vllm.txt requirements/torchvision_without_ops.py pyproject.toml | $(READY)
	@$(VLLM)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m venv --clear .venv-vllm
	$(VLLM)/python -m pip install -q --disable-pip-version-check $$(grep ^torch== requirements/vllm.txt)
	$(VLLM)/python -m pip install -q --disable-pip-version-check --no-deps -r requirements/vllm.txt
	$(VLLM)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@cp requirements/torchvision_without_ops.py .venv-vllm/lib/python3*/site-packages
	@echo "import torchvision_without_ops" > $$(echo .venv-vllm/lib/python3*/site-packages)/torchvision_without_ops.pth
	@touch $@

# MathJax and the widget manager come from npm: the system's, or that of a Python wheel. Without
# either the pages load them from CDNs.
.PHONY: assets
assets: $(READY) $(LIVE)
	@test -f $(ASSETS) -a -f book/_static/vendor/anywidget.js -a -d book/_static/vendor/ort \
	  || $(BIN)/python book/_ext/vendor.py

# The pocket model as a page runs it.
$(LIVE): $(wildcard data/pocket/*) fopru/widgets/export.py | $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m fopru.widgets.export $(@D)
