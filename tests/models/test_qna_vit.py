"""The QnA-ViT backbone; its agreement with the official code is in test_qna_parity.py."""

import copy
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tools.copies import run_copy
from torch import nn

from mmlocal.layers import DropPath, EvenWindowAttention, QnA
from mmlocal.layers.learned_queries import QueryScores
from mmlocal.models.backbones import QnAViT
from mmlocal.models.backbones.downsampling import ConvDownsample, DownsampleSkip, NesTDownsample

TINY = dict(
    embed_dims=8,
    attn_depths=(0, 1, 2, 1),
    qna_depths=(1, 2, 1, 0),
    attn_heads=(1, 2, 2, 4),
    qna_heads=(2, 2, 4, 4),
)
TWO = dict(embed_dims=8, attn_depths=(0, 1), qna_depths=(1, 0), attn_heads=(1, 2), qna_heads=(2, 4))
BLOCKS = ["stages.0.blocks.0", "stages.0.downsample", "stages.1.blocks.0", "stages.1.blocks.1",
          "stages.1.blocks.2", "stages.1.downsample", "stages.2.blocks.0", "stages.2.blocks.1",
          "stages.2.blocks.2", "stages.2.downsample", "stages.3.blocks.0"]  # fmt: skip

stems = pytest.mark.parametrize("stem", ["patch", "resnet"])


def make(seed: int = 0, **kwargs) -> QnAViT:
    torch.manual_seed(seed)
    defaults = dict(arch=TINY, window_sizes=(4, 4, 5, 3), drop_path_rate=0.0)
    return QnAViT(**defaults | kwargs)


def cotangents(outs) -> list[torch.Tensor]:
    """Make gradients that vary. After a LayerNorm, ones or the outputs give constant products."""
    return [torch.linspace(-3, 9, o.numel()).cos().view(o.shape) for o in outs]


def results(model: nn.Module, backbone: QnAViT, image: torch.Tensor) -> dict[str, torch.Tensor]:
    """Compute outputs and gradients of ``model``, which is ``backbone`` or compiled from it."""
    outs = model(image)
    live = {n: p for n, p in backbone.named_parameters() if p.requires_grad}
    learning = [out for out in outs if out.requires_grad]
    grads = torch.autograd.grad(learning, list(live.values()), cotangents(learning))
    named = {f"grad of {name}": grad for name, grad in zip(live, grads, strict=True)}
    return named | {f"out {i}": out.detach() for i, out in enumerate(outs)}


