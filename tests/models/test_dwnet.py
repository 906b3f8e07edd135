"""The DWNet backbone; its agreement with the official code is in test_dwnet_parity.py."""

import copy

import pytest
import torch
from torch import nn

from mmlocal.analysis.flops import count_macs
from mmlocal.models.backbones import DWNet

ARCH = dict(embed_dims=8, depths=(1, 1, 2, 1))
SPATIAL = ("static", "dynamic", "inhomogeneous")
spatials = pytest.mark.parametrize("spatial", SPATIAL)
CLASSIFIER = dict(pad_size_divisor=1, out_norm="LN", out_indices=(3,))
BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


def make(spatial: str = "dynamic", seed: int = 0, **kwargs) -> DWNet:
    torch.manual_seed(seed)
    return DWNet(**dict(arch=ARCH, spatial=spatial, num_heads=4, drop_path_rate=0.0) | kwargs)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("arch", "spatial", "parameters", "giga_macs"),
    [
        ("tiny", "static", 24_172_744, 3.742),
        ("tiny", "dynamic", 51_131_752, 3.771),
        ("tiny", "inhomogeneous", 26_244_280, 4.389),
        ("base", "static", 74_347_112, 12.845),
        ("base", "dynamic", 161_597_928, 12.935),
        ("base", "inhomogeneous", 80_253_608, 14.372),
    ],
)
def test_size_of_the_classifiers(arch, spatial, parameters, giga_macs):
    """With 1000 classes. The official counter adds 10 MACs per channel and position for norms."""
    with torch.device("meta"):
        backbone = DWNet(arch, spatial, **CLASSIFIER).eval()
        head = nn.Linear(backbone.num_features[-1], 1000)
        macs = sum(count_macs(backbone, torch.zeros(1, 3, 224, 224)).values())
    assert count(backbone) + count(head) == parameters
    macs += head.weight.numel()
    assert macs == pytest.approx(giga_macs * 1e9, rel=0.01)
    maps = zip(backbone.depths, backbone.num_features, (56, 28, 14, 7), strict=True)
    norms = sum(10 * depth * dims * side**2 for depth, dims, side in maps)
    assert macs + norms == pytest.approx(giga_macs * 1e9, rel=0.001)


@pytest.mark.parametrize(
    ("arch", "spatial", "parameters"),
    [
        ("tiny", "static", 23_405_088),
        ("tiny", "dynamic", 50_364_096),
        ("base", "static", 73_323_904),
        ("base", "dynamic", 160_574_720),
    ],
)
def test_size_of_the_dense_backbones(arch, spatial, parameters):
    with torch.device("meta"):
        assert count(DWNet(arch, spatial)) == parameters


