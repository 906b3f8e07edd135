"""Configs, and pictures for their pipelines."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine import Config
from mmengine.registry import (
    DefaultScope,
)

import mmlocal

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def index():
    """Models of model-index.yml by name."""
    modelindex = pytest.importorskip("modelindex.load_model_index")
    loaded = modelindex.load(str(ROOT / "model-index.yml"))
    assert loaded.check(silent=True) == []
    loaded.build_models_with_collections()
    assert len({model.name for model in loaded.models}) == len(loaded.models)
    return {model.name: model for model in loaded.models}


@pytest.fixture
def load():
    """A config by name, its library's scope as default until the end of the test."""
    scopes = []

    def load_config(name: str) -> Config:
        cfg = Config.fromfile(mmlocal.config_path(name))
        scope = DefaultScope.overwrite_default_scope(cfg.default_scope)
        scope.__enter__()
        scopes.append(scope)
        if "data_preprocessor" in cfg:  # what MMEngine's Runner does
            cfg.model.data_preprocessor = cfg.data_preprocessor
        return cfg

    yield load_config
    while scopes:
        scopes.pop().__exit__(None, None, None)


@pytest.fixture
def image(tmp_path):
    """Write a smooth colour image, and a map of labels, of some width and height."""

    def write(width: int, height: int) -> dict:
        rng = np.random.default_rng(0)
        pixels = cv2.resize(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8), (width, height))
        labels = rng.integers(1, 4, (height, width), dtype=np.uint8)
        paths = [str(tmp_path / f"{kind}_{width}x{height}.png") for kind in ("image", "labels")]
        for path, content in zip(paths, (pixels, labels), strict=True):
            cv2.imwrite(path, content)
        return dict(
            img_path=paths[0],
            seg_map_path=paths[1],
            reduce_zero_label=True,
            label_map=None,
            seg_fields=[],
        )

    return write
