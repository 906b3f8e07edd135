"""The DeiT with a ghost head, and its config."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from mmengine import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

import mmlocal
from mmlocal.models.backbones import GhostDeiT

NAME = "ghost_deit_ti_in1k_300e"
BASELINE = "deit_ti_in1k_300e"
TINY = dict(embed_dims=12, num_layers=4, num_heads=3)


def make(seed: int = 0, **kwargs) -> GhostDeiT:
    torch.manual_seed(seed)
    defaults = dict(arch=TINY, patch_size=4, pretrain_img_size=16, drop_path_rate=0.0)
    return GhostDeiT(**defaults | kwargs)


def test_parameter_count():
    """DeiT-Ti has 5,717,416 parameters. The class token and its position are among them."""
    with torch.device("meta"):
        backbone, head = GhostDeiT(), nn.Linear(192, 1000)
    count = sum(p.numel() for module in (backbone, head) for p in module.parameters())
    assert count == 5_717_416 - 2 * 192 + 12 * 2 * 6 * 27 * 27


@pytest.mark.parametrize("out_indices", [(-1,), (3,), (0, 2), [2, -4]], ids=str)
@pytest.mark.parametrize("size", [(4, 4), (5, 7), (16, 16), (33, 20)], ids=str)
def test_output_shapes(size, out_indices):
    backbone = make(out_indices=out_indices).eval()
    with torch.no_grad():
        outs = backbone(torch.randn(2, 3, *size))
    assert [tuple(out.shape) for out in outs] == [
        (2, 12, -(-size[0] // 4), -(-size[1] // 4)) for _ in out_indices
    ]
    assert all(out.is_contiguous() and out.isfinite().all() for out in outs)


@pytest.mark.parametrize("out_indices", [(-1,), (0, 2)], ids=str)
def test_every_parameter_gets_a_gradient(out_indices):
    """Layers after the last output are not built."""
    backbone = make(out_indices=out_indices)
    assert len(backbone.stages) == backbone.out_indices[-1] + 1
    sum(out.square().sum() for out in backbone(torch.randn(2, 3, 16, 24))).backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name  # noqa: PT018


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_checkpointing_changes_nothing(rate):
    results = []
    for with_cp in (False, True):
        backbone = make(with_cp=with_cp, drop_path_rate=rate, drop_rate=rate, attn_drop_rate=rate)
        image = torch.randn(4, 3, 16, 12)
        torch.manual_seed(1)
        (out,) = backbone(image)
        out.square().sum().backward()
        results.append([out, *(p.grad for p in backbone.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("frozen_stages", [-1, 0, 2, 4])
def test_frozen_stages(frozen_stages):
    backbone = make(frozen_stages=frozen_stages, out_indices=(1, 3), drop_rate=0.5)
    frozen = [f"stages.{i}." for i in range(frozen_stages)]
    frozen += [f"norm{i}." for i in range(frozen_stages)]
    frozen += ["patch_embed.", "absolute_pos_embed"] if frozen_stages >= 0 else []
    assert backbone.train() is backbone
    for name, parameter in backbone.named_parameters():
        assert parameter.requires_grad != name.startswith(tuple(frozen)), name
    for name, module in backbone.named_modules():
        if name and name != "stages":
            fixed = f"{name}.".startswith(tuple(frozen))
            fixed |= name == "drop_after_pos" and frozen_stages >= 0
            assert module.training != fixed, name
    assert not any(module.training for module in backbone.eval().modules())


def test_stochastic_depth_rises():
    stages = make(drop_path_rate=0.3).stages
    rates = [block.drop_path.drop_prob for stage in stages for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_default_initialisation():
    torch.manual_seed(0)
    backbone = GhostDeiT()
    backbone.init_weights()
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05), name
            assert not module.bias.any(), name
    for name, parameter in backbone.named_parameters():
        if name.endswith("ghost_mul"):
            assert (parameter == 1).all()
        if name.endswith(("ghost_add", "absolute_pos_embed")):
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name


def test_pretrained_at_another_image_size(tmp_path):
    """The stored size of the embeddings does not depend on the image."""
    source = make(seed=1)
    path = str(tmp_path / "classifier.pth")
    torch.save({f"backbone.{k}": v for k, v in source.state_dict().items()}, path)
    init_cfg = dict(type="Pretrained", checkpoint=path, prefix="backbone.")
    backbone = make(init_cfg=init_cfg, out_indices=(1, 3))  # norm1 is new
    backbone.init_weights()
    image = torch.randn(1, 3, 40, 24)
    torch.testing.assert_close(backbone.eval()(image)[1], source.eval()(image)[0])
    other = make(init_cfg=init_cfg, ghost_ratio=1)
    with pytest.raises(ValueError, match=r"does not fit this GhostDeiT.*ghost_mul"):
        other.init_weights()


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_layer_depth(prefix):
    backbone = make()
    depths = {
        name: backbone.get_layer_depth(prefix + name, prefix)
        for name, _ in backbone.named_parameters()
    }
    assert {total for _, total in depths.values()} == {6}
    assert {depth for depth, _ in depths.values()} == set(range(6))
    assert depths["patch_embed.proj.weight"][0] == depths["absolute_pos_embed"][0] == 0
    assert depths["stages.0.blocks.0.attn.ghost_add"][0] == 1
    assert depths["stages.3.blocks.0.mlp.fc1.bias"][0] == 4
    assert depths["norm3.weight"][0] == 5
    assert backbone.get_layer_depth("head.fc.weight", "backbone.") == (5, 6)


def test_export():
    backbone = make().eval()
    image = torch.randn(1, 3, 20, 24)
    program = torch.export.export(backbone, (image,), strict=False)
    torch.testing.assert_close(program.module()(image)[0], backbone(image)[0])


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        (dict(arch="huge"), ValueError, r"arch must be one of \['tiny'\], got 'huge'"),
        (dict(arch=96), TypeError, "arch must be a name or a dict, got 96"),
        (dict(arch=dict(embed_dims=8)), ValueError, r"arch must have the keys.*\['embed_dims'\]"),
        (dict(arch=TINY | dict(num_heads=5)), ValueError, "num_heads=5"),
        (dict(out_indices=(4,)), ValueError, r"out_indices must .* -4 to 3, got \(4,\)"),
        (dict(out_indices=(-5,)), ValueError, r"out_indices must .*, got \(-5,\)"),
        (dict(out_indices=()), ValueError, r"out_indices must .*, got \(\)"),
        (dict(out_indices=3), ValueError, "out_indices must .*, got 3"),
        (dict(frozen_stages=5), ValueError, "frozen_stages must be -1 to 4, got 5"),
        (dict(out_indices=(3, -1)), ValueError, r"out_indices must .* twice, got \(3, -1\)"),
        (dict(patch_size=0), ValueError, "patch_size must be at least 1, got 0"),
        (dict(drop_path_rate=-0.1), ValueError, "drop_path_rate must be .* got -0.1"),
        (dict(pretrain_img_size=3), ValueError, "pretrain_img_size must be at least patch_size=4"),
    ],
)
def test_bad_arguments(kwargs, error, message):
    with pytest.raises(error, match=message):
        make(**kwargs)


def test_config():
    """The classifier has the paper's size. Weight decay applies to matrices, not to embeddings."""
    pytest.importorskip("mmpretrain", reason="the library of this config is not installed")
    from mmengine.optim import build_optim_wrapper

    cfg = Config.fromfile(mmlocal.config_path(NAME))
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model).eval()
        optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 224, 224)).shape == (1, 1000)
    decay = {
        id(parameter): group["weight_decay"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for name, parameter in model.named_parameters():
        exempt = parameter.dim() == 1 or name.endswith("absolute_pos_embed")
        assert decay[id(parameter)] == (0 if exempt else 0.05), name

    count = sum(parameter.numel() for parameter in model.parameters())
    folder = Path(mmlocal.config_path(NAME)).parent
    assert f"Parameters: {count}\n" in (folder / "metafile.yml").read_text()
    row = f"| [{NAME}]({NAME}.py) | 224 | {cfg.model.backbone.drop_path_rate} | {count:,} | +3.7 |"
    assert row in (folder / "README.md").read_text()


def test_baseline():
    """The baseline is DeiT-Ti as in mmpretrain and timm, with the same recipe. It trains a step."""
    pytest.importorskip("mmpretrain", reason="the library of this config is not installed")
    from mmengine.optim import build_optim_wrapper
    from mmpretrain.structures import DataSample

    cfg, ghost = (Config.fromfile(mmlocal.config_path(name)) for name in (BASELINE, NAME))
    assert cfg.model.backbone.drop_path_rate == ghost.model.backbone.drop_path_rate
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        cfg.model.data_preprocessor = deepcopy(cfg.data_preprocessor)
        model = MODELS.build(cfg.model)
        model.init_weights()
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    assert sum(parameter.numel() for parameter in model.parameters()) == 5_717_416
    decay = {p: group["weight_decay"] for group in wrapper.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        exempt = parameter.dim() == 1 or name in ("backbone.cls_token", "backbone.pos_embed")
        assert decay[parameter] == (0 if exempt else 0.05), name

    with torch.no_grad():
        assert model.eval()(torch.zeros(1, 3, 224, 224)).shape == (1, 1000)
    images = torch.randint(0, 255, (2, 3, 224, 224), dtype=torch.uint8)
    samples = [DataSample().set_gt_label(label) for label in (1, 999)]
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    losses = model.train().train_step(dict(inputs=images, data_samples=samples), wrapper)
    assert losses["loss"].isfinite()
    assert all(p.isfinite().all() for p in model.parameters())
    assert not torch.equal(before["backbone.cls_token"], model.backbone.cls_token)

    # All but model and decay is the recipe of the other.
    for part in (cfg, ghost):
        part.pop("model")
        part.optim_wrapper.paramwise_cfg.pop("custom_keys")
    assert cfg.to_dict() == ghost.to_dict()
