"""The ELSA-Swin backbone; its agreement with the official code is in test_elsa_parity.py."""

import copy
import os
import pickle
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from tools.copies import run_copy
from torch import nn

from mmlocal.layers.projected_attention import ProjectedAttention
from mmlocal.models.backbones import ELSASwin

TINY = dict(embed_dims=12, depths=(1, 1, 2, 2), num_heads=(1, 2, 3, 4), group_width=4)
THREE = dict(embed_dims=8, depths=(1, 2, 2), num_heads=(1, 2, 4))


def make(seed: int = 0, **kwargs) -> ELSASwin:
    torch.manual_seed(seed)
    return ELSASwin(**dict(arch=TINY, kernel_size=3, window_size=4, drop_path_rate=0.0) | kwargs)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("arch", "with_head", "dense"),
    [
        ("tiny", 29_140_978, 28_373_322),
        ("small", 52_874_626, 52_106_970),
        ("base", 92_682_464, None),
    ],
)
def test_parameter_counts(arch, with_head, dense):
    """Official classifiers of 1000 classes and official dense backbones have these numbers."""
    with torch.device("meta"):
        backbone = ELSASwin(arch, out_indices=(3,))
        head = nn.Linear(backbone.num_features[-1], 1000)
        assert count(backbone) + count(head) == with_head
        if dense is not None:
            assert count(ELSASwin(arch)) == dense


