"""Layer-wise learning-rate decay in all three libraries."""

import pytest
from mmengine.config import Config, ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmlocal.engine.optim import LayerDecayOptimWrapperConstructor

from .conftest import write_config


def optim_wrapper_cfg(constructor: str, **paramwise) -> ConfigDict:
    return ConfigDict(
        optimizer=dict(type="AdamW", lr=1.0, weight_decay=0.1),
        constructor=constructor,
        paramwise_cfg=dict(layer_decay_rate=0.5, **paramwise),
    )


def groups(model: nn.Module, cfg: ConfigDict) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each parameter."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: (group["lr"], group["weight_decay"])
        for group in build_optim_wrapper(model, cfg).optimizer.param_groups
        for parameter in group["params"]
    }


@pytest.fixture
def model(library, tmp_path) -> nn.Module:
    cfg = Config.fromfile(write_config(library, tmp_path / "c.py"))
    cfg.model.setdefault("data_preprocessor", cfg.get("data_preprocessor"))
    with DefaultScope.overwrite_default_scope(library):
        yield MODELS.build(cfg.model)


def test_rates(model):
    found = groups(
        model,
        optim_wrapper_cfg(
            "mmlocal.LayerDecayOptimWrapperConstructor",
            norm_decay_mult=0.0,
            custom_keys={"stages.3": dict(lr_mult=0.1)},
        ),
    )
    assert found.keys() == {name for name, _ in model.named_parameters()}
    assert found["backbone.patch_embed.proj.weight"] == (0.5**5, 0.1)
    # one block in each of four stages; a merging belongs to the block before it
    assert found["backbone.stages.0.blocks.0.norm1.weight"] == (0.5**4, 0.0)
    assert found["backbone.stages.0.downsample.reduction.weight"] == (0.5**4, 0.1)
    assert found["backbone.stages.2.blocks.0.mlp.fc1.weight"] == (0.5**2, 0.1)
    assert found["backbone.stages.3.blocks.0.mlp.fc1.weight"] == pytest.approx((0.05, 0.1))
    heads = {rate for name, (rate, _) in found.items() if not name.startswith("backbone.")}
    assert heads == {1.0}
    assert found["backbone.norm3.weight"] == (1.0, 0.0)


def test_classifiers_as_in_mmpretrain(model, library):
    if library != "mmpretrain":
        with pytest.raises(NotImplementedError, match="get_layer_depth"):
            groups(model, optim_wrapper_cfg("mmpretrain.LearningRateDecayOptimWrapperConstructor"))
        return
    ours, theirs = (
        groups(model, optim_wrapper_cfg(name, norm_decay_mult=0.0, bias_decay_mult=0.0))
        for name in (
            "mmlocal.LayerDecayOptimWrapperConstructor",
            "mmpretrain.LearningRateDecayOptimWrapperConstructor",
        )
    )
    assert ours == theirs


def test_mistakes():
    optimizer = dict(optimizer=dict(type="SGD", lr=1.0))
    for rate in (None, 0, 1.5, "a"):
        with pytest.raises(ValueError, match="layer_decay_rate"):
            LayerDecayOptimWrapperConstructor(optimizer, dict(layer_decay_rate=rate))
    constructor = LayerDecayOptimWrapperConstructor(optimizer, dict(layer_decay_rate=0.5))
    with pytest.raises(TypeError, match=r"get_layer_depth.*Linear"):
        constructor(nn.Linear(1, 1))
