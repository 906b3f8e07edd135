# Everything runs in .venv. To build it with another Python: PYTHON=python3.12 make setup
VENV := .venv
RUN := $(VENV)/bin/python
PYTHON ?= $(shell $(RUN) -c "" 2>/dev/null && echo $(RUN) || echo python3)

# What these name belongs to another Python.
unexport PYTHONPATH PYTHONHOME

.PHONY: help setup setup-without-ops demo demo-seg demo-cls test test-oldest lint clean distclean
help:
	@echo "make demo       train, test and draw a small ELSA-Swin Mask R-CNN on generated data"
	@echo "make demo-seg   the same for UPerNet"
	@echo "make demo-cls   the same for a classifier: the quick look, which compiles no mmcv"
	@echo "make test       run all tests"
	@echo "make test-oldest    test ops, layers and backbones with the oldest torch, in .venv-oldest"
	@echo "make lint       check format and style"
	@echo "make setup      build .venv (the others do it first): once, about 10 minutes on 2 cores"
	@echo "make clean      remove what builds, tests and the demo left; keeps .venv, data/ and"
	@echo "                the other folders in work_dirs/"
	@echo "make distclean  clean, and remove .venv"
	@echo "PYTHON=python3.12 make setup    choose the Python, 3.10 to 3.12"

setup: OPTIONS :=
setup-without-ops: OPTIONS := --without-ops
setup setup-without-ops:
	@$(PYTHON) -c "" 2>/dev/null || { \
		echo "setup: $(PYTHON) does not run: install Python 3.10, 3.11 or 3.12, or name it in PYTHON"; \
		exit 1; }
	@$(PYTHON) tools/setup_env.py $(OPTIONS)

demo: setup
	$(RUN) tools/demo.py

demo-seg: setup
	$(RUN) tools/demo.py seg

demo-cls: setup-without-ops
	$(RUN) tools/demo.py cls

# One process per core, each with one thread; the tests of a file share what they made.
test: setup
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n logical --maxprocesses 8 --dist loadfile

# Tests that need more than is there skip themselves. OLDEST=python3.10 names the Python.
OLDEST ?= python3.10
OLDEST_TESTS := tests/ops tests/layers $(addprefix tests/models/test_,elsa_swin.py qna_vit.py ghost_deit.py)
test-oldest:
	$(OLDEST) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install -q -r requirements/oldest.txt
	PYTHONPATH=. .venv-oldest/bin/python -m pytest $(OLDEST_TESTS)

lint: setup
	$(VENV)/bin/pre-commit run --all-files --show-diff-on-failure

# .venv took long to build, mmlocal/.mim belongs to the installation in it, and nobody wants
# to lose a data set or a training run.
clean:
	rm -rf build dist *.egg-info work_dirs/demo* .pytest_cache .ruff_cache .coverage
	find . -name .venv -prune -o -name data -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) .venv-oldest mmlocal/.mim mmlocal/ops/_C.*
