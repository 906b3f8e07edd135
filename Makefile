# All targets run in .venv. To build it with another Python: PYTHON=python3.12 make setup
VENV := .venv
RUN := $(VENV)/bin/python
PYTHON ?= python3

# These variables belong to another Python.
unexport PYTHONPATH PYTHONHOME
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
export PIP_USER := 0

.PHONY: help setup setup-without-ops demo demo-seg demo-cls demo-multitask compare test test-oldest lint docs clean distclean
help:
	@echo "make setup           build the environment .venv: once, about 4 minutes (2 cores, fast network)"
	@echo "                     (with another Python, 3.10 to 3.12: PYTHON=python3.12 make setup)"
	@echo "make demo            train, test and draw a small ELSA-Swin Mask R-CNN on generated data"
	@echo "make demo-seg        the same with UPerNet, for semantic segmentation"
	@echo "make demo-cls        the same with a classifier: the quickest demo, without mmcv's ops"
	@echo "make demo-multitask  the same with an ITSA network, for six tasks on generated scenes"
	@echo "make compare         train one small network with four mixers, and compare them"
	@echo "make test            run all tests"
	@echo "make test-oldest     test ops, layers and backbones with the oldest torch, in .venv-oldest"
	@echo "make lint            check format, style and types"
	@echo "make docs            build the documentation site in work_dirs/docs"
	@echo "make clean           remove the files of builds, tests, demos and comparisons; keep .venv,"
	@echo "                     data/ and all other folders in work_dirs/"
	@echo "make distclean       clean, and remove .venv, .venv-oldest and the compiled kernels"
	@echo "Demos, test and lint build .venv first if it is not there."

READY = @echo "setup: .venv is ready$(1). Activate it with: source $(VENV)/bin/activate"
setup: $(VENV)/ops.done
	$(call READY)
setup-without-ops: $(VENV)/mmlocal.done
	$(call READY, without mmcv's compiled ops)

# A finished step leaves a file .venv/*.done. make continues with the first step whose file is
# missing or older than its requirements. Each call of pip gets all pins, so that no step replaces a
# version from another step.
PINS := $(addprefix -c requirements/,build.txt torch.txt openmm.txt mmcv.txt dev.txt docs.txt)
INSTALL = $(RUN) -m pip install $(PINS)
.DELETE_ON_ERROR:

# If the environment has lost its Python, all steps start again.
ifeq ($(realpath $(RUN)),)
.PHONY: $(VENV)/build.done
endif

$(RUN):
	@$(PYTHON) -c "import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))" 2>/dev/null || { \
		found=$$($(PYTHON) -V 2>/dev/null) || found=missing; \
		echo "setup: Python 3.10, 3.11 or 3.12 is needed, and $(PYTHON) is $$found: name one that you have," \
			"as in PYTHON=python3.12 make setup"; \
		exit 1; }
	@echo "setup: make the virtual environment $(VENV)"
	@$(PYTHON) -m venv --clear $(VENV)

$(VENV)/build.done: requirements/build.txt | $(RUN)
	@echo "setup: 1/5 build tools"
	@$(RUN) -m pip install --upgrade pip
	@$(INSTALL) -r $<
	@touch $@

$(VENV)/torch.done: requirements/torch.txt $(VENV)/build.done
	@echo "setup: 2/5 PyTorch, about 1 minute and 5 GB"
	@$(INSTALL) -r $<
	@touch $@

# Two OpenCV distributions hold the same files, so the last installed one counts. Here pip builds
# mmcv in isolation, without torch, and so without its compiled ops. pip's cache cannot tell such a
# wheel from a compiled one, so pip must not use the cache.
$(VENV)/openmm.done: requirements/openmm.txt requirements/mmcv.txt $(VENV)/torch.done
	@echo "setup: 3/5 OpenMMLab libraries, about 1 minute"
	@$(INSTALL) -r $<
	@$(INSTALL) --force-reinstall --no-deps opencv-python-headless
	@$(INSTALL) --no-cache-dir -r requirements/mmcv.txt
	@touch $@

$(VENV)/mmlocal.done: requirements/dev.txt pyproject.toml setup.py mmlocal/ops/build.py \
		$(wildcard mmlocal/ops/csrc/*) $(VENV)/openmm.done
	@echo "setup: 4/5 mmlocal and tools for its development, about 1 minute"
	@$(INSTALL) -r $<
	@$(RUN) -m pip install --no-build-isolation --no-deps -e .
	@touch $@

# mmdet and mmseg need mmcv's ops, mmpretrain does not.
$(VENV)/ops.done: tools/compile_mmcv.py $(VENV)/openmm.done | $(VENV)/mmlocal.done
	@echo "setup: 5/5 mmcv's ops, compiled here, about 2 minutes"
	@$(RUN) $<
	@touch $@

demo: $(VENV)/ops.done
	$(RUN) tools/demo.py

demo-seg: $(VENV)/ops.done
	$(RUN) tools/demo.py seg

demo-cls: $(VENV)/mmlocal.done
	$(RUN) tools/demo.py cls

demo-multitask: $(VENV)/ops.done
	$(RUN) tools/demo.py multitask

compare: $(VENV)/mmlocal.done
	$(RUN) tools/compare_operators.py --seeds 2 --work-dir work_dirs/compare \
		WindowAttention ELSA QnA DepthwiseConv

# One process per core, each with one thread. The tests of a file run in one process, because they
# share fixtures. tests/conftest.py has the order of the files.
test: $(VENV)/ops.done
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

# Tests that need other packages skip themselves. OLDEST names the Python.
OLDEST ?= python3.10
OLDEST_TESTS := tests/ops tests/layers $(addprefix tests/models/test_,elsa_swin.py qna_vit.py ghost_deit.py)
test-oldest:
	$(OLDEST) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install -q -r requirements/oldest.txt
	PYTHONPATH=. .venv-oldest/bin/python -m pytest $(OLDEST_TESTS)

lint: $(VENV)/ops.done
	$(VENV)/bin/pre-commit run --all-files --show-diff-on-failure

# -W: a warning, such as a link that leads nowhere, is an error.
$(VENV)/docs.done: requirements/docs.txt $(VENV)/mmlocal.done
	@$(INSTALL) -r $<
	@touch $@

docs: $(VENV)/docs.done $(VENV)/ops.done
	$(RUN) -m sphinx -W --keep-going -b html -d build/doctrees docs work_dirs/docs
	@echo "docs: open work_dirs/docs/index.html"

# clean keeps .venv, which takes long to build, and mmlocal/.mim, which belongs to it. It also keeps
# data sets and training runs.
clean:
	rm -rf build dist *.egg-info work_dirs/demo* work_dirs/compare work_dirs/docs .pytest_cache .mypy_cache .ruff_cache .coverage
	find . -name .venv -prune -o -name data -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) .venv-oldest mmlocal/.mim mmlocal/ops/_C.*