@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (3,), (0,), (1, 2), [2, 0]], ids=str)
@pytest.mark.parametrize("size", [(4, 4), (5, 7), (33, 97), (75, 101), (64, 64)], ids=str)
def test_output_shapes(size, out_indices):
    backbone = make(out_indices=out_indices).eval()
    with torch.no_grad():
        outs = backbone(torch.randn(2, 3, *size))
    assert isinstance(outs, tuple)
    expected = []
    for i in sorted(out_indices):
        stride = 4 * 2**i
        # ceil(ceil(H / 4) / 2**i) is ceil(H / (4 * 2**i))
        expected.append((2, 12 * 2**i, -(-size[0] // stride), -(-size[1] // stride)))
    assert [tuple(out.shape) for out in outs] == expected
    assert all(out.is_contiguous() and out.isfinite().all() for out in outs)


def test_75x101():
    """The official code gives the same sizes."""
    with torch.no_grad():
        outs = make()(torch.randn(1, 3, 75, 101))
    assert [tuple(out.shape[2:]) for out in outs] == [(19, 26), (10, 13), (5, 7), (3, 4)]


@pytest.mark.parametrize("kwargs", [{"in_channels": 1}, {"patch_size": 2}], ids=str)
def test_other_images(kwargs):
    channels, patch = kwargs.get("in_channels", 3), kwargs.get("patch_size", 4)
    outs = make(**kwargs)(torch.randn(1, channels, 40, 24))
    assert outs[0].shape[2:] == (40 // patch, 24 // patch)


def test_elsa_stages_are_shift_equivariant_in_the_interior():
    """Moving the image by whole patches of the third stage moves its interior features."""
    backbone = make(
        arch=dict(embed_dims=6, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), group_width=4),
        out_indices=(0, 1, 2),
        lam=1,
    ).double()
    backbone.eval()
    image = torch.randn(1, 3, 256, 256, dtype=torch.float64)
    shifted = torch.zeros_like(image)
    shifted[:, :, 16:, 32:] = image[:, :, :-16, :-32]
    with torch.no_grad():
        outs = zip(backbone(image), backbone(shifted), strict=True)
    for i, (a, b) in enumerate(outs):
        stride = 4 * 2**i
        dy, dx = 16 // stride, 32 // stride
        height, width = a.shape[2:]
        a, b = a[:, :, : height - dy, : width - dx], b[:, :, dy:, dx:]
        # each ELSA block of kernel 3 reaches 2 pixels of its map
        reach = sum(2 * 2**j for j in range(i + 1)) // 2**i + 2
        inner = (..., slice(reach, -reach), slice(reach, -reach))
        assert min(a[inner].shape[2:]) >= 3
        torch.testing.assert_close(a[inner], b[inner], rtol=0, atol=1e-12)
        assert not torch.allclose(a, b, atol=1e-3)


@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (3,), (0, 1), (2,), (1, 3)], ids=str)
@pytest.mark.parametrize("lam", [0, 1])
@pytest.mark.parametrize("fit_window", [False, True], ids=["dense", "fit"])
def test_every_parameter_gets_a_gradient(fit_window, lam, out_indices):
    """DistributedDataParallel then needs no ``find_unused_parameters``."""
    backbone = make(out_indices=out_indices, lam=lam, fit_window=fit_window, use_abs_pos_embed=True)
    sum(out.square().sum() for out in backbone(torch.randn(1, 3, 72, 56))).backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_stages_after_the_last_output_are_not_built():
    """Parameters of unused stages would have no gradient. The names of the others do not change."""
    full, part = make(), make(out_indices=(0, 1), frozen_stages=4)
    assert len(part.stages) == 2
    keys = part.state_dict().keys()
    assert keys < full.state_dict().keys()
    part.load_state_dict({k: v for k, v in full.state_dict().items() if k in keys})
    image = torch.randn(1, 3, 40, 48)
    for a, b in zip(full.eval()(image)[:2], part.eval()(image), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rate", [0.0, 0.5])
@pytest.mark.parametrize("frozen_stages", [-1, 2])
def test_checkpointing_changes_nothing(frozen_stages, rate):
    """Values and gradients are the same, random drops included."""
    results = []
    for with_cp in (False, True):
        backbone = make(
            with_cp=with_cp,
            drop_path_rate=rate,
            drop_rate=rate,
            attn_drop_rate=rate,
            frozen_stages=frozen_stages,
        )
        backbone.train()
        image = torch.randn(4, 3, 40, 36, requires_grad=True)
        torch.manual_seed(1)
        outs = backbone(image)
        sum(out.square().sum() for out in outs).backward()
        grads = {n: p.grad for n, p in backbone.named_parameters() if p.requires_grad}
        results.append((outs, image.grad, grads))
    (outs, image_grad, grads), (outs_cp, image_grad_cp, grads_cp) = results
    assert all(torch.equal(a, b) for a, b in zip(outs, outs_cp, strict=True))
    assert torch.equal(image_grad, image_grad_cp)
    assert grads.keys() == grads_cp.keys()
    assert all(torch.equal(grad, grads_cp[name]) for name, grad in grads.items())


def test_checkpointing_recomputes():
    backbone = make(with_cp=True)
    calls = []
    backbone.stages[0].blocks[0].attn.register_forward_hook(lambda *args: calls.append(1))
    outs = backbone(torch.randn(1, 3, 32, 32))
    assert len(calls) == 1
    outs[-1].sum().backward()
    assert len(calls) == 2


@pytest.mark.parametrize("frozen_stages", [-1, 0, 1, 3, 4])
def test_frozen_stages(frozen_stages):
    backbone = make(
        frozen_stages=frozen_stages,
        use_abs_pos_embed=True,
        out_indices=(0, 2, 3),
        drop_rate=0.5,
        drop_path_rate=0.5,
    )
    frozen = [f"stages.{i}." for i in range(frozen_stages)]
    frozen += [f"norm{i}." for i in range(frozen_stages)]
    frozen += ["patch_embed.", "absolute_pos_embed"] if frozen_stages >= 0 else []
    assert backbone.train() is backbone
    names = {n for n, p in backbone.named_parameters() if not p.requires_grad}
    assert names == {n for n, _ in backbone.named_parameters() if n.startswith(tuple(frozen))}
    for name, module in backbone.named_modules():
        if name and name != "stages":
            fixed = f"{name}.".startswith(tuple(frozen))
            fixed |= name == "drop_after_pos" and frozen_stages >= 0
            assert module.training != fixed, name
    before = {n: p.clone() for n, p in backbone.named_parameters()}
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad] or
                                [nn.Parameter(torch.zeros(1))], lr=0.1)  # fmt: skip
    outs = backbone(torch.randn(2, 3, 32, 40))
    if frozen_stages < 4:
        sum(out.square().sum() for out in outs).backward()
        optimizer.step()
    moved = {n for n, p in backbone.named_parameters() if not torch.equal(p, before[n])}
    assert not moved & names
    assert moved or frozen_stages == 4
    assert not any(module.training for module in backbone.eval().modules())


