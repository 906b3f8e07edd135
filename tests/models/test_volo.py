"""VOLO and ELSA-VOLO: sizes, outputs, MixToken, and the promises of each backbone."""

import pytest
import torch
from torch import nn

from mmlocal.analysis import count_macs
from mmlocal.layers import ELSA, DropPath, OutlookAttention, exchange_box
from mmlocal.models.backbones import ELSAVOLO, VOLO

TINY = dict(embed_dims=12, depths=(2, 1, 2, 1), num_heads=(3, 4, 4, 4), stem_dims=8)
both = pytest.mark.parametrize("kind", [VOLO, ELSAVOLO])


def make(kind: type[VOLO] = VOLO, seed: int = 0, **kwargs) -> VOLO:
    torch.manual_seed(seed)
    defaults = dict(arch=TINY, pretrain_img_size=64, drop_path_rate=0.0)
    return kind(**defaults | kwargs)


def classifier(kind: type[VOLO] = VOLO, **kwargs) -> VOLO:
    return make(kind, **dict(with_cls_token=True, out_indices=(3,)) | kwargs)


def flat(outs: tuple) -> list[torch.Tensor]:
    *maps, last = outs
    return [*maps, *last] if isinstance(last, tuple) else [*maps, last]


# With the two heads of 1000 classes. GMACs of convolutions and matrix products, at 224 pixels.
@pytest.mark.parametrize(
    ("kind", "arch", "parameters", "gmacs"),
    [
        (VOLO, "d1", 26_632_040, 6.92),
        (VOLO, "d2", 58_678_336, 14.31),
        (VOLO, "d3", 86_325_072, 20.73),
        (VOLO, "d4", 192_961_520, 44.26),
        (VOLO, "d5", 295_455_584, 72.30),
        (ELSAVOLO, "d1", 26_672_168, None),
        (ELSAVOLO, "d2", 58_721_248, None),
        (ELSAVOLO, "d3", 86_382_288, None),
        (ELSAVOLO, "d4", 192_722_672, None),
        (ELSAVOLO, "d5", 295_097_312, None),
    ],
)
def test_published_sizes(kind, arch, parameters, gmacs):
    with torch.device("meta"):
        backbone = kind(arch, with_cls_token=True, out_indices=(3,)).eval().requires_grad_(False)
        dims = backbone.num_features[-1]
        modules = (backbone, nn.Linear(dims, 1000), nn.Linear(dims, 1000))
        assert sum(p.numel() for module in modules for p in module.parameters()) == parameters
        if gmacs:
            macs = sum(count_macs(backbone, torch.zeros(1, 3, 224, 224)).values())
            heads = (1 + 14 * 14) * 1000 * dims
            assert (macs + heads) / 1e9 == pytest.approx(gmacs, abs=5e-3)


