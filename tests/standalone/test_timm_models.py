"""The backbones as models of timm."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

timm = pytest.importorskip("timm")

from timm.optim import create_optimizer_v2  # noqa: E402

import mmlocal.timm  # noqa: E402
from mmlocal.layers import MLP, PatchEmbed, TransformerBlock, WindowAttention  # noqa: E402
from mmlocal.models.backbones import LocalBackbone  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
SMALL = dict(embed_dims=16, depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 4))
# A small architecture and the strides of each family.
FAMILIES = {
    "elsa_swin_tiny": (SMALL, [4, 8, 16, 32]),
    "local_swin_tiny": (SMALL, [4, 8, 16, 32]),
    "dwnet_tiny": (dict(embed_dims=16, depths=(1, 1, 1, 1)), [4, 8, 16, 32]),
    "qna_vit_tiny": (
        dict(
            embed_dims=16,
            attn_depths=(0, 0, 1, 1),
            qna_depths=(1, 1, 1, 0),
            attn_heads=(2, 2, 2, 2),
            qna_heads=(2, 2, 2, 2),
        ),
        [4, 8, 16, 32],
    ),
    "ghost_deit_tiny": (dict(embed_dims=16, num_layers=5, num_heads=2), [16, 16, 16, 16]),
}


def create(name: str, **arguments) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, arch=FAMILIES[name][0], **arguments).eval()


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def ours() -> list[str]:
    return [name for name in mmlocal.timm.default_cfgs if timm.is_model(name)]


def test_names_and_parameters():
    """Each name builds the published network; the README counts the parameters."""
    rows = re.findall(r"^\| ([\w-]+(?: 7x7|, dynamic)?) \| ([\d,]+) \|", readme(), re.M)
    published = {name: int(count.replace(",", "")) for name, count in rows}
    for row, name, arguments in [
        ("ELSA-Swin-T", "elsa_swin_tiny", {}),
        ("ELSA-Swin-B", "elsa_swin_base", {}),
        ("QnA-ViT-T 7x7", "qna_vit_tiny_7x7", {}),
        ("QnA-ViT-S", "qna_vit_small", {}),
        ("DWNet-T, dynamic", "dwnet_tiny", dict(spatial="dynamic")),
        ("DWNet-B", "dwnet_base", {}),
    ]:
        assert name in ours()
        with torch.device("meta"):
            model = timm.create_model(name, **arguments)
        assert sum(p.numel() for p in model.parameters()) == published[row], name
        assert model.pretrained_cfg["num_classes"] == model.num_classes == 1000


def readme() -> str:
    return (ROOT / "README.md").read_text()


def test_timm_keeps_its_own_models():
    assert not [name for name in ours() if name.startswith("volo")]
    assert timm.models.model_entrypoint("volo_d1_224").__module__ == "timm.models.volo"
    assert "elsa_swin_base" in timm.list_models("elsa_swin*")
    assert timm.list_models("*elsa*", pretrained=True) == []


@pytest.mark.parametrize("name", FAMILIES)
def test_features_are_the_outputs_of_the_stages(name, image):
    _, strides = FAMILIES[name]
    features = create(name, features_only=True)
    assert features.feature_info.reduction() == strides
    maps = features(image)
    channels = features.feature_info.channels()
    assert [x.shape for x in maps] == [
        (2, dims, 64 // stride, 96 // stride)
        for dims, stride in zip(channels, strides, strict=True)
    ]
    # No parameter is left without a use.
    sum(x.square().sum() for x in maps).backward()
    assert [n for n, p in features.named_parameters() if p.grad is None] == []
    model = create(name)
    final, last = model.forward_intermediates(image, indices=1)
    torch.testing.assert_close(last[0], maps[-1])
    torch.testing.assert_close(final, model.backbone(image)[-1])
    (normed,) = model.forward_intermediates(image, 1, norm=True, intermediates_only=True)
    torch.testing.assert_close(normed, final)


@pytest.mark.parametrize("indices", [(0, 2), (1,), (-3, -2), 2])
def test_chosen_features(indices, image):
    everything = create("elsa_swin_tiny", features_only=True)(image)
    features = create("elsa_swin_tiny", features_only=True, out_indices=indices)
    chosen = range(-indices, 0) if isinstance(indices, int) else indices
    assert features.feature_info.channels() == [16 * 2 ** (i % 4) for i in chosen]
    for ours, i in zip(features(image), chosen, strict=True):
        torch.testing.assert_close(ours, everything[i])
    assert len(features.model.backbone.stages) == max(i % 4 for i in chosen) + 1


@pytest.mark.parametrize("indices", [(4,), (0, 0), (), (1.5,)])
def test_features_that_are_none(indices):
    with pytest.raises(ValueError, match="out_indices must name"):
        create("elsa_swin_tiny", features_only=True, out_indices=indices)


def test_classifier(image):
    model = create("qna_vit_tiny", num_classes=7, drop_rate=0.5, img_size=384)
    logits = model(image)
    assert logits.shape == (2, 7)
    pooled = model.forward_head(model.forward_features(image), pre_logits=True)
    torch.testing.assert_close(model.get_classifier()(pooled), logits)
    assert pooled.shape == (2, model.num_features)
    assert model.num_features == model.head_hidden_size == 128
    model.train()
    assert not torch.equal(model(image), model(image))  # dropout
    model.eval().reset_classifier(0)
    torch.testing.assert_close(model(image), pooled)
    model.reset_classifier(0, "")
    assert model(image).shape == (2, 128, 2, 3)
    with pytest.raises(ValueError, match="global_pool must be 'avg' for a classifier of 5"):
        model.reset_classifier(5)
    with pytest.raises(ValueError, match="global_pool must be one of"):
        model.reset_classifier(5, "max")
    with pytest.raises(ValueError, match="num_classes must be at least 0"):
        create("qna_vit_tiny", num_classes=-1)


def test_unknown_arguments():
    with pytest.raises(TypeError, match="unexpected keyword argument 'mixer'"):
        create("local_swin_tiny", mixer="SASA")


def test_optimizer_of_timm():
    model = create("elsa_swin_tiny", num_classes=3)
    options = dict(lr=1.0, weight_decay=0.1, layer_decay=0.5)
    groups = create_optimizer_v2(model, "adamw", **options).param_groups
    settings = {id(p): group for group in groups for p in group["params"]}
    parameters = dict(model.named_parameters())
    assert len(settings) == len(parameters)

    def of(name: str) -> tuple[float, float]:
        group = settings[id(parameters[name])]
        return group["lr_scale"], group["weight_decay"]

    # The stem, five blocks, and the norm with the head.
    assert of("head.fc.weight") == (1.0, 0.1)
    assert of("head.fc.bias") == (1.0, 0.0)
    assert of("backbone.stages.3.blocks.0.mlp.fc1.weight") == (0.5, 0.1)
    table = "backbone.stages.3.blocks.0.attn.w_msa.relative_position_bias_table"
    assert of(table) == (0.5, 0.0)
    assert of("backbone.patch_embed.proj.weight") == (0.5**6, 0.1)


def test_checkpointing_changes_no_number(image):
    model = create("elsa_swin_tiny", num_classes=3, drop_path_rate=0.0).train()
    model.set_grad_checkpointing()
    assert all(m.with_cp for m in model.modules() if isinstance(m, TransformerBlock))
    with_cp = torch.autograd.grad(model(image).sum(), model.backbone.patch_embed.proj.weight)
    model.set_grad_checkpointing(False)
    without = torch.autograd.grad(model(image).sum(), model.backbone.patch_embed.proj.weight)
    torch.testing.assert_close(with_cp, without)


def test_loading(image, tmp_path):
    model = create("elsa_swin_tiny", num_classes=4)
    path = tmp_path / "file.pth"
    meta = dict(mmlocal_version="0")
    torch.save(dict(meta=meta, state_dict=model.state_dict()), path)
    again = create("elsa_swin_tiny", num_classes=4, checkpoint_path=str(path), drop_path_rate=0.3)
    torch.testing.assert_close(again(image), model(image))
    source = dict(pretrained=True, pretrained_cfg_overlay=dict(file=str(path), num_classes=4))
    grey = create("elsa_swin_tiny", num_classes=3, in_chans=1, **source)
    assert grey(image[:, :1]).shape == (2, 3)
    ours, theirs = grey.backbone.stages, model.backbone.stages
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    features = create("elsa_swin_tiny", features_only=True, out_indices=(1,), **source)
    (expected,) = model.forward_intermediates(image, [1], intermediates_only=True)
    torch.testing.assert_close(features(image)[0], expected)
    torch.save({"state_dict": {"layers.0.blocks.0.norm1.weight": torch.ones(16)}}, path)
    with pytest.raises(
        ValueError, match=r"no tensor backbone\.\*.*convert it with mmlocal convert"
    ):
        create("elsa_swin_tiny", num_classes=4, checkpoint_path=str(path))


class Own(LocalBackbone):
    """A backbone of a user, of one stage."""

    arch_zoo = {"wee": dict(embed_dims=8, depths=(1,))}  # noqa: RUF012

    def __init__(self, arch="wee", in_channels=3, mlp_ratio=2.0, init_cfg=None):
        super().__init__(init_cfg)
        arch = self._resolve_arch(arch, {"embed_dims", "depths"})
        self.mlp_ratio = mlp_ratio
        self.patch_embed = PatchEmbed(in_channels, arch["embed_dims"], 8)
        self._build_stages([arch["embed_dims"]], arch["depths"], 0.0, (0,), -1)

    def _make_block(self, stage, index, drop_path_rate):
        attn = WindowAttention(8, 2, window_size=4)
        return TransformerBlock(8, attn, drop_path_rate=drop_path_rate, mlp_ratio=self.mlp_ratio)


def test_quiet(capfd):
    """MMEngine would list every parameter."""
    create("elsa_swin_tiny")
    assert capfd.readouterr() == ("", "")


def test_own_backbone():
    (name,) = mmlocal.timm.register(Own, mlp_ratio=3.0)
    assert name == "test_timm_models_wee"
    model = timm.create_model(name, num_classes=2)
    assert model(torch.rand(1, 3, 16, 16)).shape == (1, 2)
    (mlp,) = (m for m in model.modules() if isinstance(m, MLP))
    assert mlp.fc1.out_features == 24
