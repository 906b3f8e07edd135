"""Who may import whom: the layers of the package, and what works without the optional libraries."""

import ast
import functools
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.registry import Registry

import mmlocal.registry
from mmlocal import libraries

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mmlocal"

# Modules by path, most specific first, and what they may import beside the standard library and
# their own folder. The rest of the package (engine, ...) is free.
RULES = {
    "mmlocal/ops/registry.py": {"torch", "mmlocal.ops.backends"},
    "mmlocal/ops/**/triton*.py": {"torch", "triton", "mmlocal.ops"},
    "mmlocal/ops/**/*.py": {"torch", "mmlocal.ops"},
    "mmlocal/layers/**/*.py": {"torch", "mmlocal.ops", "mmlocal.layers"},
    "mmlocal/models/backbones/**/*.py": {
        "torch",
        "mmengine",
        "mmlocal.layers",
        "mmlocal.checkpoints",
        "mmlocal.registry",
        "mmlocal.models.backbones",
    },
    "mmlocal/models/necks/**/*.py": {
        "torch",
        "mmengine",
        "mmlocal.layers",
        "mmlocal.registry",
        "mmlocal.models.backbones.loading",
        "mmlocal.models.necks",
    },
    "mmlocal/models/autoencoders/**/*.py": {
        "torch",
        "mmengine",
        "mmlocal.layers",
        "mmlocal.registry",
        "mmlocal.models.autoencoders",
    },
    "mmlocal/models/detectors/**/*.py": {
        "torch",
        "mmdet",
        "mmengine",
        "mmlocal.layers",
        "mmlocal.registry",
        "mmlocal.models.backbones.loading",
        "mmlocal.models.detectors",
    },
    "mmlocal/models/classifiers/**/*.py": {
        "torch",
        "torchvision",
        "mmpretrain",
        "mmlocal.layers",
        "mmlocal.registry",
        "mmlocal.models.classifiers",
    },
    "mmlocal/models/heads/**/*.py": {
        "torch",
        "torchvision",
        "mmpretrain",
        "mmlocal.layers",
        "mmlocal.registry",
        "mmlocal.models.heads",
    },
    "mmlocal/models/multitask/**/*.py": {
        "torch",
        "mmengine",
        "mmcv.cnn",
        "mmseg",
        "mmlocal.layers",
        "mmlocal.registry",
        "mmlocal.tasks",
        "mmlocal.models.backbones.loading",
        "mmlocal.models.multitask",
    },
    "mmlocal/models/*.py": {"mmlocal.models"},
    "mmlocal/engine/**/*.py": {
        "cv2",
        "numpy",
        "torch",
        "mmengine",
        "mmlocal.checkpoints",
        "mmlocal.errors",
        "mmlocal.files",
        "mmlocal.registry",
        "mmlocal.visualization",
    },
    **{
        f"{type(library).__module__.replace('.', '/')}.py": {*library.packages, "mmlocal"}
        for library in libraries.LIBRARIES.values()
    },
    "mmlocal/libraries/*.py": {"numpy", "torch", "cv2", "mmengine", "mmlocal"},
    "mmlocal/export/**/*.py": {
        "torch",
        "onnx",
        "onnx_ir",
        "onnxruntime",
        "onnxscript",
        "mmlocal.analysis",
        "mmlocal.export",
        "mmlocal.ops",
    },
    "mmlocal/visualization/**/*.py": {
        "cv2",
        "matplotlib",
        "mmengine",
        "numpy",
        "PIL",
        "torch",
        "mmlocal.datasets.scenes",
        "mmlocal.datasets.shapes",
        "mmlocal.errors",
        "mmlocal.files",
        "mmlocal.layers",
        "mmlocal.registry",
        "mmlocal.tasks",
        "mmlocal.visualization",
    },
    "mmlocal/checkpoints/**/*.py": {
        "torch",
        "msgpack",
        "safetensors",
        "mmlocal.checkpoints",
        "mmlocal.files",
        "mmlocal.version",
    },
    "mmlocal/datasets/scenes/**/*.py": {
        "numpy",
        "scipy",
        "cv2",
        "rich",
        "mmlocal.datasets.scenes",
        "mmlocal.files",
        "mmlocal.tasks",
    },
    "mmlocal/datasets/shapes/**/*.py": {
        "numpy",
        "cv2",
        "rich",
        "mmlocal.datasets.scenes",
        "mmlocal.datasets.shapes",
        "mmlocal.files",
    },
    # A pipeline's last step makes the data samples of MMSegmentation.
    "mmlocal/datasets/transforms/multitask_formatting.py": {
        "numpy",
        "torch",
        "mmcv.transforms",
        "mmengine.structures",
        "mmseg.structures",
        "mmlocal.registry",
        "mmlocal.tasks",
    },
    "mmlocal/datasets/transforms/**/*.py": {
        "numpy",
        "torch",
        "cv2",
        "scipy",
        "skimage",
        "mmcv",
        "mmengine",
        "mmlocal.tasks",
        "mmlocal.datasets.transforms",
        "mmlocal.registry",
    },
    "mmlocal/datasets/*.py": {
        "mmlocal.tasks",
        "numpy",
        "torch",
        "mmengine",
        "mmlocal.datasets",
        "mmlocal.registry",
    },
    "mmlocal/evaluation/**/*.py": {
        "cv2",
        "rich",
        "scipy",
        "mmlocal.files",
        "mmlocal.processes",
        "mmlocal.tasks",
        "numpy",
        "skimage",
        "torch",
        "mmengine",
        "mmlocal.evaluation",
        "mmlocal.registry",
    },
    "tools/compile_mmcv.py": {"setuptools", "distutils", "torch"},
    "mmlocal/__init__.py": {
        "mmlocal.extensions",
        "mmlocal.imports",
        "mmlocal.paths",
        "mmlocal.version",
    },
    "mmlocal/__main__.py": {"mmlocal.cli"},
    "mmlocal/cli/__init__.py": {"mmlocal.compatibility", "mmlocal.version"},
    "mmlocal/cli/configs.py": {"mmlocal.cli", "mmlocal.errors", "mmlocal.paths"},
    "mmlocal/cli/info.py": {"mmlocal.info"},
    "mmlocal/compatibility.py": set(),
    "mmlocal/files.py": set(),
    "mmlocal/extensions.py": {"mmlocal.checkpoints", "mmlocal.paths"},
    "mmlocal/imports.py": set(),
    "mmlocal/paths.py": set(),
    "mmlocal/processes.py": {"cv2"},
    "mmlocal/tasks.py": set(),
    "mmlocal/timm.py": {
        "torch",
        "timm.models",
        "mmlocal.layers",
        "mmlocal.models.backbones",
    },
    "mmlocal/version.py": set(),
    "mmlocal/registry.py": {"mmengine"},
    "mmlocal/analysis/**/*.py": {
        "torch",
        "mmengine",
        "mmlocal.analysis",
        "mmlocal.errors",
        "mmlocal.libraries",
        "mmlocal.ops",
    },
    # Peers of our ops and backbones may be missing.
    "benchmarks/backbones.py": {"torch", "torchvision", "mmpretrain", "timm", "mmlocal"},
    "benchmarks/detection.py": {"torch", "mmengine", "mmdet", "benchmarks", "mmlocal"},
    "benchmarks/multitask.py": {"torch", "mmcv.ops", "mmengine", "mmseg", "benchmarks", "mmlocal"},
    "benchmarks/peers.py": {"torch", "natten", "benchmarks", "mmlocal"},
    "benchmarks/choosing.py": {
        "torch",
        "mmengine",
        "mmpretrain",
        "yaml",
        "benchmarks",
        "mmlocal",
    },
    "benchmarks/choosing_plot.py": {"matplotlib", "mmlocal.visualization"},
    "benchmarks/plots.py": {"benchmarks", "mmlocal.visualization"},
    "benchmarks/triton_*.py": {"torch", "triton", "benchmarks", "mmlocal"},
    "benchmarks/sass.py": {"triton", "benchmarks"},
    "benchmarks/**/*.py": {"torch", "benchmarks", "mmlocal"},
    "tools/benchmark_*.py": {"benchmarks", "mmlocal"},
    "tools/audit_triton.py": {"benchmarks", "mmlocal"},
    "tools/*.py": {"mmengine", "mmlocal"},
}
# setup.py runs this by its path, before anything is installed.
STANDARD_LIBRARY_ONLY = {"mmlocal/ops/build.py"}