@pytest.mark.parametrize(
    ("arch", "parameters"),
    [
        ("tiny", 15_715_560),
        ("tiny_7x7", 15_753_960),
        ("small", 24_971_560),
        ("base", 55_670_008),
    ],
)
def test_published_models(arch, parameters):
    """Official classifiers of 1000 classes have as many parameters. Images have 224 pixels."""
    with torch.device("meta"):
        backbone = QnAViT(arch, out_indices=(3,))
        modules = (backbone, nn.Linear(backbone.num_features[-1], 1000))
        assert sum(p.numel() for m in modules for p in m.parameters()) == parameters
        outs = QnAViT(arch).requires_grad_(False)(torch.zeros(1, 3, 224, 224))
    dims = 96 if arch == "base" else 64
    assert [tuple(out.shape) for out in outs] == [
        (1, dims * 2**i, 56 // 2**i, 56 // 2**i) for i in range(4)
    ]


def test_windows_of_the_published_models():
    """At 224 pixels, the third and fourth stage attend globally."""
    with torch.device("meta"):
        backbone = QnAViT("tiny").requires_grad_(False)
        calls = []
        for module in backbone.modules():
            if isinstance(module, EvenWindowAttention):
                module.w_msa.register_forward_pre_hook(lambda module, args: calls.append(args))
        backbone(torch.zeros(2, 3, 224, 224))
    assert [(len(x), window, mask) for x, window, mask in calls] == [
        *[(2, (14, 14), None)] * 4,
        *[(2, (7, 7), None)] * 2,
    ]


@stems
@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (3,), (0,), (1, 2), [2, 0]], ids=str)
@pytest.mark.parametrize("size", [(4, 4), (5, 7), (33, 97), (61, 97), (64, 64)], ids=str)
def test_output_shapes(size, out_indices, stem):
    backbone = make(out_indices=out_indices, stem=stem).eval()
    with torch.no_grad():
        outs = backbone(torch.randn(1, 3, *size))
    assert isinstance(outs, tuple)
    expected = []
    for i in sorted(out_indices):
        stride = 4 * 2**i
        # ceil(ceil(H / 4) / 2**i) is ceil(H / (4 * 2**i))
        expected.append((1, 8 * 2**i, -(-size[0] // stride), -(-size[1] // stride)))
    assert [tuple(out.shape) for out in outs] == expected
    assert all(out.is_contiguous() and out.isfinite().all() for out in outs)


@stems
@pytest.mark.parametrize("skip", ["conv", "avgpool"])
@pytest.mark.parametrize("kernel_size", [1, 3, 7])
def test_options_train(kernel_size, skip, stem):
    backbone = make(
        arch=TINY | dict(kernel_size=kernel_size),
        stem=stem,
        downsample_skip=skip,
        in_channels=2,
        num_queries=3,
        normalize_query=(True, False, True, False),
        mlp_ratio=2,
        layer_scale_init_value=0.1,
        drop_path_rate=0.2,
    )
    layers = [m for m in backbone.modules() if isinstance(m, QnA)]
    assert {m.kernel_size for m in layers} == {kernel_size}
    assert {m.num_queries for m in layers} == {3}
    assert [m.normalize_query for m in layers] == [True, True, False, False, False, True, True]
    outs = backbone(torch.randn(2, 2, 30, 41))
    assert [tuple(o.shape[2:]) for o in outs] == [(8, 11), (4, 6), (2, 3), (1, 2)]
    torch.autograd.backward(outs, cotangents(outs))
    assert all(p.grad.isfinite().all() for p in backbone.parameters())


def test_padding_is_not_attended():
    """Neither the padding of a map's windows nor the rest of a batch has an effect."""
    backbone = make(arch=TWO | dict(attn_depths=(2, 1), qna_depths=(0, 0)), window_sizes=(4, 4),
                    out_indices=(0,)).double().eval()  # fmt: skip
    image = torch.randn(1, 3, 28, 20, dtype=torch.float64)  # 7x5 tokens: windows 4x3
    (out,) = backbone(image)
    # tokens of the last window alone, as their own image
    (corner,) = backbone(image[:, :, 16:, 12:])
    torch.testing.assert_close(out[:, :, 4:, 3:], corner, rtol=0, atol=1e-12)
    (batch,) = backbone(torch.cat((torch.randn_like(image), image)))
    torch.testing.assert_close(batch[1:], out, rtol=0, atol=1e-12)


def first_gradient(padded: bool, dtype: torch.dtype | None) -> float:
    """Compute the norm of the gradient at random weights, for images with or without padding."""
    backbone = make()
    image = torch.randn(2, 3, 96, 96)
    if padded:
        image[0, :, 48:] = 0
        image[1, :, :, 64:] = 0
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        outs = backbone(image)
    losses = [(o * c).mean() for o, c in zip(outs, cotangents(outs), strict=True)]
    grads = torch.autograd.grad(sum(losses), list(backbone.parameters()))
    return torch.stack([grad.norm() for grad in grads]).norm().item()


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16], ids=str)
def test_padding_does_not_blow_up_the_first_gradient(dtype):
    """Padding stays exactly 0 in all layers, and PyTorch's norms have a slope of 1000 there."""
    plain, padded = (first_gradient(padded, dtype) for padded in (False, True))
    print(f"norm of the gradient: {plain:.3g}, with padding {padded:.3g}")
    assert 0 < padded < 30 * plain


@stems
@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (3,), (0, 1), (2,), (1, 3)], ids=str)
def test_every_parameter_gets_a_gradient(out_indices, stem):
    """DistributedDataParallel then needs no ``find_unused_parameters``."""
    backbone = make(out_indices=out_indices, stem=stem, layer_scale_init_value=0.1)
    outs = backbone(torch.randn(1, 3, 132, 100))
    torch.autograd.backward(outs, cotangents(outs))
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_stages_after_the_last_output_are_not_built():
    """Parameters of unused stages would have no gradient. The names of the others do not change."""
    full, part = make(), make(out_indices=(0, 1), frozen_stages=4)
    assert [stage.downsample is not None for stage in part.stages] == [True, False]
    keys = part.state_dict().keys()
    assert keys < full.state_dict().keys()
    part.load_state_dict({k: v for k, v in full.state_dict().items() if k in keys})
    image = torch.randn(1, 3, 40, 48)
    for a, b in zip(full.eval()(image)[:2], part.eval()(image), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("frozen_stages", [-1, 2])
def test_checkpointing_changes_nothing(frozen_stages):
    """Values and gradients are the same, random drops included."""
    found, image = [], torch.randn(4, 3, 40, 36)
    for with_cp in (False, True):
        backbone = make(with_cp=with_cp, drop_path_rate=0.5, frozen_stages=frozen_stages,
                        stem="resnet").train()  # fmt: skip
        calls = []
        backbone.stages[3].blocks[0].attn.register_forward_hook(
            lambda *args, calls=calls: calls.append(1)
        )
        torch.manual_seed(1)
        found.append(results(backbone, backbone, image))
        assert len(calls) == 1 + with_cp
    plain, checkpointed = found
    assert plain.keys() == checkpointed.keys()
    assert all(torch.equal(x, checkpointed[name]) for name, x in plain.items())


@stems
@pytest.mark.parametrize("frozen_stages", [-1, 0, 1, 3, 4])
def test_frozen_stages(frozen_stages, stem):
    backbone = make(
        frozen_stages=frozen_stages, out_indices=(0, 2, 3), stem=stem, drop_path_rate=0.5
    )
    frozen = [f"stages.{i}." for i in range(frozen_stages)]
    frozen += [f"norm{i}." for i in range(frozen_stages)]
    frozen += ["patch_embed."] if frozen_stages >= 0 else []
    assert backbone.train() is backbone
    names = {n for n, p in backbone.named_parameters() if not p.requires_grad}
    assert names == {n for n, _ in backbone.named_parameters() if n.startswith(tuple(frozen))}
    assert bool(names) == (frozen_stages >= 0)
    for name, module in backbone.named_modules():
        if name and name != "stages":
            assert module.training != f"{name}.".startswith(tuple(frozen)), name
    before = {n: x.clone() for n, x in backbone.state_dict().items()}
    outs = backbone(torch.randn(2, 3, 32, 40))
    learning = [out for out in outs if out.requires_grad]
    assert len(learning) == {-1: 3, 0: 3, 1: 2, 3: 1, 4: 0}[frozen_stages]
    if learning:
        torch.autograd.backward(learning, cotangents(learning))
        live = [p for p in backbone.parameters() if p.requires_grad]
        torch.optim.SGD(live, lr=0.1).step()
    moved = {n for n, x in backbone.state_dict().items() if not torch.equal(x, before[n])}
    assert not any(name.startswith(tuple(frozen)) for name in moved)  # nor any statistics
    assert moved or frozen_stages == 4
    assert not any(module.training for module in backbone.eval().modules())


@pytest.mark.parametrize("norm_eval", [False, True])
def test_norm_eval(norm_eval):
    """Whether the stem's statistics move in training; its weights learn in any case."""
    backbone = make(stem="resnet", norm_eval=norm_eval).train()
    assert backbone.patch_embed.norm.training != norm_eval
    assert backbone.patch_embed.conv.training
    before = backbone.patch_embed.norm.running_mean.clone()
    outs = backbone(torch.randn(2, 3, 32, 40))
    assert torch.equal(backbone.patch_embed.norm.running_mean, before) == norm_eval
    torch.autograd.backward(outs, cotangents(outs))
    assert backbone.patch_embed.norm.weight.grad.any()
    assert not backbone.eval().patch_embed.norm.training
    assert make(norm_eval=True).train().patch_embed.training  # a stem without such a norm


@pytest.mark.parametrize(
    ("arch", "rate", "blocks"),
    [("tiny", 0.05, 16), ("tiny_7x7", 0.05, 16), ("small", 0.2, 28), ("base", 0.5, 28)],
)
def test_drop_path_rates(arch, rate, blocks):
    """Rates rise linearly over all blocks in the order of the network, including downsampling."""
    with torch.device("meta"):
        backbone = QnAViT(arch, drop_path_rate=rate)
        part = QnAViT(arch, drop_path_rate=rate, out_indices=(1,))

    def rates(backbone: QnAViT) -> list[float]:
        found = []
        for stage in backbone.stages:
            path = [*stage.blocks, *([stage.downsample] if stage.downsample else [])]
            found += [m.drop_prob for b in path for m in b.modules() if isinstance(m, DropPath)]
        return found

    expected = torch.linspace(0, rate, blocks, dtype=torch.float64).tolist()
    assert rates(backbone) == pytest.approx(expected)
    # those of a part of the network are those that it has in the whole
    assert rates(part) == pytest.approx(expected[: len(rates(part))])
    assert len(rates(part)) == 2 + 1 + 3


def test_default_initialisation():
    """The initialisation is official: LeCun normal, positions and biases 0, no LayerScale."""
    torch.manual_seed(0)
    backbone = QnAViT("tiny", stem="resnet", layer_scale_init_value=0.1)
    backbone.init_weights()
    kinds = (nn.Linear, nn.Conv2d, QueryScores)
    maps = [m for m in backbone.modules() if isinstance(m, kinds)]
    # the stem; 10 QnA layers of 3, 6 attentions of 2, an MLP each; the skips
    assert len(maps) == 1 + 10 * 3 + 6 * 2 + 16 * 2 + 3
    for module in maps:
        std = module.weight[0].numel() ** -0.5
        assert module.weight.std().item() == pytest.approx(std, rel=0.05), module
        assert module.weight.abs().max() < 2.28 * std, module
        bias = getattr(module, "bias", None)
        assert bias is None or not bias.any(), module
    for name, parameter in backbone.named_parameters():
        if name.endswith(("rel_pos_table", "relative_position_bias_table")):
            assert not parameter.any(), name
        elif name.endswith("attn_scale_table"):
            assert parameter.std().item() == pytest.approx(0.02, rel=0.3), name
        elif "gamma" in name:
            assert (parameter == 0.1).all(), name
        elif "norm" in name:
            assert (parameter == float(name.endswith("weight"))).all(), name
    assert not any("bias" in n and "norm" not in n and "mlp" not in n and "table" not in n
                   for n, _ in backbone.named_parameters())  # fmt: skip


def save(backbone: QnAViT, path: Path, prefix: str = "") -> str:
    torch.save({prefix + k: v for k, v in backbone.state_dict().items()}, path)
    return str(path)


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_pretrained(tmp_path, prefix):
    source = make(seed=1, stem="resnet")
    path = save(source, tmp_path / "weights.pth", prefix)
    init_cfg = dict(type="Pretrained", checkpoint=path)
    if prefix:
        init_cfg["prefix"] = prefix
    backbone = make(seed=2, stem="resnet", init_cfg=init_cfg)
    backbone.init_weights()
    for name, parameter in source.state_dict().items():
        assert torch.equal(backbone.state_dict()[name], parameter), name


def test_pretrained_with_other_windows(tmp_path):
    """Tables are resized as the official fine-tuning resizes them; the rest is copied."""
    source = make(seed=1)
    for name, parameter in source.named_parameters():
        if name.endswith("table"):
            nn.init.normal_(parameter)
    path = save(source, tmp_path / "weights.pth")
    backbone = make(
        seed=2,
        arch=TINY | dict(kernel_size=5),
        window_sizes=(4, 7, 3, 3),
        init_cfg=dict(type="Pretrained", checkpoint=path),
    )
    backbone.init_weights()
    resized = set()
    for name, theirs in source.state_dict().items():
        ours = backbone.state_dict()[name]
        if ours.shape != theirs.shape:
            resized.add(name.rpartition(".")[2])
            old, new = (round(len(table) ** 0.5) for table in (theirs, ours))
            image = theirs.t().reshape(1, -1, old, old)
            image = F.interpolate(image, (new, new), mode="bicubic", antialias=True)
            theirs = image.flatten(2)[0].t()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6, msg=name)
    assert resized == {"relative_position_bias_table", "rel_pos_table", "attn_scale_table"}
    backbone(torch.randn(1, 3, 60, 52))


