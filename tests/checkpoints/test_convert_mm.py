"""Official detectors and segmentors load into models of mmdet and mmseg, whole or pretrained."""

import re
from pathlib import Path

import pytest
import torch
from convert_data import golden, mmcv_checkpoint, relative_error
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope
from torch import nn

from mmlocal.checkpoints import convert_file
from mmlocal.registry import MODELS

mmdet = pytest.importorskip("mmdet", reason="needs mmdet")
mmseg = pytest.importorskip("mmseg", reason="needs mmseg")
pytest.importorskip("mmcv._ext", reason="needs the compiled ops of mmcv")

BACKBONE, DIMS = "det_00_75x101", [8, 16, 32, 64]

# Parameter names as in mmdet 2.11 and mmseg 0.11, with N for numbers.
NAMES = {
    "neck": r"(lateral_convs|fpn_convs)\.N\.conv\.P",
    "rpn_head": r"(rpn_conv|rpn_cls|rpn_reg)\.P",
    "maskrcnn_box": r"(shared_fcs\.N|fc_cls|fc_reg)\.P",
    "cascade_box": r"N\.((shared_convs\.N\.(conv|bn)|shared_fcs\.N|fc_cls|fc_reg)\.P|"
    r"shared_convs\.N\.bn\.(running_mean|running_var|num_batches_tracked))",
    "maskrcnn_mask": r"(convs\.N\.conv|upsample|conv_logits)\.P",
    "cascade_mask": r"N\.(convs\.N\.conv|upsample|conv_logits)\.P",
    "decode_head": r"conv_seg\.P|(psp_modules\.N\.N|bottleneck|lateral_convs\.N|fpn_convs\.N|"
    r"fpn_bottleneck)\.(conv\.P|bn\.B)",
    "auxiliary_head": r"conv_seg\.P|convs\.N\.(conv\.P|bn\.B)",
}
PATTERNS = {
    part: pattern.replace("N", r"\d+")
    .replace("P", "(weight|bias)")
    .replace("B", "(weight|bias|running_mean|running_var|num_batches_tracked)")
    for part, pattern in NAMES.items()
}
PARTS = {
    "maskrcnn": {
        "neck": "neck",
        "rpn_head": "rpn_head",
        "roi_head.bbox_head": "maskrcnn_box",
        "roi_head.mask_head": "maskrcnn_mask",
    },
    "cascade": {
        "neck": "neck",
        "rpn_head": "rpn_head",
        "roi_head.bbox_head": "cascade_box",
        "roi_head.mask_head": "cascade_mask",
    },
    "upernet": {"decode_head": "decode_head", "auxiliary_head": "auxiliary_head"},
}


def shrunk(cfg: object) -> object:
    """Divide the channels by 32, so that building is fast."""
    if isinstance(cfg, dict):
        return {
            k: v // 32 if k.endswith("channels") and isinstance(v, int) else shrunk(v)
            for k, v in cfg.items()
        }
    return [shrunk(item) for item in cfg] if isinstance(cfg, (list, tuple)) else cfg


def config(kind: str, backbone: dict) -> ConfigDict:
    """The libraries' own Mask R-CNN, Cascade Mask R-CNN and UPerNet, narrow, with our backbone."""
    library, name = {
        "maskrcnn": (mmdet, "mask-rcnn_r50_fpn"),
        "cascade": (mmdet, "cascade-mask-rcnn_r50_fpn"),
        "upernet": (mmseg, "upernet_swin"),
    }[kind]
    path = Path(library.__file__).parent / f".mim/configs/_base_/models/{name}.py"
    model = ConfigDict(shrunk(Config.fromfile(path).model.to_dict()), backbone=backbone)
    norm = dict(type="BN")
    if kind == "upernet":
        model["decode_head"].update(in_channels=DIMS, norm_cfg=norm)
        model["auxiliary_head"].update(in_channels=DIMS[2], norm_cfg=norm)
        return model
    model["neck"]["in_channels"] = DIMS
    if kind == "cascade":  # as in the papers: four convolutions and one layer per box head
        for head in model["roi_head"]["bbox_head"]:
            head.update(type="ConvFCBBoxHead", num_shared_convs=4, num_shared_fcs=1)
            head.update(conv_out_channels=8, norm_cfg=norm, reg_class_agnostic=False)
    return model


