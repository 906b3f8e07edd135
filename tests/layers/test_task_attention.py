"""DeMT's attention: the official head's numbers, PyTorch's module, loops, and bad input."""

import json

import pytest
import torch
import torch.nn.functional as F
from demt_golden import load_arrays, mixer_part
from torch import nn

from mmlocal.analysis import count_work
from mmlocal.layers import DeformableMixer, TaskInteraction, TaskQuery


def load(module: nn.Module, golden: dict, names: dict[str, str]) -> nn.Module:
    """Load the official parameters whose names begin with the keys of ``names``."""
    state = {
        ours + key.removeprefix(official): value
        for official, ours in names.items()
        for key, value in golden.items()
        if key.startswith(official)
    }
    missing, unexpected = module.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return module.eval()


@pytest.mark.parametrize("legacy", [False, True])
def test_golden_head(legacy):
    """The official head, whose other parts are written out here."""
    golden, meta = load_arrays("demt_head")
    meta = json.loads(meta)
    dim, heads, tasks = meta["dim"], meta["num_heads"], meta["tasks"]
    with torch.no_grad():
        size = golden["input0"].shape[2:]
        maps = torch.cat([F.interpolate(golden[f"input{i}"], size, mode="bilinear")
                          for i in range(4)], dim=1)  # fmt: skip
        weight, bias, scale, shift = (
            golden[f"param.linear1.{name}"] for name in ("0.weight", "0.bias", "1.weight", "1.bias")
        )
        shared = F.layer_norm(
            F.linear(maps.permute(0, 2, 3, 1), weight, bias), (dim,), scale, shift
        )
        shared = shared.permute(0, 3, 1, 2)
        mixed = []
        for i in range(len(tasks)):
            mixer = DeformableMixer(dim)
            mixer.load_state_dict(mixer_part(golden, f"param.defor_mixers.{i}."), strict=False)
            mixed.append(mixer.eval()(shared).permute(0, 2, 3, 1))
        interaction = load(
            TaskInteraction(dim, heads, legacy=legacy),
            golden,
            {"param.task_fusion.": "attention.", "param.smlp.": "smlp."},
        )
        tokens = interaction(torch.stack(mixed, dim=1))
        for i, task in enumerate(tasks):
            query = load(
                TaskQuery(dim, heads, legacy=legacy),
                golden,
                {f"param.task_querys.{i}.": "attention.", f"param.smlp2.{i}.": "smlp."},
            )
            x = query(mixed[i], tokens).permute(0, 3, 1, 2)
            p = {k.removeprefix(f"param.bottleneck.{task}."): v for k, v in golden.items()}
            x = F.conv2d(x, p["conv.weight"], padding=1)
            norm = (p[f"bn.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
            x = F.batch_norm(x, *norm).relu()
            x = F.conv2d(x, *(golden[f"param.final_logits.{task}.{n}"] for n in ("weight", "bias")))
            x = F.interpolate(x, meta["inp_shape"], mode="bilinear")
            expected = golden[f"legacy_b1.{task}" if legacy else f"global.{task}"]
            out = x[: len(expected)]
            torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def make(cls=TaskInteraction, **kwargs) -> nn.Module:
    torch.manual_seed(0)
    layer = cls(**dict(embed_dims=8, num_heads=2) | kwargs)
    nn.init.normal_(layer.attention.in_proj_bias)
    nn.init.normal_(layer.attention.out_proj.bias)
    return layer


def official(layer: nn.Module) -> nn.MultiheadAttention:
    """PyTorch's module with the parameters of the attention of ``layer``."""
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    attention.load_state_dict(layer.attention.state_dict())
    return attention


def test_attention_among_all_tokens():
    layer = make()
    x = torch.randn(2, 3, 4, 5, 8, requires_grad=True)
    tokens = x.flatten(1, 3)
    expected = layer.smlp(official(layer)(tokens, tokens, tokens)[0]).view(x.shape)
    out = layer(x)
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(out)
    for ours, theirs in zip(
        *(torch.autograd.grad(y, x, grad) for y in (out, expected)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_query_of_one_task():
    layer = make(TaskQuery)
    x, tokens = torch.randn(2, 4, 5, 8), torch.randn(2, 3, 4, 5, 8)
    keys = tokens.flatten(1, 3)
    expected = x + layer.smlp(official(layer)(x.flatten(1, 2), keys, keys)[0]).view(x.shape)
    torch.testing.assert_close(layer(x, tokens), expected)


def test_legacy_is_attention_within_a_token_and_within_a_pixel():
    interaction, query = make(legacy=True), make(TaskQuery, legacy=True)
    x = torch.randn(2, 3, 4, 5, 8)
    out, answer = interaction(x), query(x[:, 1], x)
    for b, row, col in ((0, 0, 0), (1, 3, 2)):
        pixel = x[b, :, row, col]
        for task in range(3):
            token = pixel[None, task : task + 1]
            expected = interaction.smlp(official(interaction)(token, token, token)[0])[0, 0]
            torch.testing.assert_close(out[b, task, row, col], expected)
        attended = official(query)(pixel[None, 1:2], pixel[None], pixel[None])[0]
        expected = pixel[1] + query.smlp(attended)[0, 0]
        torch.testing.assert_close(answer[b, row, col], expected)


@pytest.mark.parametrize("legacy", [False, True])
def test_images_of_a_batch_do_not_mix(legacy):
    interaction, query = make(legacy=legacy), make(TaskQuery, legacy=legacy)
    x = torch.randn(3, 2, 4, 5, 8)
    out, answer = interaction(x), query(x[:, 0], x)
    for i in range(3):
        one = x[i : i + 1]
        torch.testing.assert_close(out[i : i + 1], interaction(one))
        torch.testing.assert_close(answer[i : i + 1], query(one[:, 0], one))


def test_one_pixel_of_one_task():
    x = torch.randn(1, 1, 1, 1, 8)
    torch.testing.assert_close(make()(x), make(legacy=True)(x))
    query, legacy = make(TaskQuery), make(TaskQuery, legacy=True)
    torch.testing.assert_close(query(x[:, 0], x), legacy(x[:, 0], x))


def test_starts_as_pytorchs_module():
    torch.manual_seed(3)
    ours = TaskInteraction(64, 4).attention
    limit = (6 / (64 + 3 * 64)) ** 0.5
    assert ours.in_proj_weight.abs().max() <= limit
    assert ours.in_proj_weight.abs().max() > 0.98 * limit
    assert (ours.in_proj_bias == 0).all()
    assert (ours.out_proj.bias == 0).all()


@pytest.mark.parametrize("training", [True, False])
def test_flops_of_the_paper(training):
    """3.75 T: one per product or sum, and three per element of the softmax."""
    with torch.device("meta"):
        layer = TaskInteraction(256, 4).requires_grad_(False).train(training)
        x = torch.zeros(1, 4, 107, 140, 256)
        macs, work = count_work(lambda: layer(x), dict(layer.named_children()))
    tokens = 4 * 107 * 140
    assert macs["aten.bmm"] == 2 * tokens**2 * 256
    assert work["attention"].macs == 2 * tokens**2 * 256 + 4 * tokens * 256**2
    assert work["attention"].flops == 2 * work["attention"].macs + 3 * 4 * tokens**2
    assert work["attention"].flops / 1e12 == pytest.approx(3.751, abs=5e-4)
    assert work["smlp"].flops == 2 * tokens * 256**2
    assert sum(macs.values()) == work["attention"].macs + work["smlp"].macs


def test_autocast():
    layer, query = make(), make(TaskQuery)
    x = torch.randn(2, 3, 4, 5, 8)
    exact = query(x[:, 0], layer(x))
    with torch.autocast("cpu", torch.bfloat16):
        out = query(x[:, 0], layer(x))
    assert (out - exact).abs().max() / exact.abs().max() < 3e-2
    out.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in query.parameters())


class Both(nn.Module):
    def __init__(self, legacy: bool) -> None:
        super().__init__()
        self.interaction, self.query = make(legacy=legacy), make(TaskQuery, legacy=legacy)

    def forward(self, x):
        return self.query(x[:, 0], self.interaction(x))


@pytest.mark.parametrize("legacy", [False, True])
def test_compile_and_export(legacy):
    module = Both(legacy).eval()
    x, other = torch.randn(2, 3, 4, 5, 8), torch.randn(3, 3, 6, 7, 8)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    auto = torch.export.Dim.AUTO
    program = torch.export.export(module, (x,), dynamic_shapes=({0: auto, 2: auto, 3: auto},))
    torch.testing.assert_close(compiled(x), module(x))
    torch.testing.assert_close(program.module()(other), module(other))


@pytest.mark.parametrize("cls", [TaskInteraction, TaskQuery])
@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"num_heads": 3}, ValueError, "num_heads must divide embed_dims=8, got num_heads=3"),
        ({"num_heads": 0}, ValueError, "num_heads must be at least 1, got 0"),
        ({"embed_dims": "8"}, TypeError, "embed_dims must be an integer, got '8'"),
        ({"legacy": 1}, TypeError, "legacy must be True or False, got 1"),
    ],
    ids=str,
)
def test_bad_arguments(cls, kwargs, error, message):
    with pytest.raises(error, match=message):
        make(cls, **kwargs)


def test_bad_input():
    with pytest.raises(ValueError, match=r"x must be \(B, T, H, W, embed_dims=8\), got \(2, 3\)"):
        make()(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="x must have at least one task, one row and one column"):
        make()(torch.zeros(1, 0, 2, 2, 8))
    with pytest.raises(TypeError, match=r"x must be floating point, got torch\.int64"):
        make()(torch.zeros(1, 1, 2, 2, 8, dtype=torch.int64))
    query, x = make(TaskQuery), torch.zeros(1, 2, 3, 8)
    with pytest.raises(ValueError, match=r"tokens must be \(B, T, H, W, embed_dims=8\)"):
        query(x, x)
    with pytest.raises(ValueError, match=r"tokens must be .* with the B, H and W of x"):
        query(x, torch.zeros(1, 4, 3, 2, 8))