def test_default_initialisation():
    torch.manual_seed(0)
    backbone = ELSASwin("tiny", use_abs_pos_embed=True)
    backbone.init_weights()
    state = dict(backbone.named_parameters())
    linear = {n: m for n, m in backbone.named_modules() if isinstance(m, nn.Linear)}
    assert len(linear) == 3 * 10 + 4 * 2 + 3
    for name, module in linear.items():
        assert abs(module.weight.std().item() / 0.02 - 1) < 0.05, name
        assert module.bias is None or not module.bias.any(), name
    for name, module in backbone.named_modules():
        if isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all(), name
            assert not module.bias.any(), name
        if isinstance(module, (nn.Conv2d, ProjectedAttention)):  # kaiming-uniform, a = sqrt(5)
            bound = module.weight[0].numel() ** -0.5
            assert module.weight.abs().max() <= bound, name
            assert abs(module.weight.std().item() / (bound / 3**0.5) - 1) < 0.1, name
            assert module.bias.any(), name
    for name, parameter in state.items():
        if name.endswith(("ghost_add", "relative_position_bias_table", "absolute_pos_embed")):
            assert abs(parameter.std().item() / 0.02 - 1) < 0.1, name


def test_initialisation_may_be_chosen():
    backbone = make(init_cfg=dict(type="Constant", layer="Linear", val=0.5))
    backbone.init_weights()
    assert (backbone.stages[0].blocks[0].mlp.fc1.weight == 0.5).all()


@pytest.mark.parametrize("prefix", ["", "backbone."])
@pytest.mark.parametrize("wrapped", [True, False], ids=["state_dict", "bare"])
@pytest.mark.parametrize("extra", [False, True], ids=["backbone", "model"])
def test_pretrained(tmp_path, prefix, wrapped, extra):
    source = make(seed=1)
    state_dict = {prefix + k: v for k, v in source.state_dict().items()}
    if extra:
        state_dict["head.fc.weight"] = torch.zeros(3, 3)
    path = str(tmp_path / "weights.pth")
    torch.save(dict(state_dict=state_dict, meta=dict(epoch=3)) if wrapped else state_dict, path)
    init_cfg = dict(type="Pretrained", checkpoint=path)
    if prefix:
        init_cfg["prefix"] = prefix
    backbone = make(seed=2, init_cfg=init_cfg)
    backbone.init_weights()
    for name, parameter in source.state_dict().items():
        assert torch.equal(backbone.state_dict()[name], parameter), name
    backbone.norm0.weight.data.fill_(7)
    backbone.init_weights()  # a second call, as by a wrapper, must not load again
    assert (backbone.norm0.weight == 7).all()


def test_pretrained_classifier_lacks_the_other_norms(tmp_path):
    """A classification checkpoint has the last norm alone. The other norms start at 1 and 0."""
    source = make(seed=1, out_indices=(3,), fit_window=True)
    source.norm3.weight.data.normal_()
    path = str(tmp_path / "classifier.pth")
    state_dict = {f"backbone.{k}": v for k, v in source.state_dict().items()}
    state_dict |= {"head.fc.weight": torch.zeros(10, 96), "head.fc.bias": torch.zeros(10)}
    torch.save(dict(state_dict=state_dict), path)
    backbone = make(init_cfg=dict(type="Pretrained", checkpoint=path, prefix="backbone"))
    backbone.init_weights()
    assert torch.equal(backbone.norm3.weight, source.norm3.weight)
    assert torch.equal(backbone.stages[2].blocks[1].attn.qkv.weight,
                       source.stages[2].blocks[1].attn.qkv.weight)  # fmt: skip
    for i in range(3):
        assert (getattr(backbone, f"norm{i}").weight == 1).all()