def build(kind: str, backbone: dict, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    with DefaultScope.overwrite_default_scope("mmseg" if kind == "upernet" else "mmdet"):
        model = MODELS.build(config(kind, backbone))
        model.init_weights()
    for buffer in model.buffers():  # statistics of a trained model
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    return model.eval()


@pytest.fixture(scope="module")
def backbone_cfg(tmp_path_factory) -> dict:
    """Recover the config of the golden backbone by converting the backbone alone."""
    folder = tmp_path_factory.mktemp("backbone")
    torch.save(golden(BACKBONE)[0], folder / "a.pth")
    conversion, _ = convert_file(folder / "a.pth", folder, MODELS.build, "elsa", dry_run=True)
    return conversion.checkpoint["meta"]["backbone_cfg"]


@pytest.fixture(scope="module", params=["maskrcnn", "cascade", "upernet"])
def official(request, backbone_cfg, tmp_path_factory):
    """A kind of model, official weights of its heads, and the converted file of the whole."""
    kind = request.param
    folder = tmp_path_factory.mktemp(kind)
    model = build(kind, backbone_cfg, seed=1)
    heads = {k: v for k, v in model.state_dict().items() if not k.startswith("backbone.")}
    meta = {"upernet": dict(mmseg_version="0.11.0")}.get(kind, dict(mmdet_version="2.11.0"))
    checkpoint = mmcv_checkpoint(golden(BACKBONE)[0], heads, CLASSES=("a", "b"), **meta)
    torch.save(checkpoint, folder / "latest.pth")
    conversion, path = convert_file(folder / "latest.pth", folder, MODELS.build, "elsa")
    assert conversion.heads == list(heads)
    return kind, heads, path


def check_golden(backbone: nn.Module) -> None:
    _, _, arrays = golden(BACKBONE)
    with torch.no_grad():
        outs = backbone(arrays["input"])
    errors = [relative_error(out, arrays[f"output.{i}"]) for i, out in enumerate(outs)]
    print(f"worst error {max(errors):.1e}")
    assert max(errors) <= 1e-4


def test_names_of_heads(official):
    """The models that mmdet and mmseg build today have the names of the official versions."""
    kind, heads, _ = official
    for prefix, part in PARTS[kind].items():
        names = [key[len(prefix) + 1 :] for key in heads if key.startswith(f"{prefix}.")]
        assert names
        assert [name for name in names if not re.fullmatch(PATTERNS[part], name)] == []
    assert all(key.startswith(tuple(PARTS[kind])) for key in heads)


def test_whole_model_loads_strictly(official, backbone_cfg):
    kind, heads, path = official
    content = torch.load(path, weights_only=True)
    model = build(kind, content["meta"]["backbone_cfg"], seed=2)
    assert any(not torch.equal(model.state_dict()[key], value) for key, value in heads.items())
    model.load_state_dict(content["state_dict"], strict=True)
    check_golden(model.backbone)
    for key, value in heads.items():
        assert torch.equal(model.state_dict()[key], value), key
    assert content["meta"]["dataset_meta"] == dict(classes=("a", "b"))


def test_pretrained(official):
    """The same file, named in ``init_cfg``, fills the backbone and nothing else."""
    kind, heads, path = official
    cfg = torch.load(path, weights_only=True)["meta"]["backbone_cfg"]
    init_cfg = dict(type="Pretrained", checkpoint=str(path), prefix="backbone.")
    model = build(kind, cfg | dict(init_cfg=init_cfg), seed=2)
    check_golden(model.backbone)
    assert any(not torch.equal(model.state_dict()[key], value) for key, value in heads.items())


@pytest.mark.parametrize("kind", ["maskrcnn", "upernet"])
def test_classification_weights_for_dense_models(kind, tmp_path):
    """The last norm is loaded, the others start at 1 and 0, and a larger window is interpolated."""
    official, init, _ = golden("cls_00_img64_win_clipped")
    torch.save(official, tmp_path / "cls.pth")
    conversion, path = convert_file(tmp_path / "cls.pth", tmp_path, MODELS.build, "elsa")
    cfg = conversion.checkpoint["meta"]["backbone_cfg"]
    wide = dict(window_size=7, fit_window=False, out_indices=(0, 1, 2, 3))
    init_cfg = dict(type="Pretrained", checkpoint=str(path), prefix="backbone.")
    model = config(kind, cfg | wide | dict(init_cfg=init_cfg))
    dims = [init["embed_dim"] * 2**i for i in range(4)]
    if kind == "upernet":
        model["decode_head"]["in_channels"] = dims
        model["auxiliary_head"]["in_channels"] = dims[2]
    else:
        model["neck"]["in_channels"] = dims
    with DefaultScope.overwrite_default_scope("mmseg" if kind == "upernet" else "mmdet"):
        backbone = MODELS.build(model).backbone
        backbone.init_weights()
    ours = backbone.state_dict()
    source = conversion.checkpoint["state_dict"]
    tables = [key for key in ours if key.endswith("relative_position_bias_table")]
    for key, value in ours.items():
        if key in tables:
            assert value.shape == (169, 4)
            middle = source[f"backbone.{key}"][4]  # the bias of a token to itself
            assert torch.allclose(value[84], middle, rtol=1e-5, atol=1e-6)
        elif re.match(r"norm[0-2]\.", key):
            assert torch.equal(value, torch.full_like(value, key.endswith("weight")))
        else:
            assert torch.equal(value, source[f"backbone.{key}"]), key
    assert len(tables) == 2
