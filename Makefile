# Everything runs in .venv. To build it with another Python: PYTHON=python3.12 make setup
VENV := .venv
RUN := $(VENV)/bin/python
PYTHON ?= python3

# These belong to another Python.
unexport PYTHONPATH PYTHONHOME
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
export PIP_USER := 0

.PHONY: help setup setup-without-ops demo demo-seg demo-cls test test-oldest lint clean distclean
help:
	@echo "make demo       train, test and draw a small ELSA-Swin Mask R-CNN on generated data"
	@echo "make demo-seg   the same for UPerNet"
	@echo "make demo-cls   the same for a classifier: the quick look, which compiles no mmcv"
	@echo "make test       run all tests"
	@echo "make test-oldest    test ops, layers and backbones with the oldest torch, in .venv-oldest"
	@echo "make lint       check format, style and types"
	@echo "make setup      build .venv (the others do it first): once, about 10 minutes on 2 cores"
	@echo "make clean      remove what builds, tests and the demo left; keeps .venv, data/ and"
	@echo "                the other folders in work_dirs/"
	@echo "make distclean  clean, and remove .venv"
	@echo "PYTHON=python3.12 make setup    choose the Python, 3.10 to 3.12"

setup: $(VENV)/ops.done
setup-without-ops: $(VENV)/mmlocal.done

# A finished step leaves a file .venv/*.done. make goes on with the first step that has none, or
# whose requirements are newer. Each pip gets all pins, so that no step replaces the choice of
# another one.
PINS := $(addprefix -c requirements/,build.txt torch.txt openmm.txt mmcv.txt dev.txt)
INSTALL = $(RUN) -m pip install $(PINS)
.DELETE_ON_ERROR:

# Without its Python, the environment is made anew, and nothing in it is finished.
ifeq ($(realpath $(RUN)),)
.PHONY: $(VENV)/build.done
endif

$(RUN):
	@$(PYTHON) -c "import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))" 2>/dev/null || { \
		found=$$($(PYTHON) -V 2>/dev/null) || found=missing; \
		echo "setup: Python 3.10, 3.11 or 3.12 is needed, and $(PYTHON) is $$found: name one that you have," \
			"as in PYTHON=python3.12 make setup"; \
		exit 1; }
	@echo "setup: virtual environment"
	@$(PYTHON) -m venv --clear $(VENV)

$(VENV)/build.done: requirements/build.txt | $(RUN)
	@echo "setup: 1/5 build tools, about 1 minute"
	@$(RUN) -m pip install --upgrade pip
	@$(INSTALL) -r $<
	@touch $@

$(VENV)/torch.done: requirements/torch.txt $(VENV)/build.done
	@echo "setup: 2/5 PyTorch, about 2 minutes and 5 GB"
	@$(INSTALL) -r $<
	@touch $@

# Of two OpenCV distributions with the same files, the last one installed counts. mmcv leaves its
# ops out here, because it is built in isolation, where there is no torch. pip's cache does not know
# such a wheel from a compiled one, so it must neither give nor keep it.
$(VENV)/openmm.done: requirements/openmm.txt requirements/mmcv.txt $(VENV)/torch.done
	@echo "setup: 3/5 OpenMMLab libraries, about 2 minutes"
	@$(INSTALL) -r $<
	@$(INSTALL) --force-reinstall --no-deps opencv-python-headless
	@$(INSTALL) --no-cache-dir -r requirements/mmcv.txt
	@touch $@

$(VENV)/mmlocal.done: requirements/dev.txt pyproject.toml setup.py mmlocal/ops/build.py \
		$(wildcard mmlocal/ops/csrc/*) $(VENV)/openmm.done
	@echo "setup: 4/5 mmlocal and tools for its development, about 2 minutes"
	@$(INSTALL) -r $<
	@$(RUN) -m pip install --no-build-isolation --no-deps -e .
	@touch $@

# Detection and segmentation need mmcv's ops, classification does not.
$(VENV)/ops.done: tools/compile_mmcv.py $(VENV)/openmm.done | $(VENV)/mmlocal.done
	@echo "setup: 5/5 mmcv's ops, compiled here, about 4 minutes"
	@$(RUN) $<
	@touch $@

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
	rm -rf build dist *.egg-info work_dirs/demo* .pytest_cache .mypy_cache .ruff_cache .coverage
	find . -name .venv -prune -o -name data -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) .venv-oldest mmlocal/.mim mmlocal/ops/_C.*
