"""Checkpoints of the official VOLO and of timm become models of ours with the official outputs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from convert_data import DATA, relative_error, timm_checkpoint
from torch import Tensor, nn

from mmlocal.checkpoints import convert_checkpoint, convert_file
from mmlocal.checkpoints.volo import convert_volo, volo_backbone_cfg
from mmlocal.cli import load
from mmlocal.models.backbones import VOLO
from mmlocal.registry import MODELS

LIMIT = 1e-5
EMBED = "backbone.stages.0.downsample.pos_embed"
ARCH = dict(embed_dims=16, depths=(2, 1, 1, 1), num_heads=(2, 4, 4, 4), mlp_ratio=3.0, stem_dims=8)


def golden() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Official state dict of a small network, and all arrays of its file."""
    with np.load(DATA / "volo" / "volo_net.npz") as file:
        arrays = {k: torch.from_numpy(v) for k, v in file.items() if k != "meta"}
    official = {k.removeprefix("param."): v for k, v in arrays.items() if k.startswith("param.")}
    for i in (1, 4, 7):  # the file lacks the counters
        official[f"patch_embed.conv.{i}.num_batches_tracked"] = torch.tensor(5)
    return official, arrays


def published() -> dict[str, Tensor]:
    """Official names and shapes of VOLO-D1, all zeros."""
    entries = json.loads((DATA / "volo_statedicts" / "volo_d1.json").read_text())
    return {
        key: torch.zeros((), dtype=getattr(torch, entry["dtype"])).expand(entry["shape"])
        for key, entry in entries.items()
    }