def test_pretrained_inside_a_model(tmp_path):
    """MMEngine initialises a detector in this way: from the outer module, and records changes."""
    from mmengine.model import BaseModule

    source = make(seed=1)
    path = str(tmp_path / "weights.pth")
    torch.save(source.state_dict(), path)

    class Model(BaseModule):
        def __init__(self):
            super().__init__()
            self.backbone = make(seed=2, init_cfg=dict(type="Pretrained", checkpoint=path))
            self.head = nn.Linear(2, 2)

    model = Model()
    model.init_weights()
    for name, parameter in source.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], parameter), name


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(kernel_size=5), "mismatched .*attn_conv.weight"),
        (dict(arch=TINY | dict(group_width=8)), "mismatched"),
        (dict(arch=TINY | dict(depths=(1, 1, 3, 2))), "missing .*stages.2.blocks.2"),
        (dict(lam=1), "missing .*ghost_mul"),
        (dict(use_abs_pos_embed=True), "missing .*absolute_pos_embed"),
        (dict(arch="tiny"), "mismatched"),
    ],
    ids=["kernel", "group-width", "depth", "lam", "pos-embed", "arch"],
)
def test_checkpoint_of_another_architecture(tmp_path, kwargs, message):
    path = str(tmp_path / "weights.pth")
    torch.save(make().state_dict(), path)
    backbone = make(**kwargs, init_cfg=dict(type="Pretrained", checkpoint=path))
    before = copy.deepcopy(backbone.state_dict())
    with pytest.raises(ValueError, match=f"checkpoint='{path}' .*does not fit.*{message}"):
        backbone.init_weights()
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())


def test_checkpoint_without_or_with_the_wrong_prefix(tmp_path):
    path = str(tmp_path / "weights.pth")
    torch.save({f"backbone.{k}": v for k, v in make().state_dict().items()}, path)
    for prefix in (None, "encoder."):
        backbone = make(init_cfg=dict(type="Pretrained", checkpoint=path, prefix=prefix))
        with pytest.raises(ValueError, match=r"prefix=.* does not fit .* 0 loaded.*backbone\."):
            backbone.init_weights()


def test_checkpoint_files_that_cannot_be_read(tmp_path):
    def load(path: Path) -> None:
        make(init_cfg=dict(type="Pretrained", checkpoint=str(path))).init_weights()

    with pytest.raises(FileNotFoundError, match=r"nothing\.pth does not exist"):
        load(tmp_path / "nothing.pth")
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match=r"broken\.pth cannot be read safely"):
        load(broken)
    hostile, created = tmp_path / "hostile.pth", tmp_path / "created"
    torch.save({"state_dict": Hostile(created)}, hostile)
    with pytest.raises(ValueError, match=r"hostile\.pth cannot be read safely"):
        load(hostile)
    assert not created.exists()


