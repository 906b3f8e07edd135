"""Official checkpoints of DWNet become models of ours with the official outputs."""

import json

import numpy as np
import pytest
import torch
from convert_data import DATA, mmcv_checkpoint, relative_error
from mmengine.registry import DefaultScope
from torch import nn

from mmlocal.checkpoints import convert_checkpoint, convert_file
from mmlocal.models.backbones import DWNet
from mmlocal.registry import MODELS

SPATIAL = {"static": "static", "dynamic": "dynamic", "idynamic": "inhomogeneous"}
CLASSIFIER = dict(pad_size_divisor=1, out_norm="LN", out_indices=(3,))


def golden(name: str) -> tuple[dict, dict, dict]:
    """Official state dict, settings and all arrays of a golden network."""
    with np.load(DATA / "dwnet" / f"dwnet_{name}.npz") as file:
        arrays = {k: torch.from_numpy(v) for k, v in file.items() if k != "meta"}
        meta = json.loads(str(file["meta"]))
    official = {k.removeprefix("param."): v for k, v in arrays.items() if k.startswith("param.")}
    for key in [key for key in official if key.endswith("running_var")]:
        official[key.replace("running_var", "num_batches_tracked")] = torch.tensor(7)
    return official, meta, arrays


def published(name: str) -> dict:
    """Official names and shapes of a published model, all zeros."""
    entries = json.loads((DATA / "dwnet_statedicts" / f"dwnet_{name}.json").read_text())
    return {
        key: torch.zeros((), dtype=getattr(torch, entry["dtype"])).expand(entry["shape"])
        for key, entry in entries.items()
    }


def trainer_checkpoint(state_dict: dict) -> dict:
    """A checkpoint as the official trainer saves it. ``amp`` is apex's entry."""
    return dict(
        model=state_dict,
        optimizer=dict(state={0: dict(step=7)}, param_groups=[dict(lr=0.1)]),
        lr_scheduler=dict(t_initial=375300),
        max_accuracy=81.2,
        epoch=299,
        config="AMP_OPT_LEVEL: O1",
        amp=dict(loss_scaler0=dict(loss_scale=65536.0, unskipped=12)),
    )


def converted(checkpoint: dict, folder) -> tuple[dict, dict]:
    """Convert an official file; returns ``meta`` and ``state_dict`` of the new file."""
    torch.save(checkpoint, folder / "official.pth")
    _, path = convert_file(folder / "official.pth", folder, MODELS.build, "dwnet")
    content = torch.load(path, weights_only=True)
    return content["meta"], content["state_dict"]


def part(state_dict: dict, name: str) -> dict:
    return {k[len(name) + 1 :]: v for k, v in state_dict.items() if k.startswith(f"{name}.")}


@pytest.mark.parametrize("layout", ["trainer", "bare", "module"])
@pytest.mark.parametrize("kind", SPATIAL)
def test_classification(kind, layout, tmp_path):
    official, meta, arrays = golden(f"cls_{kind}")
    checkpoint = {
        "trainer": trainer_checkpoint(official),
        "bare": official,
        "module": trainer_checkpoint({f"module.{k}": v for k, v in official.items()}),
    }[layout]
    ours, state_dict = converted(checkpoint, tmp_path)
    cfg = ours["backbone_cfg"]
    assert cfg == dict(
        type="mmlocal.DWNet",
        arch=dict(embed_dims=8, depths=tuple(meta["depths"])),
        spatial=SPATIAL[kind],
        in_channels=3,
        patch_size=4,
        kernel_size=7,
        mlp_ratio=4.0,
        patch_norm=True,
        **(dict(num_heads=4) if kind == "idynamic" else {}),
        **CLASSIFIER,
    )
    pretrain = pytest.importorskip("mmpretrain.models", reason="needs mmpretrain")
    head = dict(num_classes=meta["num_classes"], in_channels=64)
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        model = pretrain.ImageClassifier(
            backbone=cfg,
            neck=dict(type="mmpretrain.GlobalAveragePooling"),
            head=dict(type="mmpretrain.LinearClsHead", **head),
        ).eval()
    model.load_state_dict(state_dict, strict=True)
    with torch.no_grad():
        logits = model(arrays["input"], mode="tensor")
    assert relative_error(logits, arrays["eval.output"]) <= 1e-5