def part(state_dict: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {k[len(name) + 1 :]: v for k, v in state_dict.items() if k.startswith(f"{name}.")}


def logits_of(meta: dict, state_dict: dict[str, Tensor], image: Tensor) -> Tensor:
    backbone = MODELS.build(meta["backbone_cfg"]).eval()
    backbone.load_state_dict(part(state_dict, "backbone"), strict=True)
    head, aux = part(state_dict, "head.fc"), part(state_dict, "head.aux_fc")
    with torch.no_grad():
        ((featmap, cls_token),) = backbone(image)
        tokens = F.linear(featmap.flatten(2).mT, **aux)
        return F.linear(cls_token, **head) + 0.5 * tokens.amax(dim=1)


@pytest.mark.parametrize("layout", ["bare", "timm", "module", "not_ema", "ema"])
def test_layouts(layout, tmp_path):
    official, arrays = golden()
    noise = {key: torch.full_like(value, 3) for key, value in official.items()}
    content, options = {
        "bare": (official, {}),
        "timm": (timm_checkpoint(official), {}),
        "module": (timm_checkpoint(official, prefix="module."), {}),
        "not_ema": (timm_checkpoint(official, noise), {}),
        "ema": (timm_checkpoint(noise, official, "module."), dict(ema=True)),
    }[layout]
    torch.save(content, tmp_path / "official.pth.tar")
    source = tmp_path / "official.pth.tar"
    _, path = convert_file(source, tmp_path, MODELS.build, "volo", num_heads=4, **options)
    new = torch.load(path, weights_only=True)
    error = relative_error(
        logits_of(new["meta"], new["state_dict"], arrays["input"]), arrays["eval.output"]
    )
    print(f"{layout}: {error:.1e}")
    assert error <= LIMIT
    assert new["meta"]["source"]["ema"] == (layout == "ema")


def test_architecture():
    official, _ = golden()
    expected = dict(
        type="mmlocal.VOLO",
        arch=ARCH,
        in_channels=3,
        pretrain_img_size=64,
        with_cls_token=True,
        out_indices=(3,),
    )
    assert volo_backbone_cfg(official, num_heads=4) == expected
    official["pos_embed"] = torch.zeros(1, 2, 6, 32)
    del official["cls_token"]
    cfg = volo_backbone_cfg(official, num_heads=8)
    heads = dict(num_heads=(2, 8, 8, 8))
    size = dict(pretrain_img_size=(32, 96), with_cls_token=False)
    assert cfg == expected | size | dict(arch=ARCH | heads)


def test_published_shapes():
    """Our D1 expects the official names and shapes, and each tensor has a place."""
    models = []

    def build(cfg: dict) -> nn.Module:
        models.append(MODELS.build(cfg))
        return models[0]

    official = published()
    conversion = convert_checkpoint(official, build, "volo")
    state_dict = conversion.checkpoint["state_dict"]
    models[0].load_state_dict(part(state_dict, "backbone"), strict=True, assign=True)
    cfg = conversion.checkpoint["meta"]["backbone_cfg"]
    assert (cfg["arch"], cfg["pretrain_img_size"], cfg["with_cls_token"]) == ("d1", 224, True)
    assert sorted(conversion.heads) == [
        f"head.{name}.{kind}" for name in ("aux_fc", "fc") for kind in ("bias", "weight")
    ]
    assert len(conversion.report.loaded) + len(conversion.heads) == len(official)
    assert conversion.dropped == conversion.left == []
    assert conversion.assumed == dict(drop_rate=0.0, attn_drop_rate=0.0, drop_path_rate=0.1)


@pytest.mark.parametrize("arch", ["d2", "d3", "d4", "d5"])
def test_the_other_published_models_are_told_apart(arch):
    """Their own names and shapes: every converted tensor goes back to the official name."""
    with torch.device("meta"):
        backbone = VOLO(arch, with_cls_token=True, out_indices=(3,))
    ours = {k: torch.zeros(()).expand(v.shape) for k, v in backbone.state_dict().items()}
    official = {official_name(k): v for k, v in ours.items()}
    official["pos_embed"] = official["pos_embed"].permute(0, 2, 3, 1)
    assert {k: v.shape for k, v in convert_volo(official).items()} == {
        k: v.shape for k, v in ours.items()
    }
    cfg = convert_checkpoint(official, MODELS.build, "volo").checkpoint["meta"]["backbone_cfg"]
    assert cfg["arch"] == arch


def official_name(name: str) -> str:
    first, *rest = name.split(".")
    if first == "stages" and rest[1] == "downsample":
        return "pos_embed" if rest[2] == "pos_embed" else ".".join(["network.1", *rest[2:]])
    if first == "stages":
        stage = int(rest[0])
        return ".".join([f"network.{stage + (stage > 0)}", *rest[2:]])
    return ".".join([{"post_blocks": "post_network", "norm3": "norm"}.get(first, first), *rest])


def test_images_of_another_size():
    official, arrays = golden()
    conversion = convert_checkpoint(official, MODELS.build, "volo", num_heads=4, img_size=96)
    new = conversion.checkpoint
    assert new["meta"]["backbone_cfg"]["pretrain_img_size"] == 96
    wanted = F.interpolate(
        official["pos_embed"].permute(0, 3, 1, 2), (6, 6), mode="bicubic", align_corners=False
    )
    assert torch.equal(new["state_dict"][EMBED], wanted)
    kept = convert_checkpoint(official, MODELS.build, "volo", num_heads=4).checkpoint
    image = F.pad(arrays["input"], (0, 32, 0, 32))
    # The backbone resizes the embedding to the map in the same way.
    torch.testing.assert_close(
        logits_of(new["meta"], new["state_dict"], image),
        logits_of(kept["meta"], kept["state_dict"], image),
    )


def test_command_line(tmp_path, capsys):
    torch.save(golden()[0], tmp_path / "d0.pth")
    arguments = ["--from", "volo", str(tmp_path / "d0.pth"), str(tmp_path / "out")]
    load("convert").main([*arguments, "--num-heads", "4", "--img-size", "96"])
    out = capsys.readouterr().out
    assert out.startswith("mmlocal.VOLO(arch={'embed_dims': 16, ")
    assert f"1 resized ({EMBED.removeprefix('backbone.')}: (1, 32, 4, 4) for (1, 32, 6, 6))" in out
    assert "heads: 4 kept (head)\n" in out
    (path,) = Path(tmp_path / "out").iterdir()
    assert torch.load(path, weights_only=True)["meta"]["source"]["system"] == "volo"


def broken(drop: str = "-", **changes: Tensor) -> dict[str, Tensor]:
    official = {k: v for k, v in golden()[0].items() if not k.startswith(drop)}
    return official | {k.replace("__", "."): v for k, v in changes.items()}


OTHERS = {
    "there is no patch_embed.conv.0.weight": {"conv1.weight": torch.zeros(64, 3, 7, 7)},
    "not a whole VOLO: there is no network.0.0": broken("network.0.0"),
    "not an official VOLO: there is no network.1.proj.weight": broken("network.1"),
    "not a whole VOLO: there is no network.3.0": broken("network.3"),
    "not an official VOLO: there is no pos_embed": broken("pos_embed"),
    "pos_embed must have 4 dimensions": broken(pos_embed=torch.zeros(1, 16, 32)),
    r"1 missing \(stages.1.blocks.0.mlp.fc1.bias\)": broken("network.2.0.mlp.fc1.bias"),
    r"missing \(post_blocks.1.norm1.weight, ": broken("post_network.1"),
    r"1 unexpected \(post_blocks.2.norm1": broken(post_network__2__norm1__bias=torch.zeros(32)),
    "81 rows .* got 80 rows": broken(network__0__0__attn__attn__weight=torch.zeros(80, 16)),
    "unexpected .*attn.qkv.bias": broken(network__2__0__attn__qkv__bias=torch.zeros(96)),
    r"1 unexpected \(dist_token\)": broken(dist_token=torch.zeros(1, 1, 32)),
    "it holds no weights": {},
}


@pytest.mark.parametrize("message", OTHERS)
def test_other_checkpoints(message, tmp_path):
    source = tmp_path / "official.pth"
    torch.save(OTHERS[message], source)
    with pytest.raises(ValueError, match=message) as caught:
        convert_file(source, tmp_path / "out", MODELS.build, "volo", num_heads=4)
    assert str(caught.value).startswith(f"checkpoint {source} cannot be converted: ")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["official.pth"]


def test_heads_that_no_weight_shows():
    official, _ = golden()
    message = "no published VOLO has 16 channels and 2 heads in its outlookers.*num_heads"
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(official, MODELS.build, "volo")
    with pytest.raises(ValueError, match="num_heads must divide embed_dims=32, got num_heads=5"):
        convert_checkpoint(official, MODELS.build, "volo", num_heads=5)
    with pytest.raises(ValueError, match="no moving average of the weights, state_dict_ema"):
        convert_checkpoint(timm_checkpoint(official), MODELS.build, "volo", ema=True)


def test_another_variant_is_refused(tmp_path):
    """A converted D1 does not start a D2."""
    path = str(tmp_path / "d1.pth")
    torch.save(convert_checkpoint(published(), MODELS.build, "volo").checkpoint, path)
    init_cfg = dict(type="Pretrained", checkpoint=path, prefix="backbone.")
    with torch.device("meta"):
        backbone = VOLO("d2", init_cfg=init_cfg)
    with pytest.raises(ValueError, match=r"does not fit this VOLO: .*Check arch and prefix"):
        backbone.init_weights()