def test_pretrained_classifier_lacks_the_other_norms(tmp_path):
    source = make(seed=1, out_indices=(3,))
    nn.init.normal_(source.norm3.weight)
    path = save(source, tmp_path / "classifier.pth", "backbone.")
    backbone = make(init_cfg=dict(type="Pretrained", checkpoint=path, prefix="backbone"))
    backbone.init_weights()
    assert torch.equal(backbone.norm3.weight, source.norm3.weight)
    ours, theirs = (model.stages[0].downsample.attn.query for model in (backbone, source))
    assert torch.equal(ours, theirs)
    assert (backbone.norm0.weight == 1).all()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(arch=TINY | dict(qna_depths=(1, 2, 2, 0))), "missing .*stages.2.blocks.3"),
        (dict(arch="tiny"), "mismatched"),
        (dict(num_queries=3), "mismatched .*query"),
        (dict(stem="resnet"), "missing .*patch_embed.conv.weight"),
        (dict(layer_scale_init_value=0.1), "missing .*gamma"),
    ],
    ids=["depth", "arch", "queries", "stem", "layer-scale"],
)
def test_checkpoint_of_another_architecture(tmp_path, kwargs, message):
    path = save(make(), tmp_path / "weights.pth")
    backbone = make(**kwargs, init_cfg=dict(type="Pretrained", checkpoint=path))
    before = copy.deepcopy(backbone.state_dict())
    with pytest.raises(ValueError, match=f"does not fit this QnAViT.*{message}"):
        backbone.init_weights()
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_layer_depth(prefix):
    """The depth rises by one with each block. All other parameters are in the last layer."""
    backbone = make(stem="resnet")
    depths = {
        name: backbone.get_layer_depth(prefix + name, prefix)
        for name, _ in backbone.named_parameters()
    }
    assert {total for _, total in depths.values()} == {len(BLOCKS) + 2}
    for name, (depth, _) in depths.items():
        (block,) = [i for i, b in enumerate(BLOCKS) if name.startswith(f"{b}.")] or [None]
        if block is not None:
            assert depth == block + 1, name
        else:
            assert name.startswith(("patch_embed.", "norm")), name
            assert depth == (0 if name.startswith("patch_embed.") else len(BLOCKS) + 1), name
    assert {depth for depth, _ in depths.values()} == set(range(len(BLOCKS) + 2))
    if prefix:
        last = len(BLOCKS) + 1
        assert backbone.get_layer_depth("head.fc.weight", prefix) == (last, last + 1)