@pytest.mark.parametrize("layout", ["bare", "mmcv", "trainer"])
@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_dense(kind, layout, tmp_path):
    official, meta, arrays = golden(f"backbone_{kind}")
    heads = {"neck.lateral_convs.0.conv.weight": torch.ones(2, 8, 1, 1)}
    checkpoint = {
        "bare": official,
        "mmcv": mmcv_checkpoint(official, heads, CLASSES=("circle", "square")),
        "trainer": trainer_checkpoint(official),
    }[layout]
    ours, state_dict = converted(checkpoint, tmp_path)
    assert ours["backbone_cfg"] == dict(
        type="mmlocal.DWNet",
        arch=dict(embed_dims=8, depths=tuple(meta["depths"])),
        spatial=kind,
        in_channels=3,
        patch_size=4,
        kernel_size=7,
        mlp_ratio=4.0,
        patch_norm=True,
        out_indices=(0, 1, 2, 3),
    )
    assert ours["assumed"]["pad_size_divisor"] == 7
    backbone = MODELS.build(ours["backbone_cfg"]).eval()
    backbone.load_state_dict(part(state_dict, "backbone"), strict=True)
    with torch.no_grad():
        outs = backbone(arrays["input"])
    for i, out in enumerate(outs):
        assert relative_error(out, arrays[f"eval.output{i}"]) <= 1e-5
    if layout == "mmcv":
        assert torch.equal(state_dict["neck.lateral_convs.0.conv.weight"], *heads.values())
        assert ours["dataset_meta"]["classes"] == ("circle", "square")


@pytest.mark.parametrize(
    ("name", "arch", "spatial"),
    [
        ("t_static_cls", "tiny", "static"),
        ("t_dynamic_cls", "tiny", "dynamic"),
        ("t_idynamic_cls", "tiny", "inhomogeneous"),
        ("b_static_cls", "base", "static"),
        ("t_static_det_backbone", "tiny", "static"),
        ("t_dynamic_det_backbone", "tiny", "dynamic"),
    ],
)
def test_published_shapes(name, arch, spatial):
    """Our models of these names expect the official names and shapes."""
    models = []

    def build(cfg: dict) -> nn.Module:
        models.append(MODELS.build(cfg))
        return models[0]

    official = published(name)
    classification = name.endswith("cls")
    checkpoint = trainer_checkpoint(official) if classification else official
    conversion = convert_checkpoint(checkpoint, build, "dwnet")
    state_dict = part(conversion.checkpoint["state_dict"], "backbone")
    models[0].load_state_dict(state_dict, strict=True, assign=True)
    assert isinstance(models[0], DWNet)
    cfg = conversion.checkpoint["meta"]["backbone_cfg"]
    assert (cfg["arch"], cfg["spatial"], cfg.get("num_heads", 32)) == (arch, spatial, 32)
    assert conversion.heads == (["head.fc.weight", "head.fc.bias"] if classification else [])
    assert conversion.dropped == []
    assert len(conversion.report.loaded) + len(conversion.heads) == len(official)
    rates = dict(drop_rate=0.0, drop_path_rate=0.2)
    if not classification:
        rates["pad_size_divisor"] = 7
    if spatial == "inhomogeneous":
        rates["kernel_size"] = 7
    assert conversion.assumed == rates


def test_report():
    official, _, _ = golden("cls_dynamic")
    text = str(convert_checkpoint(trainer_checkpoint(official), MODELS.build, "dwnet"))
    assert "mmlocal.DWNet(arch={'embed_dims': 8," in text
    assert "0 resized; 0 mismatched; 0 missing; 0 unexpected" in text
    assert "heads: 2 kept (head)" in text
    left = "optimizer, lr_scheduler, max_accuracy, epoch, config, amp"
    assert f"not carried over: {left}" in text


