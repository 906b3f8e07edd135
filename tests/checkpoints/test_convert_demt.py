"""Checkpoints of the official DeMT become ``DeMTHead`` and mmseg's Swin Transformer."""

import io
import re
import sys
import types

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("mmseg")

from models.multitask_data import golden_head

from mmlocal.checkpoints import convert_checkpoint, convert_file
from mmlocal.checkpoints.demt import convert_demt, residual_comes_first, tasks_of
from mmlocal.registry import MODELS

SWIN = dict(
    type="mmseg.SwinTransformer",
    embed_dims=8,
    depths=(1, 2, 1, 1),
    num_heads=(1, 2, 4, 8),
    window_size=3,
    mlp_ratio=2,
    drop_path_rate=0.1,
)
TASKS = dict(semseg=dict(num_classes=5), sal={}, edge={}, depth={})
# Ours -> official, in this order.
NAMES = [
    (r"encoder\.proj", "linear1.0"),
    (r"encoder\.norm", "linear1.1"),
    (r"interaction\.attention", "task_fusion"),
    (r"interaction\.smlp", "smlp"),
    (r"bottlenecks", "bottleneck"),
    (r"conv_outs", "final_logits"),
    (r"queries\.(\w+)\.attention", r"task_querys.\1"),
    (r"queries\.(\w+)\.smlp", r"smlp2.\1"),
    (r"mixers", "defor_mixers"),
]
LAYERS = {
    False: [
        (r"\.conv\.(?=\w+$)", ".0."),
        (r"\.norm1\.", ".2."),
        (r"\.deform\.0\.", ".3.fn.0."),
        (r"\.deform\.positions\.", ".3.fn.0.get_offset.p_conv."),
        (r"\.deform\.offsets\.", ".3.fn.0.get_offset.opt."),
        (r"\.norm2\.", ".3.fn.2."),
    ],
    True: [
        (r"\.conv\.(?=\w+$)", ".1."),
        (r"\.norm1\.", ".3."),
        (r"\.deform\.1\.", ".0.fn.0."),
        (r"\.deform\.positions\.", ".0.fn.0.get_offset.p_conv."),
        (r"\.deform\.offsets\.", ".0.fn.0.get_offset.opt."),
        (r"\.norm2\.", ".0.fn.2."),
    ],
}


def make(depth: int = 1, residual_first: bool = False) -> nn.Module:
    """A whole model with random numbers in every tensor."""
    torch.manual_seed(0)
    head = dict(
        type="mmlocal.DeMTHead",
        in_channels=[8, 16, 32, 64],
        tasks=TASKS,
        channels=16,
        mixer=dict(depth=depth, residual_first=residual_first),
        legacy=True,
    )
    model = MODELS.build(dict(type="mmlocal.MultiTaskSegmentor", backbone=SWIN, decode_head=head))
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            value.add_(0.1 * torch.rand_like(value))
        elif name.endswith("num_batches_tracked"):
            value.fill_(7)
    return model.eval()


def official(model: nn.Module, residual_first: bool = False) -> dict[str, Tensor]:
    """Its state dict as the official code has it."""
    found = {}
    for name, value in model.state_dict().items():
        part, _, key = name.partition(".")
        if part == "backbone":
            found[name] = value
            continue
        for ours, theirs in [*NAMES, *(LAYERS[residual_first] if "mixers" in key else [])]:
            key = re.sub(ours, theirs, key)
        for index, task in enumerate(TASKS):
            key = re.sub(rf"^(defor_mixers|task_querys|smlp2)\.{task}\.", rf"\1.{index}.", key)
        found[f"head.{key}"] = value
        if key.endswith("get_offset.p_conv.weight"):
            block = key.removesuffix("get_offset.p_conv.weight")
            found[f"head.{block}offset"] = torch.zeros(1, 32, 1, 1)
    return found