def test_state_dict_does_not_depend_on_the_input():
    backbone = make()
    keys = set(backbone.state_dict())
    assert keys == {name for name, _ in backbone.named_parameters()}
    image = torch.randn(1, 3, 100, 36)
    expected = backbone.eval()(image)
    assert set(backbone.state_dict()) == keys
    other = make(seed=5, stem="patch")
    other.load_state_dict(backbone.state_dict())
    for a, b in zip(other.eval()(image), expected, strict=True):
        assert torch.equal(a, b)


def test_copy():
    backbone = make(frozen_stages=1)
    image = torch.randn(1, 3, 40, 36)
    twin = copy.deepcopy(backbone)
    assert all(torch.equal(a, b) for a, b in zip(twin(image), backbone(image), strict=True))
    assert not twin.patch_embed.proj.weight.requires_grad


def test_arch_is_not_changed():
    arch = copy.deepcopy(TWO)
    make(arch=TWO, window_sizes=(4, 3), out_indices=(0, 1))
    assert arch == TWO
    assert make(arch={k: list(v) if k != "embed_dims" else v for k, v in TINY.items()})


@stems
def test_float64(stem):
    backbone = make(stem=stem, drop_path_rate=0.5).double()
    outs = backbone(torch.randn(2, 3, 36, 52, dtype=torch.float64))
    assert all(out.dtype == torch.float64 for out in outs)
    sum(out.sum() for out in outs).backward()


