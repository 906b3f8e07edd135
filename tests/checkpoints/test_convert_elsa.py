"""Official checkpoints of ELSA-Swin become models of ours with the official outputs."""

import hashlib
from collections import OrderedDict

import pytest
import torch
from convert_data import (
    CLASSIFIERS,
    DENSE,
    golden,
    mmcv_checkpoint,
    published,
    relative_error,
    timm_checkpoint,
)
from mmengine.registry import DefaultScope
from torch import nn

from mmlocal.checkpoints import convert_checkpoint, convert_file
from mmlocal.checkpoints.elsa import convert_elsa, elsa_backbone_cfg
from mmlocal.models.backbones import ELSASwin
from mmlocal.registry import MODELS
from mmlocal.version import __version__

LIMIT = 1e-4


def converted(checkpoint: dict, folder, **options) -> tuple[dict, dict]:
    """Convert an official file; returns ``meta`` and ``state_dict`` of the new file."""
    folder.mkdir(exist_ok=True)
    torch.save(checkpoint, folder / "official.pth.tar")
    _, path = convert_file(folder / "official.pth.tar", folder, MODELS.build, "elsa", **options)
    content = torch.load(path, weights_only=True)
    assert content.keys() == {"meta", "state_dict"}
    assert all(type(tensor) is torch.Tensor for tensor in content["state_dict"].values())
    return content["meta"], content["state_dict"]


def part(state_dict: dict, name: str) -> dict:
    return {k[len(name) + 1 :]: v for k, v in state_dict.items() if k.startswith(f"{name}.")}


def layouts(official: dict) -> dict[str, tuple[dict, dict]]:
    """Checkpoints with the weights in one place and noise in the others, and their options."""
    noise = {key: torch.full_like(value, 3) for key, value in official.items()}
    parameters = {
        key: nn.Parameter(value) if value.is_floating_point() else value
        for key, value in official.items()
    }
    return {
        "bare": (official, {}),
        "parameters": (OrderedDict(parameters), {}),
        "timm": (timm_checkpoint(official), {}),
        "module": (timm_checkpoint(official, prefix="module."), {}),
        "not_ema": (timm_checkpoint(official, noise), {}),
        "ema": (timm_checkpoint(noise, official), dict(ema=True)),
        "ema_module": (timm_checkpoint(noise, official, "module."), dict(ema=True)),
    }


LAYOUTS = [(name, "timm") for name in CLASSIFIERS] + [
    (CLASSIFIERS[0], layout)
    for layout in ("bare", "parameters", "module", "not_ema", "ema", "ema_module")
]


@pytest.mark.parametrize(("name", "layout"), LAYOUTS)
def test_classification(name, layout, tmp_path):
    official, init, arrays = golden(name)
    checkpoint, options = layouts(official)[layout]
    meta, state_dict = converted(checkpoint, tmp_path, **options)
    pretrain = pytest.importorskip("mmpretrain.models", reason="needs mmpretrain")
    head = dict(num_classes=init["num_classes"], in_channels=official["norm.weight"].numel())
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        model = pretrain.ImageClassifier(
            backbone=meta["backbone_cfg"],
            neck=dict(type="mmpretrain.GlobalAveragePooling"),
            head=dict(type="mmpretrain.LinearClsHead", **head),
        )
    model.load_state_dict(state_dict, strict=True)
    model.eval()
    with torch.no_grad():
        logits = model(arrays["input"], mode="tensor")
    error = relative_error(logits, arrays["output"])
    print(f"{name} from {layout}: {error:.1e}")
    assert error <= LIMIT
    assert meta["backbone_cfg"]["fit_window"] is True


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("layout", ["bare", "module", "mmcv"])
def test_dense(name, layout, tmp_path):
    official, init, arrays = golden(name)
    checkpoint = {
        "bare": official,
        "module": {f"module.{key}": value for key, value in official.items()},
        "mmcv": mmcv_checkpoint(official, {}),
    }[layout]
    meta, state_dict = converted(checkpoint, tmp_path)
    # A scale leaves no trace in shapes.
    cfg = meta["backbone_cfg"] | dict(qk_scale=init.get("qk_scale"))
    backbone = MODELS.build(cfg).eval()
    backbone.load_state_dict(part(state_dict, "backbone"), strict=True)
    with torch.no_grad():
        outs = dict(zip(backbone.out_indices, backbone(arrays["input"]), strict=True))
    wanted = {int(k[7:]): v for k, v in arrays.items() if k.startswith("output.")}
    assert outs.keys() == wanted.keys()
    errors = {i: relative_error(outs[i], out) for i, out in wanted.items()}
    print(f"{name} from {layout}: {errors}")
    assert max(errors.values()) <= LIMIT
    assert cfg["fit_window"] is False