def lightning(state_dict: dict[str, Tensor], path) -> None:
    """Write a file as PyTorch Lightning 1.1 does, which names a callback by its class."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    kind = type("ModelCheckpoint", (), {"__module__": name})
    modules = {
        "pytorch_lightning": types.ModuleType("pytorch_lightning"),
        "pytorch_lightning.callbacks": types.ModuleType("pytorch_lightning.callbacks"),
        name: types.ModuleType(name),
    }
    modules[name].ModelCheckpoint = kind
    content = {
        "epoch": 403,
        "global_step": 40000,
        "pytorch-lightning_version": "1.1.8",
        "callbacks": {kind: dict(best_model_score=torch.tensor(1.0), best_model_path="")},
        "optimizer_states": [dict(state={}, param_groups=[])],
        "lr_schedulers": [dict(last_epoch=40000)],
        "state_dict": state_dict,
    }
    sys.modules.update(modules)
    try:
        torch.save(content, path)
    finally:
        for module in modules:
            del sys.modules[module]


def test_golden_names():
    """Nothing is lost, and the order of the tasks is that of the file."""
    meta, weights, *_ = golden_head()
    assert tasks_of(weights) == meta["tasks"]
    assert not residual_comes_first(weights)
    converted = convert_demt(weights)
    assert sum(x.numel() for x in converted.values()) == sum(x.numel() for x in weights.values())
    key = "mixers.normals.blocks.0.deform.offsets.bias"
    theirs = "defor_mixers.2.blocks.0.3.fn.0.get_offset.opt.bias"
    assert torch.equal(converted[key], weights[theirs])


@pytest.mark.parametrize("residual_first", [False, True])
@pytest.mark.parametrize("depth", [1, 2])
def test_whole_model(tmp_path, depth, residual_first):
    model = make(depth, residual_first)
    weights = official(model, residual_first)
    lightning(weights, tmp_path / "demt_swin_t.ckpt")
    conversion, path = convert_file(
        tmp_path / "demt_swin_t.ckpt", tmp_path, MODELS.build, "demt", dry_run=False
    )
    report = str(conversion)
    print(report)
    assert "mmseg.SwinTransformer(" in report
    assert "mmlocal.DeMTHead(in_channels=[8, 16, 32, 64], tasks=" in report
    assert len(conversion.dropped) == depth * len(TASKS)
    assert all(name.endswith(".offset") for name in conversion.dropped)
    assert "callbacks" in conversion.left
    assert not conversion.report.missing
    assert not conversion.report.unexpected
    content = torch.load(path, weights_only=True)
    meta = content["meta"]
    assert meta["backbone_cfg"] == SWIN | dict(
        in_channels=3, patch_size=4, strides=(4, 2, 2, 2), out_indices=(0, 1, 2, 3)
    )
    assert meta["head_cfg"]["mixer"] == dict(depth=depth, residual_first=residual_first)
    assert list(meta["head_cfg"]["tasks"]) == list(TASKS)
    again = MODELS.build(
        dict(
            type="mmlocal.MultiTaskSegmentor",
            backbone=meta["backbone_cfg"],
            decode_head=meta["head_cfg"],
        )
    ).eval()
    again.load_state_dict(content["state_dict"])
    images = torch.randn(2, 3, 34, 45)
    with torch.no_grad():
        torch.testing.assert_close(again(images), model(images), rtol=0, atol=0)


def test_losses_and_metrics_are_dropped():
    weights = official(make()) | {"criterion.loss_dict.x": torch.ones(2)}
    conversion = convert_checkpoint(weights, MODELS.build, "demt")
    assert "criterion.loss_dict.x" in conversion.dropped


def change(remove: str = "", **add: Tensor) -> dict[str, Tensor]:
    weights = {k: v for k, v in official(make()).items() if not (remove and re.search(remove, k))}
    return weights | {name.replace("__", "."): value for name, value in add.items()}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (dict(remove=r"smlp2\.1\."), "missing .*queries.sal.smlp"),
        (dict(remove=r"defor_mixers\.3"), "missing .*mixers.depth"),
        (dict(remove=r"stages\.1\.blocks\.1\.ffn"), "missing .*stages.1.blocks.1.ffn"),
        (dict(remove="patch_embed"), "its backbone is no Swin Transformer"),
        (dict(remove="^head"), "there is no linear1.0.weight"),
        (dict(head__linear1__0__weight=torch.ones(16, 9)), "takes 9 channels, but the maps"),
        (dict(head__smlp2__4__0__weight=torch.ones(1)), "smlp2.4.0.weight has no place"),
        (dict(head__atrc__weight=torch.ones(1)), "atrc.weight has no place in its head"),
        (dict(neck__weight=torch.ones(1)), "neck.weight has no place"),
        (
            dict(head__defor_mixers__0__blocks__0__9__weight=torch.ones(1)),
            "has no place in a deformable mixer",
        ),
        (dict(head__task_fusion__in_proj_bias=torch.ones(3)), "mismatched .*in_proj_bias"),
    ],
)
def test_wrong_checkpoints(weights, message):
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(change(**weights), MODELS.build, "demt")


def test_unsafe_file(tmp_path):
    """An object of another class is refused, and its code does not run."""
    torch.save(dict(state_dict={}, hyper_parameters=io.StringIO("x")), tmp_path / "bad.ckpt")
    with pytest.raises(ValueError, match="cannot be read safely"):
        convert_file(tmp_path / "bad.ckpt", tmp_path, MODELS.build, "demt")