def imports(path: Path) -> set[str]:
    """Dotted names that a module imports anywhere in it, those in functions included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def violations(path: Path, allowed: set[str]) -> set[str]:
    return {
        name
        for name in imports(path)
        if name.partition(".")[0] not in sys.stdlib_module_names
        and not any(f"{name}.".startswith(f"{prefix}.") for prefix in allowed)
    }


def ruled_modules() -> dict[str, set[str]]:
    modules = {}
    for pattern, allowed in RULES.items():
        for path in sorted(ROOT.glob(pattern)):
            modules.setdefault(path.relative_to(ROOT).as_posix(), allowed)
    return modules | {path: set() for path in STANDARD_LIBRARY_ONLY}


@pytest.mark.parametrize("module", ruled_modules())
def test_imports(module):
    assert violations(ROOT / module, ruled_modules()[module]) == set()


@pytest.mark.parametrize("pattern", RULES)
def test_each_rule_has_modules(pattern):
    assert list(ROOT.glob(pattern))


@pytest.mark.parametrize(
    "folder", ["ops", "layers", "models", "checkpoints", "engine", "export", "visualization"]
)
def test_every_module_has_a_rule(folder):
    found = {path.relative_to(ROOT).as_posix() for path in (PACKAGE / folder).rglob("*.py")}
    assert found
    assert found <= set(ruled_modules())


OPS = [m for m in ruled_modules() if m.startswith("mmlocal/ops/") and "triton" not in m]


@pytest.mark.parametrize("module", OPS)
def test_only_triton_backends_import_each_other(module):
    """They import Triton, which may be missing or too old."""
    names = [name for name in imports(ROOT / module) if name.startswith("mmlocal.")]
    assert not [name for name in names if "triton" in name]


@pytest.mark.parametrize("module", [m for m in ruled_modules() if m.startswith("mmlocal/engine/")])
def test_engine_knows_no_command_line(module):
    assert "argparse" not in imports(ROOT / module)


def test_the_rules_find_something():
    modules = set(ruled_modules())
    assert {
        "mmlocal/datasets/__init__.py",
        "mmlocal/datasets/shapes/export.py",
        "mmlocal/datasets/transforms/__init__.py",
        "mmlocal/evaluation/reconstruction.py",
        "mmlocal/files.py",
        "mmlocal/ops/elsa/eager.py",
        "mmlocal/layers/elsa.py",
        "mmlocal/models/backbones/elsa_swin.py",
        "mmlocal/checkpoints/elsa.py",
        "mmlocal/engine/weights.py",
        "mmlocal/libraries/mmdet.py",
        "mmlocal/analysis/flops.py",
        "benchmarks/ops.py",
        "tools/train.py",
    } <= modules
    backbone = PACKAGE / "models" / "backbones" / "elsa_swin.py"
    assert violations(backbone, {"torch", "mmengine"}) >= {"mmlocal.layers.ELSA"}


def run_without(code: str, *blocked: str) -> None:
    """Run ``code`` in a process in which ``blocked`` libraries cannot be imported."""
    prelude = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"{{name}} is not installed", name=name)

sys.meta_path.insert(0, Blocked())
"""
    done = subprocess.run(
        [sys.executable, "-c", prelude + code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


OPENMM = ("mmengine", "mmcv", "mmdet", "mmseg", "mmpretrain")
LIBRARIES = ("mmcv", "mmdet", "mmseg", "mmpretrain")


def test_the_block_blocks():
    with pytest.raises(AssertionError, match="mmengine is not installed"):
        run_without("import mmengine", *OPENMM)


def test_package_alone():
    """Also without torch: an error here would come out as a missing registry entry."""
    code = "import mmlocal, mmlocal.files; mmlocal.list_configs()"
    run_without(code, *OPENMM, "torch", "numpy", "triton")


def test_libraries_without_any_of_them():
    """``mmlocal info`` says what is missing, whatever is missing."""
    code = """
from mmlocal.libraries import LIBRARIES

for library in LIBRARIES.values():
    assert "torch is not installed" in library.why_not()
"""
    run_without(code, *OPENMM, "torch", "numpy", "triton")


def test_registry_without_torch():
    """It may only import MMEngine, whose own imports are its own affair."""
    run_without("import mmlocal.registry", *LIBRARIES, "triton")


def test_ops_and_layers_without_openmmlab():
    code = """
import torch
from mmlocal.layers import ELSA
from mmlocal.ops import OPS
import mmlocal.checkpoints

ELSA(12, 3, kernel_size=3)(torch.zeros(1, 4, 5, 12)).sum().backward()
assert any(b.unavailable_reason() is None for b in OPS["elsa"].backends)
"""
    run_without(code, *OPENMM, "triton")


def test_backbones_without_libraries():
    code = """
import torch
from mmengine.registry import MODELS

arch = dict(embed_dims=8, depths=(1, 1), num_heads=(1, 2))
backbone = MODELS.build(dict(type="mmlocal.ELSASwin", arch=arch, out_indices=(0, 1)))
backbone.init_weights()
backbone(torch.zeros(1, 3, 32, 40))[1].sum().backward()
"""
    run_without(code, *LIBRARIES, "triton")


def registries() -> dict[str, Registry]:
    return {k: v for k, v in vars(mmlocal.registry).items()
            if isinstance(v, Registry) and v.scope == "mmlocal"}  # fmt: skip


def test_where_registries_look():
    """In folders that import without the libraries, which the next test proves."""
    found = {name: registry._locations for name, registry in registries().items()}
    assert found["DATASETS"] == ["mmlocal.datasets"]
    assert found["HOOKS"] == ["mmlocal.engine"]
    assert found["METRICS"] == ["mmlocal.evaluation"]
    assert found["TRANSFORMS"] == ["mmlocal.datasets.transforms"]


@pytest.mark.parametrize("name", registries())
def test_locations_import(name):
    """MMEngine imports these on first use; here, and without the libraries."""
    locations = registries()[name]._locations
    assert locations
    for location in locations:
        importlib.import_module(location)
        import_without_libraries(location)


@functools.cache
def import_without_libraries(location: str) -> None:
    """Several registries look in the same folder."""
    run_without(f"import {location}", *LIBRARIES, "triton")


def test_a_new_file_registers_itself(tmp_path):
    """No list names the files of these folders."""
    shutil.copytree(PACKAGE, tmp_path / "mmlocal", ignore=shutil.ignore_patterns("*.pyc"))
    code = "from mmlocal.registry import {0}\n\n\n@{0}.register_module()\nclass New: ...\n"
    folders = {"DATASETS": "datasets", "TRANSFORMS": "datasets/transforms", "HOOKS": "engine"}
    for name, folder in folders.items():
        (tmp_path / "mmlocal" / folder / "new.py").write_text(code.format(name))
    (tmp_path / "mmlocal/libraries/new.py").write_text(
        "from mmlocal.libraries.base import Library\n"
        "from mmlocal.libraries.registry import register_library\n\n\n"
        "@register_library\nclass New(Library):\n    name = 'new'\n"
    )
    code = f"""
from mmlocal import registry
from mmlocal.libraries import LIBRARIES

assert "new" in LIBRARIES
for name in {list(folders)}:
    assert getattr(registry, name).get("mmlocal.New"), name
"""
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