class Hostile:
    """An object that creates a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_checkpoint_at_a_url(tmp_path):
    """A remote checkpoint is read as safely as a local one."""
    source = make(seed=1)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    created = tmp_path / "created"
    torch.save({"state_dict": Hostile(created)}, tmp_path / "hostile.pth")

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        root = f"http://127.0.0.1:{server.server_port}"
        cfg = dict(type="Pretrained", checkpoint=f"{root}/weights.pth")
        backbone = make(init_cfg=cfg)
        backbone.init_weights()
        assert torch.equal(backbone.norm1.bias, source.norm1.bias)
        assert torch.equal(backbone.patch_embed.proj.weight, source.patch_embed.proj.weight)
        with pytest.raises(ValueError, match="cannot be read safely"):
            make(init_cfg=cfg | dict(checkpoint=f"{root}/hostile.pth")).init_weights()
        server.shutdown()
    assert not created.exists()


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_layer_depth(prefix):
    """Depths rise along the forward pass without gaps. All other parameters are last."""
    backbone = make(use_abs_pos_embed=True)
    blocks = sum(TINY["depths"])
    depths = {
        name: backbone.get_layer_depth(prefix + name, prefix)
        for name, _ in backbone.named_parameters()
    }
    assert {total for _, total in depths.values()} == {blocks + 2}
    assert {depth for depth, _ in depths.values()} == set(range(blocks + 2))
    assert depths["patch_embed.proj.weight"][0] == 0
    assert depths["patch_embed.norm.bias"][0] == 0
    assert depths["absolute_pos_embed"][0] == 0
    assert depths["stages.0.blocks.0.attn.ghost_add"][0] == 1
    assert depths["stages.0.downsample.reduction.weight"][0] == 1
    assert depths["stages.1.blocks.0.norm1.weight"][0] == 2
    assert depths["stages.2.blocks.1.mlp.fc1.weight"][0] == 4
    assert depths["stages.2.downsample.norm.bias"][0] == 4
    assert depths["stages.3.blocks.1.attn.w_msa.relative_position_bias_table"][0] == 6
    assert depths["norm0.weight"][0] == depths["norm3.bias"][0] == 7
    if prefix:
        assert backbone.get_layer_depth("head.fc.weight", prefix) == (7, 8)


def test_state_dict_does_not_depend_on_the_input():
    backbone = make(fit_window=True)
    keys = set(backbone.state_dict())
    assert keys == {name for name, _ in backbone.named_parameters()}
    backbone(torch.randn(1, 3, 100, 36))
    assert set(backbone.state_dict()) == keys
    other = make(seed=5)
    other.load_state_dict(backbone.state_dict())
    image = torch.randn(1, 3, 100, 36)
    for a, b in zip(other.eval()(image), make(fit_window=False).eval()(image), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))],
                         ids=["deepcopy", "pickle"])  # fmt: skip
def test_copies(copier):
    backbone = make(frozen_stages=1)
    image = torch.randn(1, 3, 40, 36)
    expected = backbone(image)
    twin = copier(backbone)
    assert all(torch.equal(a, b) for a, b in zip(twin(image), expected, strict=True))
    twin.norm3.weight.data.zero_()
    assert backbone.norm3.weight.all()
    assert not twin.patch_embed.proj.weight.requires_grad


def test_arch_dict_is_not_changed():
    arch = dict(THREE)
    backbone = make(arch=arch, out_indices=(0, 1, 2))
    assert arch == THREE
    assert backbone.depths == THREE["depths"]
    assert ELSASwin.arch_zoo["tiny"]["group_width"] == 4
    assert make(arch=dict(THREE, depths=[1, 1, 1], num_heads=[1, 2, 4]), out_indices=(2,))


def test_float64():
    backbone = make(use_abs_pos_embed=True, drop_path_rate=0.5).double()
    outs = backbone(torch.randn(2, 3, 36, 52, dtype=torch.float64))
    assert all(out.dtype == torch.float64 for out in outs)
    sum(out.sum() for out in outs).backward()


@pytest.mark.parametrize("with_cp", [False, True], ids=["plain", "checkpointing"])
def test_autocast(with_cp):
    backbone = make(with_cp=with_cp, use_abs_pos_embed=True, lam=1)
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


def test_channels_last_image():
    backbone = make()
    image = torch.randn(2, 3, 40, 36)
    last = image.contiguous(memory_format=torch.channels_last)
    for a, b in zip(backbone(last), backbone(image), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_training_is_deterministic():
    results = []
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(2):
            backbone = make(drop_path_rate=0.3)
            sum(o.square().sum() for o in backbone(torch.randn(2, 3, 40, 36))).backward()
            results.append([p.grad for p in backbone.parameters()])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def results(model: nn.Module, backbone: ELSASwin, image: torch.Tensor) -> dict[str, torch.Tensor]:
    """Compute outputs and gradients of ``model``, which is ``backbone`` or compiled from it."""
    outs = model(image)
    names, parameters = zip(*backbone.named_parameters(), strict=True)
    # Not the sum of squares: after a LayerNorm that is a constant.
    cotangents = [torch.linspace(-3, 9, o.numel()).cos().view(o.shape) for o in outs]
    grads = torch.autograd.grad(outs, parameters, cotangents)
    named = {f"grad of {name}": grad for name, grad in zip(names, grads, strict=True)}
    return named | {f"out {i}": out.detach() for i, out in enumerate(outs)}


OLD_COMPILER = pytest.mark.xfail(
    torch.__version__ < (2, 7),
    reason="torch 2.6 compiles once more for other sizes",
    strict=True,
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dynamic", "sizes"),
    [
        (False, [(40, 56)]),
        pytest.param(True, [(40, 56), (48, 72), (36, 100)], marks=OLD_COMPILER),
    ],
    ids=["aot", "aot-dynamic"],
)
def test_compile(dynamic, sizes):
    """There is one graph, forward and backward. With dynamic shapes, it serves all sizes.

    Inductor takes a minute: it compiles each op in the tests of the op, and one backbone in
    test_qna_vit.py.
    """
    torch.compiler.reset()
    arch = dict(embed_dims=6, depths=(1, 2), num_heads=(1, 2), group_width=4)
    backbone = make(arch=arch, out_indices=(0, 1))
    compiled = torch.compile(backbone, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for size in sizes:
        image = torch.randn(2, 3, *size)
        expected = results(backbone, backbone, image)
        with torch.compiler.set_stance("default" if size == sizes[0] else "fail_on_recompile"):
            ours = results(compiled, backbone, image)
        for name, x in expected.items():
            scale = x.abs().max().clamp_min(1e-3)
            assert (ours[name] - x).abs().max() < 5e-5 * scale, name


def test_export():
    backbone = make(arch=THREE, out_indices=(0, 1, 2)).eval()
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
        (dict(arch=TINY | dict(window=7)), ValueError, "arch must have .*got .*'window'"),
        (dict(arch=TINY | dict(depths=(1, 1))), ValueError, r"arch .*depths=\(1, 1\)"),
        (dict(arch=TINY | dict(num_heads=(5, 2, 3, 4))), ValueError, "num_heads=5"),
        (dict(arch=TINY | dict(num_heads=(1, 2, 3, 5))), ValueError, "num_heads=5"),
        (dict(out_indices=(0, 4)), ValueError, r"out_indices must .* 0 to 3, got \(0, 4\)"),
        (dict(out_indices=(-1,)), ValueError, r"out_indices must .*, got \(-1,\)"),
        (dict(out_indices=()), ValueError, r"out_indices must .*, got \(\)"),
        (dict(out_indices=3), ValueError, "out_indices must .*, got 3"),
        (dict(frozen_stages=5), ValueError, "frozen_stages must be -1 to 4, got 5"),
        (dict(frozen_stages=-2), ValueError, "frozen_stages must be -1 to 4, got -2"),
        (dict(kernel_size=6), ValueError, "kernel_size must be a positive odd number, got 6"),
        (dict(window_size=0), ValueError, "window_size must be at least 1"),
        (dict(drop_path_rate=1.5), ValueError, r"drop_path_rate must be in \[0, 1\), got 1.5"),
        (dict(arch=TINY | dict(depths=(1, 0, 1, 1))), ValueError, r"depths must .*\(1, 0, 1, 1\)"),
        (dict(patch_size=0), ValueError, "patch_size must be at least 1, got 0"),
        (dict(out_indices=(1, 1)), ValueError, r"out_indices must .* no stage twice, got \(1, 1\)"),
    ],
    ids=lambda x: "-".join(f"{k}={v}" for k, v in x.items()) if isinstance(x, dict) else None,
)
def test_bad_arguments(kwargs, error, message):
    with pytest.raises(error, match=message):
        make(**kwargs)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (torch.zeros(1, 3, 3, 9), ValueError, "at least one patch of 4x4 pixels, got 3x9"),
        (torch.zeros(3, 32, 32), ValueError, r"\(B, in_channels=3, H, W\), got \(3, 32, 32\)"),
        (torch.zeros(1, 1, 32, 32), ValueError, r"in_channels=3.*, got \(1, 1, 32, 32\)"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), TypeError, "got torch.uint8"),
    ],
    ids=["small", "3-D", "grey", "uint8"],
)
def test_bad_images(image, error, message):
    with pytest.raises(error, match=f"x must be.*{message}"):
        make()(image)


def test_an_empty_batch():
    outs = make()(torch.zeros(0, 3, 32, 40))
    assert [tuple(out.shape) for out in outs] == [
        (0, 12, 8, 10), (0, 24, 4, 5), (0, 48, 2, 3), (0, 96, 1, 2)
    ]  # fmt: skip


@pytest.mark.parametrize("scope", ["mmengine", "mmdet", "mmseg", "mmpretrain"])
def test_built_from_another_scope(scope, tmp_path):
    """The name is enough. Nothing of mmlocal is imported before."""
    pytest.importorskip(scope, reason="the library of that scope is not installed")
    code = f"""
import sys
from {scope}.registry import MODELS
assert not any(name.startswith("mmlocal") for name in sys.modules)
arch = dict(embed_dims=8, depths=(1, 1), num_heads=(1, 2))
cfg = dict(type="mmlocal.ELSASwin", arch=arch, out_indices=(0, 1))
assert type(MODELS.build(cfg)).__module__ == "mmlocal.models.backbones.elsa_swin"
"""
    program = tmp_path / "program.py"
    program.write_text(code)
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = run_copy([str(program)], tmp_path, env, timeout=120)
    assert done.returncode == 0, done.stderr