@stems
@pytest.mark.parametrize("with_cp", [False, True], ids=["plain", "checkpointing"])
def test_autocast(with_cp, stem):
    backbone = make(with_cp=with_cp, stem=stem)
    image = torch.randn(2, 3, 40, 36)
    exact = backbone(image)
    with torch.autocast("cpu", torch.bfloat16):
        outs = backbone(image)
        loss = sum(out.float().square().sum() for out in outs)
    for out, ref in zip(outs, exact, strict=True):
        assert (out - ref).norm() / ref.norm() < 0.05
    loss.backward()
    assert all(p.grad.dtype == torch.float32 for p in backbone.parameters())
    assert all(p.grad.isfinite().all() for p in backbone.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights(dtype):
    backbone = make().eval()
    image = torch.randn(1, 3, 40, 36)
    with torch.no_grad():
        exact = backbone(image)
        outs = backbone.to(dtype)(image.to(dtype))
    for out, ref in zip(outs, exact, strict=True):
        assert out.dtype == dtype
        assert (out - ref).norm() / ref.norm() < 0.05


@stems
def test_channels_last_image(stem):
    backbone = make(stem=stem).double()
    image = torch.randn(2, 3, 40, 36, dtype=torch.float64)
    last = image.contiguous(memory_format=torch.channels_last)
    for a, b in zip(backbone(last), backbone(image), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_training_is_deterministic():
    found, image = [], torch.randn(2, 3, 40, 36)
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(2):
            backbone = make(drop_path_rate=0.3)
            found.append(results(backbone, backbone, image))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(x, found[1][name]) for name, x in found[0].items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("compiler", "depths", "sizes"),
    [
        # Dynamic shapes; window attention compiles as well, but takes a minute of symbols.
        ("aot_eager", dict(attn_depths=(0, 0)), [(40, 56), (36, 104), (52, 44)]),
        ("aot_eager", dict(), [(40, 56)]),
        # Inductor's code relies on the strides that the op promises: the downsampling alone.
        ("inductor", dict(attn_depths=(0, 0), qna_depths=(0, 0)), [(24, 36)]),
    ],
    ids=["aot-dynamic", "aot", "inductor"],
)
def test_compile(compiler, depths, sizes):
    """There is one graph, forward and backward. With dynamic shapes, it serves all sizes."""
    torch.compiler.reset()
    backbone = make(arch=TWO | depths, window_sizes=(4, 3), out_indices=(0, 1))
    dynamic = len(sizes) > 1
    compiled = torch.compile(backbone, backend=compiler, fullgraph=True, dynamic=dynamic)
    for size in sizes:
        image = torch.randn(2, 3, *size)
        expected = results(backbone, backbone, image)
        with torch.compiler.set_stance("default" if size == sizes[0] else "fail_on_recompile"):
            ours = results(compiled, backbone, image)
        for name, x in expected.items():
            scale = x.abs().max().clamp_min(1e-3)
            assert (ours[name] - x).abs().max() < 5e-5 * scale, name


def test_export():
    backbone = make().eval()
    image = torch.randn(1, 3, 40, 56)
    program = torch.export.export(backbone, (image,))
    for a, b in zip(program.module()(image), backbone(image), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        (dict(arch="huge"), ValueError, r"arch must be one of \['base'.*got 'huge'"),
        (dict(arch=96), TypeError, "arch must be a name or a dict, got 96"),
        (dict(arch=None), TypeError, "arch must be a name or a dict, got None"),
        (dict(arch=dict(embed_dims=8)), ValueError, r"arch must have the keys.*\['embed_dims'\]"),
        (dict(arch=TINY | dict(depths=7)), ValueError, "arch must have .*got .*'depths'"),
        (dict(arch=TINY | dict(qna_depths=(1, 1))), ValueError, "arch must give .*same number"),
        (
            dict(arch=TINY | dict(attn_heads=(1, 3, 2, 4))),
            ValueError,
            "attn_heads must divide .* 1",
        ),
        (dict(arch=TINY | dict(qna_heads=(3, 2, 4, 4))), ValueError, "qna_heads must divide"),
        (dict(arch=TINY | dict(kernel_size=4)), ValueError, "kernel_size must be .* odd .* got 4"),
        (dict(arch=TINY | dict(kernel_size=-1)), ValueError, "kernel_size must be .* got -1"),
        (dict(window_sizes=(7, 7)), ValueError, r"window_sizes must .* 4 stages .* got \(7, 7\)"),
        (dict(window_sizes=(7, 0, 7, 7)), ValueError, "window_sizes must be at least 1, got 0"),
        (dict(normalize_query=(True,)), ValueError, r"normalize_query must .* got \(True,\)"),
        (dict(num_queries=0), ValueError, "num_queries must be at least 1, got 0"),
        (dict(stem="conv"), ValueError, "stem must be one of patch, resnet, got 'conv'"),
        (dict(downsample="max"), ValueError, "downsample must be one of qna, conv, nest, got 'm"),
        (dict(mixers=dict(type="QnAs")), ValueError, r"unknown mixer 'QnAs': did you mean QnA\?"),
        (dict(mixers=[dict(type="QnA")]), ValueError, "mixers must have .* 4 stages .* got 1"),
        (dict(downsample_skip="max"), ValueError, "downsample_skip must be .* got 'max'"),
        (dict(out_indices=(0, 4)), ValueError, r"out_indices must .* 0 to 3, got \(0, 4\)"),
        (dict(out_indices=(-1,)), ValueError, r"out_indices must .*, got \(-1,\)"),
        (dict(out_indices=()), ValueError, r"out_indices must .*, got \(\)"),
        (dict(out_indices=3), ValueError, "out_indices must .*, got 3"),
        (dict(frozen_stages=5), ValueError, "frozen_stages must be -1 to 4, got 5"),
        (dict(frozen_stages=-2), ValueError, "frozen_stages must be -1 to 4, got -2"),
        (dict(drop_path_rate=1.0), ValueError, r"drop_path_rate must be in \[0, 1\), got 1.0"),
        (dict(out_indices=(1, 1)), ValueError, r"out_indices must .* no stage twice, got \(1, 1\)"),
    ],
    ids=lambda x: "-".join(f"{k}={v}" for k, v in x.items()) if isinstance(x, dict) else None,
)
def test_bad_arguments(kwargs, error, message):
    with pytest.raises(error, match=message):
        make(**kwargs)