@spatials
@pytest.mark.parametrize("size", [(4, 4), (5, 7), (33, 97), (64, 64)], ids=str)
def test_output_shapes(size, spatial):
    backbone = make(spatial, out_indices=(0, 2, 3)).eval()
    with torch.no_grad():
        outs = backbone(torch.randn(1, 3, *size))
    expected = [
        (1, 8 * 2**i, -(-size[0] // (4 * 2**i)), -(-size[1] // (4 * 2**i))) for i in (0, 2, 3)
    ]
    assert [tuple(out.shape) for out in outs] == expected
    assert all(out.is_contiguous() and out.isfinite().all() for out in outs)


@spatials
@pytest.mark.parametrize("settings", [{}, CLASSIFIER], ids=["dense", "classifier"])
def test_every_parameter_gets_a_gradient(spatial, settings):
    """DistributedDataParallel then needs no ``find_unused_parameters``."""
    backbone = make(spatial, use_abs_pos_embed=True, **settings)
    outs = backbone(torch.randn(2, 3, 72, 56))
    sum(out.square().sum() for out in outs).backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@spatials
def test_checkpointing_changes_nothing(spatial):
    """Values, gradients and running statistics are the same, random drops included."""
    results = []
    for with_cp in (False, True):
        backbone = make(spatial, with_cp=with_cp, drop_path_rate=0.5, drop_rate=0.2)
        image = torch.randn(4, 3, 40, 36, requires_grad=True)
        torch.manual_seed(1)
        outs = backbone(image)
        sum(out.square().sum() for out in outs).backward()
        grads = [p.grad for p in backbone.parameters()]
        results.append([*outs, image.grad, *grads, *backbone.buffers()])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_export():
    """With a batch of any size; symbolic heights and widths take minutes to trace."""
    backbone = make(arch=dict(embed_dims=8, depths=(1, 1)), out_indices=(0, 1)).eval()
    image, other = torch.randn(2, 3, 37, 65), torch.randn(3, 3, 37, 65)
    program = torch.export.export(backbone, (image,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    for one, expected in zip(program.module()(other), backbone(other), strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-5)


def test_compile_trains():
    results = []
    for compiles in (False, True):
        backbone = make(arch=dict(embed_dims=8, depths=(1,)), out_indices=(0,), with_cp=True)
        call = backbone
        if compiles:
            call = torch.compile(backbone, fullgraph=True, backend="aot_eager")
        torch.manual_seed(1)
        sum(out.square().sum() for out in call(torch.randn(2, 3, 24, 32))).backward()
        results.append([*(p.grad for p in backbone.parameters()), *backbone.buffers()])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@spatials
def test_amp_trains(spatial):
    backbone = make(spatial, with_cp=True)
    with torch.autocast("cpu", torch.bfloat16):
        outs = backbone(torch.randn(2, 3, 48, 40))
    sum(out.float().square().sum() for out in outs).backward()
    assert all(p.grad.isfinite().all() for p in backbone.parameters())


def test_one_image_in_training():
    """Only the predictors of the dynamic network see one value per channel."""
    image = torch.randn(1, 3, 64, 64)
    with pytest.raises(ValueError, match="Train with at least 2 images per process, with SyncBN"):
        make("dynamic")(image)
    make("dynamic", norm_eval=True).train()(image)
    make("dynamic").eval()(image)
    make("static")(image)
    make("inhomogeneous")(image)


@pytest.mark.parametrize("frozen_stages", [-1, 0, 2, 4])
def test_frozen_stages(frozen_stages):
    """Frozen batch norms keep their statistics."""
    backbone = make(frozen_stages=frozen_stages).train()
    parts = ["patch_embed."] if frozen_stages >= 0 else []
    parts += [f"stages.{i}." for i in range(frozen_stages)]
    parts += [f"norm{i}." for i in range(frozen_stages)]
    frozen = {n for n, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in backbone.named_parameters() if n.startswith(tuple(parts))}
    before = copy.deepcopy(dict(backbone.named_buffers()))
    backbone(torch.randn(2, 3, 32, 40))
    same = {name for name, b in backbone.named_buffers() if torch.equal(b, before[name])}
    assert same == {name for name in before if name.startswith(tuple(parts))}


def test_norm_cfg():
    cfg = dict(type="SyncBN", eps=1e-3, momentum=0.2, requires_grad=False)
    backbone = make(norm_cfg=cfg, frozen_stages=1).train()
    norms = [m for m in backbone.modules() if isinstance(m, BATCH_NORMS)]
    assert len(norms) == 5 * 5 + 4  # with the predictors and the outputs
    for norm in norms:
        assert type(norm) is nn.SyncBatchNorm
        assert (norm.eps, norm.momentum) == (1e-3, 0.2)
        assert not norm.weight.requires_grad
    assert not backbone.stages[0].blocks[0].bn1.training
    assert backbone.stages[1].blocks[0].bn1.training
    plain = make()
    assert {type(m) for m in plain.modules() if isinstance(m, BATCH_NORMS)} == {nn.BatchNorm2d}
    assert {(m.eps, m.momentum) for m in plain.modules() if isinstance(m, BATCH_NORMS)} == {
        (1e-5, 0.1)
    }
    image = torch.randn(2, 3, 32, 32)
    synced = make(norm_cfg=dict(type="SyncBN"))  # in one process
    for one, other in zip(synced(image), plain(image), strict=True):
        assert torch.equal(one, other)


def test_default_initialisation():
    """Truncated normal in linear layers; PyTorch's default in convolutions, as officially."""
    backbone = make("inhomogeneous", arch=dict(embed_dims=32, depths=(1, 1)), out_indices=(0, 1))
    before = copy.deepcopy(dict(backbone.named_parameters()))
    backbone.init_weights()
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.1), name
            assert module.bias is None or not module.bias.any()
        elif isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
            assert torch.equal(module.weight, before[f"{name}.weight"]), name


@pytest.mark.parametrize("spatial", SPATIAL)
@pytest.mark.parametrize("other", SPATIAL)
def test_checkpoint_of_another_variant(spatial, other, tmp_path):
    """Half of the names are the same. MMEngine would leave the other half random."""
    path = str(tmp_path / "weights.pth")
    source = make(other, seed=1)
    torch.save({f"backbone.{k}": v for k, v in source.state_dict().items()}, path)
    cfg = dict(type="Pretrained", checkpoint=path, prefix="backbone.")
    backbone = make(spatial, init_cfg=cfg)
    model = nn.ModuleDict(dict(backbone=backbone))
    weights = torch.load(path)
    if spatial == other:
        backbone.init_weights()
        for name, value in source.state_dict().items():
            assert torch.equal(backbone.state_dict()[name], value), name
        model.load_state_dict(weights)
        return
    before = copy.deepcopy(backbone.state_dict())
    message = f"is of a DWNet with spatial='{other}', but this one has spatial='{spatial}'"
    with pytest.raises(ValueError, match=message):
        backbone.init_weights()
    with pytest.raises(ValueError, match=message):
        model.load_state_dict(weights, strict=False)
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())


def test_a_classifier_gives_no_output_norm(tmp_path):
    """Its LayerNorm has the name and the shape of the batch norm of the last output."""
    path = str(tmp_path / "weights.pth")
    source = make(seed=1, **CLASSIFIER)
    nn.init.normal_(source.norm3.weight)
    torch.save(source.state_dict(), path)
    backbone = make(init_cfg=dict(type="Pretrained", checkpoint=path))
    backbone.init_weights()
    assert (backbone.norm3.weight == 1).all()
    name = "stages.3.blocks.0.conv1.weight"
    assert torch.equal(backbone.state_dict()[name], source.state_dict()[name])
    classifier = make(init_cfg=dict(type="Pretrained", checkpoint=path), **CLASSIFIER)
    classifier.init_weights()
    assert torch.equal(classifier.norm3.weight, source.norm3.weight)
    dense = make(seed=2)
    nn.init.normal_(dense.norm3.weight)
    backbone.load_state_dict(dense.state_dict())
    assert torch.equal(backbone.norm3.weight, dense.norm3.weight)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(arch="small"), ValueError, r"arch must be one of \['base', 'tiny'\], got 'small'"),
        (dict(arch=dict(embed_dims=8)), ValueError, "arch must have the keys"),
        (dict(spatial="inhomo"), ValueError, "spatial must be one of static, dynamic, inhomog"),
        (dict(out_norm="GN"), ValueError, "out_norm must be one of BN, LN, got 'GN'"),
        (dict(norm_cfg=dict(type="GN")), ValueError, "type of norm_cfg must be one of BN, SyncBN"),
        (dict(norm_cfg=dict(type="BN", a=1)), ValueError, r"norm_cfg may have .*, got \['a'\]"),
        (dict(norm_cfg="BN"), TypeError, "norm_cfg must be a dict, got 'BN'"),
        (dict(pad_size_divisor=0), ValueError, "pad_size_divisor must be at least 1, got 0"),
        (dict(kernel_size=4), ValueError, "kernel_size must be a positive odd number, got 4"),
        (dict(spatial="inhomogeneous", num_heads=3), ValueError, "num_heads must divide embed_dim"),
        (dict(num_heads=(4, 4)), ValueError, "for the same number of stages"),
        (dict(num_heads="four"), TypeError, "num_heads must be a sequence of integers"),
        (dict(arch=dict(embed_dims=2, depths=(1,)), out_indices=(0,)), ValueError, "reduction"),
    ],
    ids=str,
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        make(**arguments)
