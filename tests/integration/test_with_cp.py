"""``with_cp`` changes no gradient of a whole model, even with dropped paths."""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import set_random_seed

from .conftest import random_batch, write_config

pytestmark = pytest.mark.slow


def test_same_gradients(library, tmp_path):
    cfg = Config.fromfile(write_config(library, tmp_path / "c.py"))
    cfg.model.setdefault("data_preprocessor", cfg.get("data_preprocessor"))
    gradients = []
    for with_cp in (False, True):
        cfg.model.backbone.with_cp = with_cp
        set_random_seed(0)  # drops paths, samples boxes, mixes images
        with DefaultScope.overwrite_default_scope(library):
            model = MODELS.build(cfg.model).train()
            model.init_weights()
            data = model.data_preprocessor(random_batch(library, num_classes=9), training=True)
            loss, _ = model.parse_losses(model(**data, mode="loss"))
        loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=lambda m, n=name: f"{n}: {m}")