@stems
@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (torch.zeros(1, 3, 3, 9), ValueError, "at least .*4x4 pixels, got 3x9"),
        (torch.zeros(1, 3, 9, 3), ValueError, "at least .*4x4 pixels, got 9x3"),
        (torch.zeros(3, 32, 32), ValueError, r"\(B, in_channels=3, H, W\), got \(3, 32, 32\)"),
        (torch.zeros(1, 1, 32, 32), ValueError, r"in_channels=3.*, got \(1, 1, 32, 32\)"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), TypeError, "got torch.uint8"),
    ],
    ids=["low", "narrow", "3-D", "grey", "uint8"],
)
def test_bad_images(image, error, message, stem):
    with pytest.raises(error, match=f"x must be.*{message}"):
        make(stem=stem)(image)


@pytest.mark.parametrize("size", [(4, 4), (33, 97)], ids=str)
@pytest.mark.parametrize("downsample", ["conv", "nest"])
def test_downsampling_by_convolution(downsample, size):
    """Odd maps round up, all parameters learn, and a merging is no block of its own."""
    backbone = make(downsample=downsample, drop_path_rate=0.6, out_indices=(0, 1, 2, 3))
    rates = [m.drop_prob for m in backbone.modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx([0.6 * i / 7 for i in range(8)])
    assert backbone.get_layer_depth("stages.1.downsample.conv.weight") == (4, 10)
    outs = backbone.eval()(torch.randn(2, 3, *size))
    assert [out.shape[2:] for out in outs] == [
        tuple(-(-side // (4 * 2**i)) for side in size) for i in range(4)
    ]
    live = dict(backbone.named_parameters())
    grads = torch.autograd.grad(outs, list(live.values()), cotangents(outs))
    merging = {n: g for n, g in zip(live, grads, strict=True) if "downsample" in n}
    assert len(merging) == 3 * {"conv": 1, "nest": 4}[downsample]
    assert all(grad.any() for grad in merging.values())


def test_values_of_the_convolutions():
    """Each output is computed from its own pixels, also at the end of odd sides."""
    torch.manual_seed(0)
    x = torch.randn(1, 5, 7, 3)
    conv = ConvDownsample(3, 4)
    last = (conv.conv.weight[:, :, 0, 0] @ x[0, 4, 6]).view(4)
    torch.testing.assert_close(conv(x)[0, 2, 3], last)
    first = torch.einsum("ockl,klc->o", conv.conv.weight, x[0, :2, :2])
    torch.testing.assert_close(conv(x)[0, 0, 0], first)

    nest = NesTDownsample(3, 4)
    # SAME pads a window of 3 on odd sides at both ends, and on even sides at the last end alone.
    for part, first in ((x, slice(0, 2)), (x[:, :4, :4], slice(0, 3))):
        normed = nest.norm(nest.conv(part.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))[0]
        torch.testing.assert_close(nest(part)[0, 0, 0], normed[first, first].amax((0, 1)))
        torch.testing.assert_close(nest(part)[0, -1, -1], normed[-2:, -2:].amax((0, 1)))


def test_skip_of_a_narrow_network():
    """oneDNN's own gradient of the strided convolution would end the process here."""
    torch.manual_seed(0)
    skip = DownsampleSkip(4, 16)
    x = torch.randn(2, 56, 55, 4)
    skip(x).square().sum().backward()
    weight = skip.conv.weight.detach().double().requires_grad_()
    expected = F.conv2d(x.double().permute(0, 3, 1, 2), weight, stride=2)
    expected.square().sum().backward()
    expected = expected.permute(0, 2, 3, 1)
    torch.testing.assert_close(skip(x).double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(skip.conv.weight.grad.double(), weight.grad, rtol=1e-5, atol=1e-4)


def test_mixers_in_place_of_qna():
    """They get the heads of QnA. Window attention and the downsampling stay as they are."""
    mixers = [dict(type="ELSA", kernel_size=3), [dict(type="QnA"), dict(type="DepthwiseConv")],
              dict(type="WindowAttention", num_heads=8), dict(type="QnA")]  # fmt: skip
    backbone = make(mixers=mixers)
    assert [[type(block.attn).__name__ for block in stage.blocks] for stage in backbone.stages] == [
        ["ELSA"],
        ["EvenWindowAttention", "QnA", "DepthwiseConv"],
        ["EvenWindowAttention", "EvenWindowAttention", "WindowAttention"],
        ["EvenWindowAttention"],
    ]
    assert backbone.stages[0].blocks[0].attn.num_heads == TINY["qna_heads"][0]
    assert backbone.stages[2].blocks[2].attn.w_msa.num_heads == 8
    assert all(isinstance(stage.downsample.attn, QnA) for stage in backbone.stages[:3])
    backbone(torch.randn(1, 3, 37, 50))[-1].sum().backward()


def test_an_empty_batch():
    outs = make()(torch.zeros(0, 3, 32, 44))
    assert [tuple(out.shape) for out in outs] == [
        (0, 8, 8, 11), (0, 16, 4, 6), (0, 32, 2, 3), (0, 64, 1, 2)
    ]  # fmt: skip


def test_built_from_another_scope(tmp_path):
    """The name is enough. Nothing of mmlocal is imported before."""
    code = """
import sys
from mmengine.registry import MODELS
assert not any(name.startswith("mmlocal") for name in sys.modules)
arch = dict(embed_dims=8, attn_depths=(1,), qna_depths=(0,), attn_heads=(1,), qna_heads=(1,))
cfg = dict(type="mmlocal.QnAViT", arch=arch, window_sizes=(7,), out_indices=(0,))
assert type(MODELS.build(cfg)).__module__ == "mmlocal.models.backbones.qna_vit"
"""
    program = tmp_path / "program.py"
    program.write_text(code)
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = run_copy([str(program)], tmp_path, env, timeout=120)
    assert done.returncode == 0, done.stderr