@both
@pytest.mark.parametrize("size", [(8, 8), (9, 23), (24, 16), (64, 64), (65, 40)], ids=str)
def test_output_shapes(kind, size):
    backbone = make(kind, with_cls_token=True).eval()
    first = [-(-side // 8) for side in size]
    last = [-(-side // 2) for side in first]
    assert backbone.grid_size(*size) == tuple(last)
    with torch.no_grad():
        *maps, (featmap, cls_token) = backbone(torch.randn(2, 3, *size))
        dense = make(kind).eval()(torch.randn(1, 3, *size))
    assert [tuple(x.shape) for x in (*maps, featmap, cls_token)] == [
        (2, 12, *first), (2, 24, *last), (2, 24, *last), (2, 24, *last), (2, 24)
    ]  # fmt: skip
    assert [tuple(x.shape[1:]) for x in dense] == [(12, *first)] + [(24, *last)] * 3
    assert all(x.isfinite().all() and x.is_contiguous() for x in (*maps, featmap, cls_token))


def test_too_small_an_image():
    with pytest.raises(ValueError, match="x must be at least one patch of 8x8 pixels, got 8x7"):
        make()(torch.randn(1, 3, 8, 7))


def test_the_class_token_changes_no_map():
    """Patch tokens pass through the class-attention blocks."""
    backbone, dense = classifier().eval(), make(out_indices=(3,)).eval()
    dense.load_state_dict(backbone.state_dict(), strict=False)
    image = torch.randn(2, 3, 40, 32)
    with torch.no_grad():
        featmap, cls_token = backbone(image)[0]
        assert torch.equal(featmap, dense(image)[0])
        backbone.cls_token.add_(1)
        assert not torch.allclose(backbone(image)[0][1], cls_token)


@both
@pytest.mark.parametrize(
    "kwargs",
    [
        dict(with_cls_token=True, out_indices=(3,)),
        dict(with_cls_token=True, out_indices=(0, 3)),
        dict(out_indices=(0, 1, 2, 3)),
        dict(out_indices=(1,)),
        dict(out_indices=(0,)),
    ],
    ids=str,
)
def test_every_parameter_gets_a_gradient(kind, kwargs):
    """DDP needs no search for unused parameters: nothing is built that no output reads."""
    backbone = make(kind, **kwargs)
    assert len(backbone.stages) == backbone.out_indices[-1] + 1
    outs = flat(backbone(torch.randn(3, 3, 32, 48)))
    sum((out * torch.randn_like(out)).sum() for out in outs).backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name  # noqa: PT018


@both
@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_checkpointing_changes_nothing(kind, rate):
    results = []
    for with_cp in (False, True):
        backbone = classifier(
            kind, with_cp=with_cp, drop_path_rate=rate, drop_rate=rate, attn_drop_rate=rate
        )
        image = torch.randn(4, 3, 32, 24)
        torch.manual_seed(1)
        outs = flat(backbone(image, (0, 0, 1, 1)))
        sum(out.square().sum() for out in outs).backward()
        results.append([*outs, *(p.grad for p in backbone.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@both
def test_stochastic_depth(kind):
    """The ramp counts the first stage, which has none; neither has class attention."""
    backbone = classifier(kind, drop_path_rate=0.5)
    rates = [m.drop_prob for m in backbone.modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx([0, 0, 0.2, 0.3, 0.4, 0.5])


@pytest.mark.parametrize("size", [(64, 64), (40, 56)], ids=str)
def test_mix_box(size):
    """The rectangle of the embedding comes from the reversed batch, and nothing else does."""
    backbone = classifier().eval()
    seen = []
    backbone.stages[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    image = torch.randn(3, 3, *size)
    with torch.no_grad():
        plain = flat(backbone(image))
        mixed = flat(backbone(image, mix_box=(1, 0, 3, 2)))
        empty = flat(backbone(image, mix_box=[2, 1, 2, 1]))
    before, after, _ = seen
    inside = torch.zeros(before.shape[1:3], dtype=torch.bool)
    inside[2:6, 0:4] = True  # the first map has twice as many tokens
    assert torch.equal(after[:, inside], before.flip(0)[:, inside])
    assert torch.equal(after[:, ~inside], before[:, ~inside])
    assert all(torch.equal(a, b) for a, b in zip(plain, empty, strict=True))
    middle = [x[1] for x in plain], [x[1] for x in mixed]  # the reverse of image 1 is image 1
    assert all(torch.equal(a, b) for a, b in zip(*middle, strict=True))
    assert not torch.allclose(plain[1][0], mixed[1][0])


def test_a_box_of_the_whole_map_reverses_the_batch():
    backbone, image = classifier().eval(), torch.randn(2, 3, 40, 56)  # maps of 5x7 and 3x4
    with torch.no_grad():
        plain, mixed = flat(backbone(image)), flat(backbone(image, (0, 0, 3, 4)))
    for a, b in zip(plain, mixed, strict=True):
        torch.testing.assert_close(a.flip(0), b)


@pytest.mark.parametrize(
    ("box", "error"),
    [
        ((0, 0, 4, 5), ValueError),
        ((-1, 0, 1, 1), ValueError),
        ((2, 0, 1, 1), ValueError),
        ((0, 0, 1), TypeError),
        ((0, 0, 1, 0.5), TypeError),
        (7, TypeError),
    ],
    ids=str,
)
def test_bad_boxes(box, error):
    backbone, image = classifier(), torch.randn(2, 3, 64, 64)
    with pytest.raises(error, match=r"mix_box must be .*\(top, left, bottom, right\)"):
        backbone(image, mix_box=box)
    with pytest.raises(error, match=r"^box must be .*\(top, left, bottom, right\)"):
        exchange_box(image.permute(0, 2, 3, 1)[:, :4, :4], box)


def test_exchanging_twice_changes_nothing():
    x = torch.randn(3, 4, 5, 2)
    mixed = exchange_box(x, (1, 2, 3, 5))
    assert torch.equal(mixed[0, 1:3, 2:], x[2, 1:3, 2:])
    assert not torch.equal(mixed, x)
    assert torch.equal(exchange_box(mixed, (1, 2, 3, 5)), x)
    with pytest.raises(ValueError, match=r"x must be a map \(B, H, W, C\), got \(3, 4\)"):
        exchange_box(x[:, :, 0, 0], (0, 0, 1, 1))


@pytest.mark.parametrize("frozen_stages", [-1, 0, 1, 4])
def test_frozen_stages(frozen_stages):
    """The position embedding freezes with the first stage; class attention never does."""
    backbone = make(with_cls_token=True, frozen_stages=frozen_stages).train()
    frozen = [f"stages.{i}." for i in range(frozen_stages)]
    frozen += [f"norm{i}." for i in range(frozen_stages)]
    frozen += ["patch_embed."] if frozen_stages >= 0 else []
    for name, parameter in backbone.named_parameters():
        assert parameter.requires_grad != name.startswith(tuple(frozen)), name
    for name, module in backbone.named_modules():
        if name not in ("", "stages"):
            assert module.training != f"{name}.".startswith(tuple(frozen)), name


def test_statistics_stay():
    backbone = make(norm_eval=True).train()
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 3
    assert not any(norm.training for norm in norms)
    assert backbone.patch_embed.conv[0].training


def test_layer_depth():
    backbone = make(with_cls_token=True)
    depths = {name: backbone.get_layer_depth(name) for name, _ in backbone.named_parameters()}
    assert {total for _, total in depths.values()} == {8}
    assert {depth for depth, _ in depths.values()} == set(range(8))
    for name, depth in {
        "patch_embed.proj.weight": 0,
        "stages.0.blocks.1.attn.v.weight": 2,
        "stages.0.downsample.pos_embed": 2,
        "stages.1.blocks.0.attn.qkv.weight": 3,
        "stages.3.blocks.0.mlp.fc1.weight": 6,
        "post_blocks.0.attn.q.weight": 7,
        "cls_token": 7,
        "norm3.weight": 7,
    }.items():
        assert depths[name][0] == depth, name


@both
def test_pretrained_at_another_image_size(kind, tmp_path):
    """Dense prediction starts from a classifier. The stored position embedding keeps its size."""
    source = classifier(kind, seed=1)
    path = str(tmp_path / "classifier.pth")
    torch.save({f"backbone.{k}": v for k, v in source.state_dict().items()}, path)
    init_cfg = dict(type="Pretrained", checkpoint=path, prefix="backbone.")
    backbone = classifier(kind, init_cfg=init_cfg, out_indices=(1, 3))  # norm1 is new
    backbone.init_weights()
    image = torch.randn(1, 3, 40, 96)
    torch.testing.assert_close(flat(backbone.eval()(image))[1:], flat(source.eval()(image)))
    larger = classifier(kind, init_cfg=init_cfg, pretrain_img_size=(96, 32))
    larger.init_weights()
    assert larger.stages[0].downsample.pos_embed.shape == (1, 24, 6, 2)
    wider = classifier(kind, init_cfg=init_cfg, arch=TINY | dict(mlp_ratio=2.0))
    with pytest.raises(ValueError, match=rf"does not fit this {kind.__name__}.*mlp.fc1.weight"):
        wider.init_weights()


def test_default_initialisation():
    torch.manual_seed(0)
    backbone = VOLO(TINY | dict(embed_dims=96), with_cls_token=True)
    backbone.init_weights()
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.1), name
            assert module.bias is None or not module.bias.any(), name
    for embed in (backbone.cls_token, backbone.stages[0].downsample.pos_embed):
        assert embed.std().item() == pytest.approx(0.02, rel=0.2)


def test_compile():
    """One graph in training, with a rectangle, and its gradients."""
    arch = dict(embed_dims=12, depths=(1, 1), num_heads=(3, 4), stem_dims=4)
    backbone, image = classifier(arch=arch, out_indices=(1,)), torch.randn(2, 3, 32, 48)
    torch.compiler.reset()
    compiled = torch.compile(backbone, fullgraph=True, backend="aot_eager")
    results = []
    for model in (backbone, compiled):
        backbone.zero_grad()
        outs = flat(model(image, mix_box=(0, 1, 2, 2)))
        sum(out.square().sum() for out in outs).backward()
        results.append([*outs, *(p.grad.clone() for p in backbone.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@both
def test_export(kind):
    backbone, image = make(kind, with_cls_token=True).eval(), torch.randn(1, 3, 40, 24)
    program = torch.export.export(backbone, (image,), strict=False)
    torch.testing.assert_close(flat(program.module()(image)), flat(backbone(image)))


def test_autocast():
    backbone, image = classifier().eval(), torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        wanted = flat(backbone(image))
        with torch.autocast("cpu", torch.bfloat16):
            outs = flat(backbone(image))
    for out, expected in zip(outs, wanted, strict=True):
        torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.1)


def test_mixers_of_the_first_stage():
    def kinds(backbone: VOLO) -> set[type]:
        return {type(block.attn) for block in backbone.stages[0].blocks}

    assert kinds(make()) == {OutlookAttention}
    assert kinds(make(ELSAVOLO)) == {ELSA}
    elsa = make(ELSAVOLO, kernel_size=3, lam=0.0, drop_rate=0.1, attn_drop_rate=0.2).stages[0]
    attn = elsa.blocks[1].attn
    assert (attn.kernel_size, attn.lam, attn.gamma, attn.qk_scale) == (3, 0, 1, 1)
    assert (attn.attn_proj.drop_rate, attn.proj_drop.p) == (0.2, 0.1)
    shifted = make(mixer=dict(type="WindowAttention", window_size=3)).stages[0].blocks
    assert [block.attn.shift for block in shifted] == [False, True]


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        (dict(arch="d6"), ValueError, r"arch must be one of \['d1', .*'d5'\], got 'd6'"),
        (dict(arch=dict(embed_dims=8)), ValueError, r"arch must have the keys.*\['embed_dims'\]"),
        (dict(arch=TINY | dict(num_heads=(3, 4))), ValueError, "same number of stages"),
        (dict(arch=TINY | dict(num_heads=(5, 4, 4, 4))), ValueError, "num_heads.*embed_dims=12"),
        (dict(arch=TINY | dict(num_heads=(3, 4, 5, 4))), ValueError, "num_heads=5"),
        (dict(arch=TINY | dict(mlp_ratio=0)), ValueError, "mlp_ratio must .* got 0"),
        (dict(arch=TINY | dict(stem_dims=0)), ValueError, "stem_dims must be at least 1, got 0"),
        (
            dict(with_cls_token=True, out_indices=(0, 2)),
            ValueError,
            r"out_indices must have the last stage 3, .*with_cls_token=True reads, got \(0, 2\)",
        ),
        (dict(with_cls_token=1), TypeError, "with_cls_token must be True or False, got 1"),
        (dict(out_indices=(4,)), ValueError, r"out_indices must .* 0 to 3, got \(4,\)"),
        (dict(pretrain_img_size=15), ValueError, "pretrain_img_size must be at least .*16, got 15"),
        (dict(mixer=dict(type="Outlook")), ValueError, "unknown mixer 'Outlook'"),
        (dict(drop_rate=2), ValueError, r"drop_rate must be in \[0, 1\], got 2"),
    ],
)
def test_bad_arguments(kwargs, error, message):
    with pytest.raises(error, match=message):
        make(**kwargs)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        (dict(kernel_size=4), ValueError, "kernel_size must be a positive odd number, got 4"),
        (dict(group_width=0), ValueError, "group_width must be at least 1, got 0"),
        (dict(lam="1"), TypeError, "lam must be a number, got '1'"),
        (dict(arch="tiny"), ValueError, "arch must be one of .* got 'tiny'"),
    ],
)
def test_bad_arguments_of_elsa(kwargs, error, message):
    with pytest.raises(error, match=message):
        make(ELSAVOLO, **kwargs)
