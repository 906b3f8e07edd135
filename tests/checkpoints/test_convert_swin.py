"""Swin Transformers of mmpretrain, mmdet and the official code become ``LocalSwin``."""

import re

import pytest
import torch
from convert_data import mmcv_checkpoint, relative_error
from torch import nn

from mmlocal.checkpoints import convert_checkpoint, convert_file
from mmlocal.models.backbones import LocalSwin
from mmlocal.registry import MODELS

TINY = dict(embed_dims=8, depths=[1, 2, 2], num_heads=[1, 2, 4])
LIMIT = 1e-5


def swin(arch: str | dict, out_indices: tuple[int, ...], **kwargs) -> nn.Module:
    """mmpretrain's model, with random numbers in every parameter."""
    models = pytest.importorskip("mmpretrain.models", reason="needs mmpretrain")
    torch.manual_seed(0)
    model = models.SwinTransformer(arch, out_indices=out_indices, **kwargs)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 or "table" in name or "pos_embed" in name:
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.eval()  # it returns None
    return model


def officials(state_dict: dict) -> dict:
    """The same backbone as the official code stores it, with its buffers."""
    official = {}
    for key, tensor in state_dict.items():
        if ".downsample." in key:  # from channel by channel to (0, 0), (1, 0), (0, 1), (1, 1)
            taps = [tensor[..., tap::4] for tap in (0, 2, 1, 3)]
            tensor = torch.cat(taps, dim=-1)
        for theirs, name in (
            ("patch_embed.projection", "patch_embed.proj"),
            ("ffn.layers.0.0", "mlp.fc1"),
            ("ffn.layers.1", "mlp.fc2"),
            ("attn.w_msa", "attn"),
            ("stages.", "layers."),
        ):
            key = key.replace(theirs, name)
        official[key] = tensor
    official["layers.0.blocks.1.attn_mask"] = torch.zeros(4, 49, 49)
    return official


def converted(content: dict) -> tuple[nn.Module, dict]:
    conversion = convert_checkpoint(content, MODELS.build, "swin")
    meta, state_dict = (conversion.checkpoint[k] for k in ("meta", "state_dict"))
    backbone = MODELS.build(meta["backbone_cfg"]).eval()
    prefix = "backbone."
    weights = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
    backbone.load_state_dict(weights, strict=True)
    return backbone, conversion


def check(backbone: nn.Module, model: nn.Module, *size: int) -> None:
    image = torch.randn(1, 3, *size)
    with torch.no_grad():
        errors = [
            relative_error(ours, theirs)
            for ours, theirs in zip(backbone(image), model(image), strict=True)
        ]
    print(f"worst error {max(errors):.1e} at {size}")
    assert max(errors) < LIMIT


def test_swin_t_as_classifier():
    """``LocalSwin('tiny')`` is mmpretrain's Swin-T, whose last windows shrink and do not shift."""
    model = swin("tiny", (3,))
    head = {"head.fc.weight": torch.randn(10, 768), "head.fc.bias": torch.randn(10)}
    weights = {f"backbone.{k}": v for k, v in model.state_dict().items()} | head
    backbone, conversion = converted(dict(state_dict=weights, meta={}))
    meta = conversion.checkpoint["meta"]
    assert meta["backbone_cfg"]["arch"] == "tiny"
    assert conversion.heads == ["head.fc.weight", "head.fc.bias"]
    assert torch.equal(conversion.checkpoint["state_dict"]["head.fc.bias"], head["head.fc.bias"])
    check(backbone, model, 224, 224)
    check(backbone, model, 230, 301)


def test_swin_t_for_dense_prediction():
    """All windows keep their size and shift; with ``fit_window`` the numbers would differ."""
    model = swin("tiny", (0, 1, 2, 3), pad_small_map=True)
    backbone, conversion = converted(model.state_dict())
    mixers = conversion.checkpoint["meta"]["backbone_cfg"]["mixers"]
    assert mixers == dict(type="WindowAttention", fit_window=False, qkv_bias=True, window_size=7)
    plain = LocalSwin("tiny").eval()  # the defaults are this model
    plain.load_state_dict(backbone.state_dict(), strict=True)
    check(plain, model, 75, 197)
    check(backbone, model, 224, 224)