def test_position_embedding():
    """Classifiers store it as tokens, dense backbones as a map."""
    official, _, _ = golden("cls_static")
    tokens = torch.randn(1, 16 * 16, 8)
    conversion = convert_checkpoint(
        official | dict(absolute_pos_embed=tokens), MODELS.build, "dwnet"
    )
    cfg = conversion.checkpoint["meta"]["backbone_cfg"]
    assert (cfg["use_abs_pos_embed"], cfg["pretrain_img_size"]) == (True, 64)
    stored = conversion.checkpoint["state_dict"]["backbone.absolute_pos_embed"]
    assert torch.equal(stored[0, :, 2, 3], tokens[0, 2 * 16 + 3])


def test_stages_that_are_not_returned_are_dropped():
    official, _, _ = golden("backbone_static")
    kept = {k: v for k, v in official.items() if not k.startswith(("norm2.", "norm3."))}
    conversion = convert_checkpoint(kept, MODELS.build, "dwnet")
    assert conversion.checkpoint["meta"]["backbone_cfg"]["out_indices"] == (0, 1)
    later = [k for k in kept if k.startswith(("layers.2.", "layers.3.", "layers.1.down"))]
    assert set(conversion.dropped) == set(later)


def broken(kind: str, **changes: object) -> dict:
    """A golden classifier with some tensors replaced, added or (``None``) removed."""
    official, _, _ = golden(f"cls_{kind}")
    named = {key.replace("__", "."): value for key, value in changes.items()}
    return {k: v for k, v in (official | named).items() if v is not None}


def mixed() -> dict:
    """A static network with one dynamic block."""
    official, _, _ = golden("cls_static")
    other, _, _ = golden("cls_dynamic")
    operator = "layers.2.blocks.1.attn2conv.conv."
    official = {k: v for k, v in official.items() if not k.startswith(operator)}
    return official | {k: v for k, v in other.items() if k.startswith(operator)}


CONV = "layers__0__blocks__0__attn2conv__conv__"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "it holds no weights"),
        (dict(model={}), "model holds no weights"),
        ({"conv1.weight": torch.zeros(1)}, "official DWNet: there is no patch_embed.proj.weight"),
        (
            mixed(),
            "of one variant .* static at layers.0.blocks.0.attn2conv.conv, dynamic at",
        ),
        (
            broken("static", **{CONV + "weight": None}),
            "attn2conv.conv must be one of static, dynamic, inhomogeneous, got none of them",
        ),
        (
            broken("static", **{CONV + "conv1__weight": torch.zeros(2, 8, 1, 1)}),
            "got static and dynamic",
        ),
        (
            broken("dynamic", **{CONV + "conv2__weight": torch.zeros(8 * 48, 2, 1, 1)}),
            "conv2.weight must hold a square map, got 48 positions",
        ),
        (
            broken("idynamic", **{CONV + "conv2__0__weight": torch.zeros(4 * 25, 2, 1, 1)}),
            "inhomogeneous kernels must have 7x7 taps, got 100 numbers per position",
        ),
        (broken("static", norm__weight=None), "neither norm .* nor norm0"),
        (broken("static", norm__bias=None), "1 missing .norm3.bias"),
        (broken("static", extra=torch.zeros(1)), "1 unexpected .extra"),
        (
            {f"backbone.{k}": v for k, v in broken("static").items()} | {"x.y": torch.ones(1)},
            "1 tensors belong to no known head: x.y",
        ),
    ],
    ids=range(12),
)
def test_other_checkpoints(content, message, tmp_path):
    source = tmp_path / "official.pth"
    torch.save(content, source)
    with pytest.raises(ValueError, match=message) as caught:
        convert_file(source, tmp_path / "out", MODELS.build, "dwnet")
    assert str(caught.value).startswith(f"checkpoint {source} cannot be converted: ")
    assert "\n" not in str(caught.value)