@pytest.mark.parametrize("name", CLASSIFIERS + DENSE)
def test_architecture(name):
    official, init, _ = golden(name)
    cfg = elsa_backbone_cfg(official)
    arch = dict(
        embed_dims=init["embed_dim"],
        depths=tuple(init["depths"]),
        num_heads=tuple(init["num_heads"]),
        group_width=init["group_width"],
    )
    last = len(init["depths"]) - 1
    window = init["window_size"]
    if "img_size" in init:  # the official constructor clips the window to the last map
        window = min(window, init["img_size"] // init["patch_size"] // 2**last)
        out_indices = (last,)
    else:
        out_indices = tuple(init.get("out_indices", range(last + 1)))
    expected = dict(
        type="mmlocal.ELSASwin",
        arch=arch,
        in_channels=3,
        patch_size=init["patch_size"],
        kernel_size=init["elsa_kernel"],
        window_size=window,
        fit_window="img_size" in init,
        mlp_ratio=init["mlp_ratio"],
        qkv_bias=init.get("qkv_bias", True),
        lam=init.get("lam", 0),
        gamma=init.get("gamma", 1),
        patch_norm=init.get("patch_norm", True),
        out_indices=out_indices,
    )
    if init.get("ape"):
        side = init.get("img_size") or init["pretrain_img_size"]
        expected |= dict(use_abs_pos_embed=True, pretrain_img_size=side)
    assert cfg == expected


@pytest.mark.parametrize(
    ("name", "arch"),
    [
        ("cls_T", "tiny"),
        ("cls_S", "small"),
        ("cls_B", "base"),
        ("det_T", "tiny"),
        ("det_S", "small"),
    ],
)
def test_published_shapes(name, arch):
    """Our models of these names expect the official names and shapes."""
    models = []

    def build(cfg: dict) -> nn.Module:
        models.append(MODELS.build(cfg))
        return models[0]

    official = published(name)
    conversion = convert_checkpoint(timm_checkpoint(official), build, "elsa")
    checkpoint = conversion.checkpoint
    # The model has no memory to copy to.
    state_dict = part(checkpoint["state_dict"], "backbone")
    models[0].load_state_dict(state_dict, strict=True, assign=True)
    classification = name.startswith("cls")
    assert checkpoint["meta"]["backbone_cfg"] == dict(
        type="mmlocal.ELSASwin",
        arch=arch,
        in_channels=3,
        patch_size=4,
        kernel_size=7,
        window_size=7,
        fit_window=classification,
        mlp_ratio=4.0,
        qkv_bias=True,
        lam=0.0,
        gamma=1.0,
        patch_norm=True,
        out_indices=(3,) if classification else (0, 1, 2, 3),
    )
    assert conversion.heads == (["head.fc.weight", "head.fc.bias"] if classification else [])
    assert [key.rpartition(".")[2] for key in conversion.dropped] == ["relative_id"] * 2
    # Every tensor is accounted for: converted one to one, or dropped.
    kept = len(conversion.report.loaded) + len(conversion.heads)
    assert kept + len(conversion.dropped) == len(official)


def test_recovered_names_build():
    state_dict = convert_checkpoint(published("det_T"), MODELS.build, "elsa").checkpoint
    cfg = state_dict["meta"]["backbone_cfg"]
    backbone = MODELS.build(cfg)
    assert isinstance(backbone, ELSASwin)
    assert backbone.depths == ELSASwin.arch_zoo[cfg["arch"]]["depths"]
    backbone.load_state_dict(part(state_dict["state_dict"], "backbone"), strict=True)


def fits(official: dict, **options) -> dict:
    """Convert, check that the result fits, and return the recovered config."""
    return convert_checkpoint(official, MODELS.build, "elsa", **options).checkpoint["meta"][
        "backbone_cfg"
    ]


def test_ghost_heads():
    official, _, _ = golden("det_00_75x101")
    both, _, _ = golden("det_01_66x50_ape")

    def factors(state_dict: dict, **options) -> tuple[float, float]:
        cfg = fits(state_dict, **options)
        return cfg["lam"], cfg["gamma"]

    assert factors(official) == (0, 1)
    assert factors(official, gamma=0.5) == (0, 0.5)
    assert factors(official, lam=2.0) == factors(official, lam=2.0, gamma=0.0) == (2, 0)
    assert factors(official, gamma=0.0) == (1, 0)
    assert factors(both) == (1, 1)
    assert factors(both, lam=0.5) == (0.5, 1)
    none = {key: value for key, value in official.items() if "ghost" not in key}
    assert factors(none) == (0, 0)
    single = convert_checkpoint(official, MODELS.build, "elsa", lam=2.0).checkpoint["state_dict"]
    name = "backbone.stages.0.blocks.0.attn.ghost_mul"
    assert torch.equal(single[name], official["layers.0.blocks.0.attn.ghost_head"][0])


def test_one_stage_is_window_attention_only():
    official, _, _ = golden("det_00_75x101")
    one = {k.replace("layers.3.", "layers.0."): v for k, v in official.items() if "ers.3." in k}
    one |= {f"norm0.{k}": official[f"norm3.{k}"] for k in ("weight", "bias")}
    one |= {f"patch_embed.norm.{k}": official[f"norm3.{k}"] for k in ("weight", "bias")}
    one |= {
        "patch_embed.proj.weight": torch.zeros(64, 5, 2, 2),
        "patch_embed.proj.bias": torch.zeros(64),
    }
    cfg = fits(one)
    assert cfg["arch"] == dict(embed_dims=64, depths=(2,), num_heads=(4,))
    assert (cfg["in_channels"], cfg["patch_size"]) == (5, 2)


def test_stages_that_are_not_returned_are_dropped():
    official, _, _ = golden("det_01_66x50_ape")
    for key in ("norm2.weight", "norm2.bias"):
        del official[key]
    conversion = convert_checkpoint(official, MODELS.build, "elsa")
    assert conversion.checkpoint["meta"]["backbone_cfg"]["out_indices"] == (0,)
    later = [k for k in official if k.startswith(("layers.1.", "layers.2.", "layers.0.down"))]
    assert set(conversion.dropped) == set(later)


@pytest.mark.parametrize(
    ("ratio", "recovered"), [(4, 4), (2.7, 2.7), (0.5, 0.5), (4 / 3, 1.33), (3.14159, 3.15)]
)
def test_mlp_ratio(ratio, recovered):
    """``mlp_ratio`` is the shortest decimal with the same hidden channels after rounding down."""
    official, _, _ = golden("det_00_75x101")
    for i, dims in enumerate((8, 16, 32, 64)):
        for j in range(2 if i == 3 else 1):
            hidden = int(dims * ratio)
            name = f"layers.{i}.blocks.{j}.mlp."
            official[name + "fc1.weight"] = torch.zeros(hidden, dims)
            official[name + "fc1.bias"] = torch.zeros(hidden)
            official[name + "fc2.weight"] = torch.zeros(dims, hidden)
    assert fits(official)["mlp_ratio"] == recovered


RATES = dict(qk_scale=None, drop_rate=0.0, attn_drop_rate=0.0, drop_path_rate=0.1)


@pytest.mark.parametrize(
    ("name", "options", "factors"),
    [
        ("det_00_75x101", {}, dict(lam=0.0, gamma=1.0)),
        ("det_00_75x101", dict(gamma=2.0), {}),
        ("det_00_75x101", dict(lam=0.0), dict(gamma=1.0)),
        ("det_00_75x101", dict(lam=3.0), {}),
        ("det_00_75x101", dict(gamma=0.0), dict(lam=1.0)),
        ("det_01_66x50_ape", {}, dict(lam=1.0, gamma=1.0)),
        ("det_01_66x50_ape", dict(lam=2.0), dict(gamma=1.0)),
    ],
    ids=str,
)
def test_untold_arguments_are_named(name, options, factors, tmp_path):
    """The report and the file state the assumed arguments and their values."""
    official, _, _ = golden(name)
    conversion = convert_checkpoint(official, MODELS.build, "elsa", **options)
    assert conversion.assumed == RATES | factors
    values = ", ".join(f"{key}={value}" for key, value in (RATES | factors).items())
    assert f"assumed, because no weight shows it: {values}" in str(conversion).splitlines()
    meta, _ = converted(official, tmp_path, **options)
    assert meta["assumed"] == conversion.assumed
    backbone = MODELS.build(meta["backbone_cfg"])  # has the values that were named
    last = backbone.stages[-1].blocks[-1]
    assert last.attn.w_msa.qk_scale is meta["assumed"]["qk_scale"]
    assert last.drop_path.drop_prob == meta["assumed"]["drop_path_rate"]


def test_meta(tmp_path):
    official, _, _ = golden("det_00_75x101")
    names, colours = ("circle", "square"), [[1, 2, 3], [4, 5, 6]]
    checkpoint = mmcv_checkpoint(official, {}, CLASSES=names, PALETTE=colours)
    meta, _ = converted(checkpoint, tmp_path)
    sha256 = hashlib.sha256((tmp_path / "official.pth.tar").read_bytes()).hexdigest()
    source = dict(system="elsa", file="official.pth.tar", sha256=sha256, ema=False)
    assert meta["source"] == source
    assert meta["mmlocal_version"] == __version__
    assert meta["dataset_meta"] == dict(classes=names, palette=colours)
    meta, _ = converted(timm_checkpoint(official, official), tmp_path / "plain", ema=True)
    assert meta["source"]["ema"] is True
    assert "dataset_meta" not in meta


def test_dtype_is_kept_and_memory_is_not_shared():
    official, _, _ = golden("cls_00_img64_win_clipped")
    half = {k: v.half() if v.is_floating_point() else v for k, v in official.items()}
    state_dict = convert_checkpoint(half, MODELS.build, "elsa").checkpoint["state_dict"]
    assert {tensor.dtype for tensor in state_dict.values()} == {torch.float16}
    state_dict["head.fc.weight"].zero_()
    assert half["head.weight"].any()


def test_report():
    official, _, _ = golden("cls_01_img56_shifted")
    text = str(convert_checkpoint(timm_checkpoint(official, official), MODELS.build, "elsa"))
    assert "mmlocal.ELSASwin(arch={'embed_dims': 12," in text
    assert "backbone: 53 loaded; 0 resized; 0 mismatched; 0 missing; 0 unexpected" in text
    assert "heads: 2 kept (head)" in text
    assert "    layers.1.blocks.1.attn_mask\n" in text
    left = "epoch, arch, optimizer, version, args, amp_scaler, metric, state_dict_ema"
    assert f"not carried over: {left}" in text


def broken(**changes: object) -> dict:
    """A golden classification model with some tensors replaced, added or (``None``) removed."""
    official, _, _ = golden("cls_02_img32_ape")
    named = {key.replace("__", "."): value for key, value in changes.items()}
    return {k: v for k, v in (official | named).items() if v is not None}


ELSA0, RB = "layers__0__blocks__0__attn", "layers__2__blocks__0__attn__rb"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "it holds no weights"),
        (dict(state_dict={}), "state_dict holds no weights"),
        (dict(state_dict=[1]), "state_dict holds no weights"),
        (broken(extra="text"), "1 of its weights are not plain tensors: extra"),
        (broken(extra=torch.zeros(2, device="meta")), "not plain tensors: extra"),
        (broken(extra=torch.eye(2).to_sparse()), "not plain tensors: extra"),
        (broken() | {3: torch.zeros(1)}, "not plain tensors: 3"),
        (
            {"conv1.weight": torch.zeros(64, 3, 7, 7)},
            "official ELSA-Swin: .* no patch_embed.proj.weight",
        ),
        (broken(patch_embed__proj__weight=torch.zeros(8, 3)), "must have 4 dimensions, got .8, 3."),
        (broken(patch_embed__proj__weight=torch.zeros(0, 3, 2, 2)), "must have 4 dimensions"),
        ({"patch_embed.proj.weight": torch.zeros(8, 3, 2, 2)}, "there is no layers.0.blocks.0"),
        (
            {k: v for k, v in broken().items() if ".1.blocks." not in k},
            "not a whole ELSA-Swin: there is no layers.1.blocks.0",
        ),
        (
            {k: v for k, v in broken().items() if ".2.blocks.0." not in k},
            "not a whole ELSA-Swin: there is no layers.2.blocks.0",
        ),
        (broken(**{RB: None}), "there is no layers.2.blocks.0.attn.rb"),
        (broken(**{RB: torch.zeros(2, 10)}), "attn.rb must hold a square map, got 10 positions"),
        (broken(**{RB: torch.zeros(2, 16)}), "does not fit"),
        (broken(norm__weight=None), "neither norm .* nor norm0"),
        (broken(norm__bias=None), "1 missing .norm2.bias"),
        (broken(layers__1__blocks__0__norm1__bias=None), "1 missing .stages.1.blocks.0.norm1.bias"),
        (
            broken(**{f"{ELSA0}__attn__0__weight": None}),
            "there is no layers.0.blocks.0.attn.attn.0",
        ),
        (broken(**{f"{ELSA0}__attn__2__weight": torch.zeros(1, 8, 1, 1)}), "num_heads must be at"),
        (broken(**{f"{ELSA0}__attn__0__weight": torch.zeros(8, 4, 4, 4)}), "kernel_size must be"),
        (broken(**{f"{ELSA0}__ghost_head": torch.zeros(3)}), "ghost_head .* does not fit lam=0.0"),
        (broken(norm__extra=torch.zeros(1)), "1 unexpected .norm2.extra"),
        (broken(layers__0__blocks__0__mlp__fc1__weight=torch.zeros(9, 8)), "no mlp_ratio gives"),
        (broken(absolute_pos_embed=torch.zeros(1, 6, 8)), "must hold a square map, got 6"),
        (broken(absolute_pos_embed=torch.zeros(1, 8, 3, 4)), "1 resized .absolute_pos_embed"),
        (broken(absolute_pos_embed=torch.zeros(8)), "cannot be converted"),
        (broken(stages__0__blocks__0__norm1__bias=torch.zeros(8)), "would get the same name"),
        (
            mmcv_checkpoint(golden("det_00_75x101")[0], {"bbox_head.conv.weight": torch.ones(1)}),
            "1 tensors belong to no known head: bbox_head.conv.weight",
        ),
        (
            {f"backbone.{k}": v for k, v in convert_elsa(broken()).items()},
            "not an official ELSA-Swin",
        ),
    ],
)
def test_other_checkpoints(content, message, tmp_path):
    source = tmp_path / "official.pth"
    torch.save(content, source)
    with pytest.raises(ValueError, match=message) as caught:
        convert_file(source, tmp_path / "out", MODELS.build, "elsa")
    assert str(caught.value).startswith(f"checkpoint {source} cannot be converted: ")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["official.pth"]


def test_options_that_do_not_fit():
    both, _, _ = golden("det_01_66x50_ape")
    with pytest.raises(ValueError, match=r"does not fit lam=0\.0 and gamma=1\.0"):
        fits(both, lam=0.0)
    with pytest.raises(ValueError, match="no moving average of the weights, state_dict_ema"):
        fits(timm_checkpoint(both), ema=True)
    with pytest.raises(ValueError, match=r"system must be one of .*elsa.*, got 'resnet'"):
        convert_file("in.pth", "out", MODELS.build, system="resnet")
    with pytest.raises(ValueError, match="ELSA-Swin have the options ema, lam, gamma, got sigma"):
        convert_file("in.pth", "out", MODELS.build, "elsa", sigma=1)
