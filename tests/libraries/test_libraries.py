"""Each config gets the object of its library, and other packages can add libraries."""

import ast
from pathlib import Path

import pytest
from mmengine.config import Config

import mmlocal
from mmlocal.cli.config import load_config
from mmlocal.errors import UsageError
from mmlocal.libraries import LIBRARIES, Library, MMDet, MMSeg, library_of, register_library

PACKAGE = Path(mmlocal.__file__).parent


@pytest.fixture(autouse=True)
def _libraries():
    """Forget the libraries that a test registers."""
    known = dict(LIBRARIES)
    yield
    LIBRARIES.clear()
    LIBRARIES.update(known)


def test_library_of_a_config():
    for name, library in LIBRARIES.items():
        assert library_of(Config(dict(default_scope=name))) is library
        assert library.name == name


@pytest.mark.parametrize(
    ("settings", "name"), [({"default_scope": "mmpose"}, "mmpose"), ({}, "mmengine")]
)
def test_everything_else_is_plain_mmengine(settings, name):
    library = library_of(Config(settings))
    assert type(library) is Library
    assert library.name == name
    assert library.why_not() is None


def test_registered_library_is_found():
    @register_library
    class Toy(Library):
        name = "toy"
        packages = ("torch", "no_such_package")
        arguments = frozenset({"interval"})

    library = library_of(Config(dict(default_scope="toy")))
    assert isinstance(library, Toy)
    with pytest.raises(UsageError, match=r"config for toy\. toy cannot run here: no_such_"):
        library.require()
    library.refuse_foreign(interval=2, out_item=None)
    with pytest.raises(UsageError, match="applies to mmpretrain and toy configs") as error:
        LIBRARIES["mmdet"].refuse_foreign(interval=2)
    assert error.value.argument == "interval"


def test_library_on_top_of_another_one_takes_its_own_configs(tmp_path):
    """The configs keep ``default_scope="mmseg"``, so that MMEngine finds the models of mmseg."""

    @register_library
    class Several(MMSeg):
        name = "several"

        def owns(self, cfg):
            return cfg.get("model", {}).get("type") == "mmlocal.Several"

    def written(scope, model):
        path = tmp_path / f"{scope}.py"
        path.write_text(f"default_scope = {scope!r}\nmodel = dict(type={model!r})\n")
        return library_of(load_config(str(path)))

    assert type(written("mmseg", "mmlocal.Several")) is Several
    assert type(written("mmseg", "EncoderDecoder")) is MMSeg
    assert type(written("mmdet", "MaskRCNN")) is MMDet


def test_names_are_unique():
    assert register_library(MMDet) is MMDet

    class Other(Library):
        name = "mmdet"

    for cls in (Other, Library):
        with pytest.raises(ValueError, match="name of a new library, got 'mm"):
            register_library(cls)


def test_nothing_else_asks_which_library_it_is():
    """A name as a whole string is a comparison, or a key of a table by library."""
    # The converter of DeMT builds a model of mmseg to check the weights.
    # extensions.py extends MMPreTrain.
    owners = {
        "libraries/",
        "compatibility.py",
        "models/__init__.py",
        "checkpoints/demt.py",
        "extensions.py",
    }
    found = {
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in PACKAGE.rglob("*.py")
        if not any(path.relative_to(PACKAGE).as_posix().startswith(owner) for owner in owners)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in ("mmdet", "mmseg", "mmpretrain")
    }
    assert found == set()


def test_evaluator_that_would_drop_the_predictions():
    metric = dict(type="CocoMetric")
    several = dict(type="MultiDatasetsEvaluator", metrics=[metric], dataset_prefixes=["a"])
    with pytest.raises(UsageError, match=r"^out: MultiDatasetsEvaluator writes no predictions"):
        MMDet().write_predictions(Config(dict(test_evaluator=several)), "x.pkl")
    for evaluator in (metric, [metric], dict(type="Evaluator", metrics=metric)):
        cfg = Config(dict(test_evaluator=evaluator))
        MMDet().write_predictions(cfg, "x.pkl")
        metrics = cfg.test_evaluator
        metrics = metrics["metrics"] if isinstance(metrics, dict) else metrics
        assert [metric["type"] for metric in metrics] == ["CocoMetric", "DumpDetResults"]