@pytest.mark.parametrize("layout", ["mmpretrain", "official", "official classifier", "mmdet"])
def test_layouts(layout, tmp_path):
    dense = layout in ("mmpretrain", "mmdet")
    outs = (0, 1, 2) if dense else (2,)
    model = swin(TINY, outs, window_size=4, pad_small_map=dense, patch_size=2, img_size=16)
    weights = model.state_dict()
    content = {
        "mmpretrain": weights,
        "official": dict(model=officials(weights)),
        "official classifier": dict(
            model=re_norm(officials(weights))
            | {"head.weight": torch.ones(5, 32), "head.bias": torch.zeros(5)}
        ),
        "mmdet": mmcv_checkpoint(weights, {"neck.a": torch.ones(1)}, CLASSES=("a", "b")),
    }[layout]
    torch.save(content, tmp_path / "in.pth")
    conversion, path = convert_file(tmp_path / "in.pth", tmp_path, MODELS.build, "swin")
    content = torch.load(path, weights_only=True)
    heads = {
        "official classifier": ["head.fc.weight", "head.fc.bias"],
        "mmdet": ["neck.a"],
    }.get(layout, [])
    assert conversion.heads == heads
    assert ("dataset_meta" in content["meta"]) == (layout == "mmdet")
    assert any("relative_position_index" in name for name in conversion.dropped)
    backbone = MODELS.build(content["meta"]["backbone_cfg"]).eval()
    weights = {k: v for k, v in content["state_dict"].items() if k not in heads}
    backbone.load_state_dict({k.removeprefix("backbone."): v for k, v in weights.items()})
    check(backbone, model, 34, 46)
    check(backbone, model, 32, 32)


def re_norm(state_dict: dict) -> dict:
    """The official classifier has one norm, without a number."""
    return {re.sub(r"^norm2\.", "norm.", key): value for key, value in state_dict.items()}


def test_other_arguments():
    """They show in shapes: a position embedding, and windows that differ between stages."""
    stages = [dict(window_size=2), dict(window_size=4), dict(window_size=4)]
    model = swin(TINY, (2,), use_abs_pos_embed=True, img_size=32, patch_size=2, stage_cfgs=stages)
    backbone, conversion = converted(model.state_dict())
    cfg = conversion.checkpoint["meta"]["backbone_cfg"]
    assert cfg["pretrain_img_size"] == (32, 32)
    assert [mixer["window_size"] for mixer in cfg["mixers"]] == [2, 4, 4]
    check(backbone, model, 32, 32)


def test_stages_after_the_last_output_are_dropped():
    model = swin(TINY, (0, 1), window_size=4, pad_small_map=True)
    backbone, conversion = converted(model.state_dict())
    assert len(backbone.stages) == 2
    assert {"stages.1.downsample.reduction.weight", "stages.2.blocks.1.norm1.bias"} <= set(
        conversion.dropped
    )
    check(backbone, model, 34, 46)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("patch_embed.projection.weight"), "no patch_embed.proj.weight"),
        (lambda w: w.pop("norm2.weight"), "there is no norm of an output"),
        (lambda w: w.pop("stages.1.blocks.0.norm1.weight"), "does not fit .* 1 missing"),
        (lambda w: w.update(extra=torch.ones(1)), "does not fit .*1 unexpected"),
        (
            lambda w: w.update({"stages.0.blocks.0.attn.w_msa.relative_position_bias_table":
                                torch.ones(50, 1)}),
            "must hold a square map, got 50",
        ),
    ],
    ids=["patches", "norm", "missing", "unexpected", "table"],
)  # fmt: skip
def test_a_wrong_checkpoint(change, message):
    weights = swin(TINY, (2,), window_size=4).state_dict()
    change(weights)
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(weights, MODELS.build, "swin")
