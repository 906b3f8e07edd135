"""The benchmarks: peers compute what they say, wrong backends are refused, tools write results."""

import importlib.util
import json
import os
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from mmlocal.analysis import benchmark, benchmark_models, peers
from mmlocal.analysis.peers import PEERS, SHAPES, Case, make_tensors
from mmlocal.analysis.time_by_kind import KINDS, kind_of
from mmlocal.errors import UsageError
from mmlocal.layers import ELSA, QnA
from mmlocal.models.backbones import ELSASwin, QnAViT
from mmlocal.ops import OPS, elsa, qna
from mmlocal.ops.backends import Backend
from mmlocal.ops.elsa import eager as elsa_eager
from mmlocal.ops.qna import eager as qna_eager

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
EXACT = dict(rtol=0, atol=1e-12)


def peer(name: str) -> peers.Contestant:
    return next(p for p in PEERS if p.name == name)


def qkv(*shape: int) -> list[torch.Tensor]:
    make = make_tensors(CPU, torch.float64)
    return [make(*shape).detach() for _ in range(3)]


def dense_attention(query, key, value, allowed) -> torch.Tensor:
    """Softmax over all pairs of pixels but those not ``allowed``, ``(H * W, H * W)``."""
    q, k, v = (x.flatten(1, 2).transpose(1, 2) for x in (query, key, value))
    logits = q @ k.transpose(2, 3) * q.shape[3] ** -0.5
    logits = logits.masked_fill(~allowed, float("-inf"))
    return (logits.softmax(dim=3) @ v).transpose(1, 2).view(query.shape)


def pixels(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column of each pixel of a map, row by row."""
    rows, cols = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return rows.flatten(), cols.flatten()


def near_block(at: torch.Tensor, block: int, halo: int) -> torch.Tensor:
    """Which keys lie in the block of each query or at most ``halo`` beside it, along one axis."""
    start = (at // block * block)[:, None]
    return (at >= start - halo) & (at < start + block + halo)


# -------------------------------------------------------------------------------------- peers


@pytest.mark.parametrize("size", [(16, 8), (9, 11), (3, 20)], ids=str)
@pytest.mark.parametrize("halo", [1, 3])
def test_halo_attention(size, halo):
    tensors = qkv(2, *size, 2, 4)
    rows, cols = pixels(*size)
    allowed = near_block(rows, 8, halo) & near_block(cols, 8, halo)
    mask = peers.tokens_in_map(tensors[1], block=8, halo=halo)
    out = peers.block_attention(*tensors, mask, block=8, halo=halo)
    torch.testing.assert_close(out, dense_attention(*tensors, allowed), **EXACT)


@pytest.mark.parametrize("size", [(6, 9), (7, 4)], ids=str)
def test_window_attention(size):
    tensors = qkv(2, *size, 2, 4)
    out = peers.block_attention(*tensors, None, block=3, halo=0)
    # As Swin does, fill up to whole windows with zeros that take part.
    below, right = -size[0] % 3, -size[1] % 3
    padded = [F.pad(x, (0, 0, 0, 0, 0, right, 0, below)) for x in tensors]
    rows, cols = pixels(*padded[0].shape[1:3])
    allowed = near_block(rows, 3, 0) & near_block(cols, 3, 0)
    expected = dense_attention(*padded, allowed)[:, : size[0], : size[1]]
    torch.testing.assert_close(out, expected, **EXACT)


@pytest.mark.parametrize(("size", "k"), [((20, 30), 5), ((40, 9), 3), ((5, 4), 7)], ids=str)
def test_flex_attention(size, k):
    tensors = qkv(1, *size, 2, 16)
    rows, cols = pixels(*size)
    allowed = (rows[:, None] - rows).abs() <= k // 2
    allowed &= (cols[:, None] - cols).abs() <= k // 2
    mask = peers.neighbourhood_mask(*size, k, CPU)
    out = peers.masked_attention(*tensors, mask, flex_attention)
    torch.testing.assert_close(out, dense_attention(*tensors, allowed), **EXACT)
    # FlexAttention without its compiler does not look at the blocks.
    tokens = size[0] * size[1]
    needed = create_block_mask(mask.mask_mod, None, None, tokens, tokens, "cpu").to_dense()
    assert (mask.to_dense() >= needed).all()
    if tokens > 500:
        assert not mask.to_dense().all()


@pytest.mark.parametrize("stride", [1, 2])
def test_exp_convolutions_are_qna(stride):
    case = Case("qna", "", 2, 12, 3, 9, 11, 5, stride)
    tensors, conv = peer("exp_conv").build(case, make_tensors(CPU, torch.float64))
    torch.testing.assert_close(conv(**tensors), peers.op_function(case, "reference")(**tensors))
    # By hand, for one window with all its tokens: row 4, column 6 is the centre.
    scores = tensors["scores"][0, :, 2:7, 4:9] + tensors["rel_pos"]
    weights = scores.flatten(1).softmax(dim=1).view_as(scores) * tensors["tap_weight"]
    window = tensors["value"][0, :, 2:7, 4:9]
    by_hand = torch.stack(
        [(window[c] * (weights[c // 4] + weights[3 + c // 4])).sum() for c in range(12)]
    )
    torch.testing.assert_close(conv(**tensors)[0, :, 4 // stride, 6 // stride], by_hand)


@pytest.mark.parametrize("case", SHAPES["smoke"](), ids=lambda case: f"{case.op}-{case.name}")
def test_contestants_see_the_same_map(case):
    """Backends give the same result, peers one of the same size."""
    make = make_tensors(CPU, torch.float64)
    tensors = peers.op_tensors(case, make)
    expected = peers.op_function(case, "reference")(**tensors)
    like = tensors["value"]
    running = {b.name for b in benchmark.choose_backends(case.op, None, like.dtype, CPU)}
    assert {"eager", "reference"} <= running
    for contestant in peers.list_backends(case.op):
        if contestant.name in running:
            _, function = contestant.build(case, make)
            torch.testing.assert_close(function(**tensors), expected, **EXACT)
    for name in ("dwconv", "conv", "swin", "halo"):
        try:
            tensors, function = peer(name).build(case, make)
        except peers.CannotRunError:
            assert case.stride == 2
            assert name in ("swin", "halo")
        else:
            assert function(**tensors).numel() == expected.numel()


def test_reference_is_left_out_before_memory_runs_out(monkeypatch):
    case = Case("elsa", "", 1, 64, 2, 256, 256, 13)
    reference = next(b for b in peers.list_backends("elsa") if b.name == "reference")
    monkeypatch.setattr(peers, "available_memory", lambda: 2**30)
    with pytest.raises(peers.CannotRunError, match="needs about 16 GiB, 1 are free"):
        reference.build(case, make_tensors(CPU, torch.float32))


# ------------------------------------------------------------------------------------- shapes


def layer_shapes(model: torch.nn.Module, batch: int, size: tuple[int, int]) -> set[tuple]:
    """What the op of each local-attention layer of a model gets, without computing anything."""
    shapes = set()

    def hook(layer, args):
        height, width = args[0].shape[1:3]
        if isinstance(layer, ELSA):
            heads, channels, stride = layer.num_heads, layer.v_dims, 1
        else:
            heads, channels, stride = layer.num_heads, layer.value.out_features, layer.stride
        shapes.add((batch, channels, heads, height, width, layer.kernel_size, stride))

    for layer in model.modules():
        if isinstance(layer, (ELSA, QnA)):
            layer.register_forward_pre_hook(hook)
    with torch.no_grad():
        model.to("meta")(torch.empty(batch, 3, *size, device="meta"))
    return shapes


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("ELSA-Swin tiny", lambda: ELSASwin("tiny")),
        ("QnA-ViT tiny", lambda: QnAViT("tiny")),
        ("QnA-ViT tiny_7x7", lambda: QnAViT("tiny_7x7")),
    ],
)
def test_stages_are_those_of_the_models(name, build):
    cases = [c for c in SHAPES["stages"]() if name in c.name.split(",")[0].split(" = ")]
    for batch, *size in ((4, 224, 224), (1, 800, 1280)):
        expected = {
            (c.batch, c.channels, c.heads, c.height, c.width, c.kernel_size, c.stride)
            for c in cases
            if c.name.endswith(f"{size[0]}x{size[1]}")
        }
        assert layer_shapes(build().eval(), batch, size) == expected


# ------------------------------------------------------------------------------------ measures


def test_calls_take_turns(monkeypatch):
    order = []
    monkeypatch.setattr(benchmark, "_MAX_REPEATS", 1)
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    samples = benchmark.time_interleaved(calls, CPU, rounds=4)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab" + "abc"
    assert {name: len(values) for name, values in samples.items()} == dict.fromkeys("abc", 4)


def test_slow_calls_sit_out(monkeypatch):
    monkeypatch.setattr(benchmark, "_MAX_SECONDS", 0.0)
    assert len(benchmark.time_interleaved({"slow": lambda: None}, CPU, rounds=9)["slow"]) == 3
    assert len(benchmark.time_interleaved({"slow": lambda: None}, CPU, rounds=2)["slow"]) == 2


def test_summary():
    assert benchmark.summarise([0.004, 0.001, 0.002, 0.003, 0.1]) == pytest.approx(
        dict(quartile1_ms=2, median_ms=3, quartile3_ms=4, min_ms=1, samples=5)
    )
    assert benchmark.summarise([0.5])["quartile3_ms"] == 500


def test_peak_memory():
    def call():
        first = torch.zeros(1000, dtype=torch.float64)
        second = first.neg()
        del first
        return second[:10].clone()

    call()
    assert benchmark.peak_memory(call, CPU) == 16000
    assert benchmark.peak_memory(lambda: None, CPU) == 0


# ------------------------------------------------------------------------- refusal of a wrong one


def spoil(kind: str, module: types.ModuleType) -> types.ModuleType:
    """A backend like ``module``, but wrong."""

    def forward(value, *args):
        out = module.forward(value, *args)
        if kind == "output":
            out *= 1.001
        if kind == "NaN":
            out[0, 0, 0, 0] = torch.nan
        if kind == "far pixels" and value.shape[2] > 60:
            out[-1, 0, -1, -1] += 1
        return out

    def backward(*args):
        grads = list(module.backward(*args))
        if kind == "gradient":
            grads[1] = grads[1] * 1.001
        return tuple(grads)

    broken = types.ModuleType("broken_backend")
    broken.forward, broken.backward = forward, backward
    return broken


@pytest.fixture
def broken(request, monkeypatch) -> str:
    """Put a broken backend into both ops."""
    for op, module in ((elsa, elsa_eager), (qna, qna_eager)):
        name = f"broken_{op.__name__.rpartition('.')[2]}"
        monkeypatch.setitem(sys.modules, name, spoil(request.param, module))
        backend = Backend(
            name="broken",
            description="wrong",
            module=name,
            devices=("any",),
            dtypes=(torch.float32, torch.bfloat16),
            deterministic=True,
            atol={torch.float32: 1e-5, torch.bfloat16: 8e-3},
        )
        backends = (backend, *op.BACKENDS)
        monkeypatch.setattr(op._operator, "backends", backends)
        known = next(known for known in OPS.values() if known.backends is op.BACKENDS)
        monkeypatch.setitem(OPS, known.name, replace(known, backends=backends))
    return request.param


BIG = {
    "elsa": Case("elsa", "big", 1, 4, 2, 70, 61, 3),
    "qna": Case("qna", "big", 1, 4, 2, 70, 61, 3, 2),
}


@pytest.mark.parametrize("op", ["elsa", "qna"])
@pytest.mark.parametrize(
    ("broken", "where", "error"),
    [
        ("output", "small map", "output is off by 1.0e-03"),
        ("NaN", "small map", "output is off by nan"),
        ("gradient", "small map", "gradient of (attn|scores) is off by 1.0e-03"),
        ("far pixels", "last corner", "output is off by"),
    ],
    indirect=["broken"],
)
def test_wrong_backend_is_refused(op, broken, where, error):
    message = f"{op}, big, {where}, backend broken, torch.float32: {error}"
    with pytest.raises(benchmark.WrongResultError, match=message):
        check(op)


def check(op: str) -> None:
    backend = next(b for b in OPS[op].backends if b.name == "broken")
    benchmark.check_backend(backend, BIG[op], torch.float32, CPU)


@pytest.mark.parametrize("broken", ["nothing"], indirect=True)
@pytest.mark.parametrize("op", ["elsa", "qna"])
def test_right_backend_is_not(op, broken):
    check(op)


def load_tool(name: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(f"tool_{name}", ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("broken", ["output"], indirect=True)
def test_tool_refuses_and_exits_with_1(broken, monkeypatch, tmp_path):
    argv = ["benchmark_ops", "--shapes", "smoke", "--device", "cpu", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as exit_:
        load_tool("benchmark_ops").main()
    # sys.exit prints a text and exits with 1
    assert isinstance(exit_.value.code, str)
    assert "backend broken" in exit_.value.code
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------- whole benchmarks


def run_tool(name: str, *arguments: str | Path, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / name), *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


TIMES = {"quartile1_ms", "median_ms", "quartile3_ms", "min_ms", "samples"}


def test_benchmark_ops(tmp_path):
    names = ["dwconv", "conv", "exp_conv", "swin", "halo"]
    arguments = ["--shapes", "smoke", "--device", "cpu", "--rounds", "2", "--out", tmp_path]
    printed = run_tool("benchmark_ops.py", *arguments, "--peers", *names)
    result = json.loads((tmp_path / "ops_smoke_cpu.json").read_text())
    assert result.keys() == {"hardware", "versions", "date", "settings", "results"}
    assert result["hardware"]["threads"] == 1
    assert result["versions"]["torch"] == torch.__version__
    assert result["settings"]["rounds"] == 2
    ours = {"elsa": {"eager", "reference"}, "qna": {"eager", "reference"}}
    for case in SHAPES["smoke"]():
        rows = [row for row in result["results"] if row["case"]["name"] == case.name
                and row["case"]["op"] == case.op]  # fmt: skip
        for mode in ("forward", "training"):
            found = {row["contestant"]: row for row in rows if row["mode"] == mode}
            assert found.keys() >= ours[case.op] | set(names) - {"exp_conv"}
            assert ("exp_conv" in found) == (case.op == "qna")
            for row in found.values():
                if case.stride == 2 and row["contestant"] in ("swin", "halo"):
                    assert row["skipped"] == "has no stride"
                    continue
                assert row.keys() >= TIMES | {"extra_bytes", "traffic_bytes", "fraction_of_copy"}
                assert row["extra_bytes"] >= 0
                assert row["samples"] == 2
        assert f"{case.op}, {case.name}: {case.batch}x16x9x11" in printed
    assert "not run, forward and training: swin: has no stride" in printed
    # a convolution of 3x3 on 2x16x9x11, float32
    row = next(
        row
        for row in result["results"]
        if (row["contestant"], row["mode"], row["case"]["name"])
        == ("dwconv", "forward", "tiny, 3x3")
    )
    assert row["traffic_bytes"] == 4 * (2 * 2 * 16 * 9 * 11 + 16 * 9)


def test_extra_memory_of_the_definition(monkeypatch):
    """It writes out windows of 25 values; the form tap by tap does not."""
    case = Case("elsa", "", 1, 32, 2, 48, 48, 5)
    contestants = [
        ("backend", c) for c in peers.list_backends("elsa") if c.name in ("eager", "reference")
    ]
    rows = benchmark.measure_case(case, contestants, torch.float32, CPU, rounds=1)
    extra = {(row["contestant"], row["mode"]): row["extra_bytes"] for row in rows}
    value = 4 * 32 * 48 * 48
    for mode in benchmark.MODES:
        assert extra["reference", mode] > 50 * value
        assert extra["eager", mode] < 15 * value


def test_peers_may_fail_backends_may_not():
    def fail(case, make):
        raise NotImplementedError("not here\nand more")

    case = SHAPES["smoke"]()[0]
    failing = peers.Contestant("failing", "", ("elsa",), fail)
    rows = benchmark.measure_case(case, [("peer", failing)], torch.float32, CPU, rounds=1)
    assert [(row["mode"], row["skipped"]) for row in rows] == [
        ("forward", "not here"),
        ("training", "not here"),
    ]
    with pytest.raises(NotImplementedError):
        benchmark.measure_case(case, [("backend", failing)], torch.float32, CPU, rounds=1)


def test_plots(monkeypatch, tmp_path):
    cases = [Case("elsa", f"{k}", 1, 8, 2, 9, 9, k) for k in (3, 5)]
    monkeypatch.setitem(SHAPES, "figure2", lambda: cases)
    result = benchmark.benchmark_ops(
        tmp_path, ["elsa"], "figure2", ["float32", "bfloat16"], ["eager"], ["dwconv"], 1, "cpu"
    )
    assert {row["dtype"] for row in result["results"]} == {"float32", "bfloat16"}
    assert json.loads((tmp_path / "ops_figure2_cpu.json").read_text()) == result
    for dtype in ("float32", "bfloat16"):
        assert (tmp_path / f"ops_figure2_cpu_elsa_{dtype}.png").stat().st_size > 10000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(backends=["fast"]), "--backends: must be among .*eager.*, got 'fast'"),
        (dict(peers=["fast"]), "--peers: must be among .*halo.*, got 'fast'"),
        (dict(rounds=0), "--rounds must be at least 1, got 0"),
    ],
)
def test_bad_options_of_benchmark_ops(options, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        benchmark.benchmark_ops(tmp_path, shapes="smoke", device="cpu", **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu(tmp_path):
    with pytest.raises(UsageError, match="--device: torch sees no GPU"):
        benchmark.benchmark_ops(tmp_path, device="cuda")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(models=["vgg"]), "--models: must be among elsa_swin_tiny.*, got 'vgg'"),
        (dict(models=[], batch_size=0), "--batch-size must be at least 1, got 0"),
        (dict(models=[], size=(0, 64)), "--size must be at least 1, got 0"),
    ],
)
def test_bad_options_of_benchmark_models(options, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        benchmark_models.benchmark_models(tmp_path, device="cpu", **options)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::addmm", "linear"),
        ("aten::mm", "linear"),
        ("aten::bmm", "window attention"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "window attention"),
        ("aten::convolution_backward", "convolution"),
        ("mmlocal::elsa_attention_backward", "local attention"),
        ("mmlocal_elsa_attention_default", "local attention"),
        ("aten::gelu_", "gelu"),
        ("aten::native_layer_norm_backward", "norm"),
        ("aten::copy_", "copy"),
        ("aten::add", "other"),
        ("aten::mul", "other"),
    ],
)
def test_kinds_of_operators(name, kind):
    assert kind_of(name) == kind


def test_a_convolution_of_one_pixel_is_linear():
    image, weight, wide = [2, 8, 1, 1], [4, 8, 1, 1], [4, 8, 3, 3]
    assert kind_of("aten::mkldnn_convolution", [image, weight]) == "linear"
    assert kind_of("aten::mkldnn_convolution", [image, wide]) == "convolution"
    assert kind_of("aten::convolution_backward", [image, image, weight]) == "linear"
    assert kind_of("aten::convolution_backward", [image, image, wide]) == "convolution"


def test_benchmark_models(tmp_path):
    names = ["elsa_swin_tiny", "qna_vit_tiny", "swin_tiny", "resnet_50"]
    arguments = ["--size", "64", "32", "--batch-size", "1", "--rounds", "1", "--device", "cpu"]
    arguments += ["--out", tmp_path]
    printed = run_tool(
        "benchmark_models.py", "--models", *names, *arguments, MMLOCAL_BACKEND="eager"
    )
    result = json.loads((tmp_path / "models_cpu_64x32_b1.json").read_text())
    assert result.keys() == {"hardware", "versions", "date", "settings", "results"}
    assert result["settings"] == dict(
        batch_size=1,
        size=[64, 32],
        amp=False,
        compile=False,
        rounds=1,
        backends=dict.fromkeys(("elsa", "qna"), "eager"),
    )
    for mode in ("inference", "training"):
        rows = {row["model"]: row for row in result["results"] if row["mode"] == mode}
        assert list(rows) == names
        for row in rows.values():
            assert row.keys() >= TIMES | {"parameters", "macs", "images_per_second", "peak_bytes"}
            assert tuple(row["ms_by_kind"]) == KINDS
            ours = row["model"] in names[:2]
            assert (row["ms_by_kind"]["local attention"] > 0) == ours
            assert row["images_per_second"] == pytest.approx(1e3 / row["median_ms"])
        # torchvision's without the classifier
        assert rows["resnet_50"]["parameters"] == 25_557_032 - 2_049_000
        if mode == "training":  # gradients of all weights are held at once
            assert all(row["peak_bytes"] > 4 * row["parameters"] for row in rows.values())
    assert all(name in printed for name in names)


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return (self.conv(x),)


def test_compiled_models_stand_beside_the_others(tmp_path, monkeypatch):
    monkeypatch.setitem(benchmark_models.MODELS, "tiny", Tiny)
    result = benchmark_models.benchmark_models(
        tmp_path, ["tiny"], size=(32, 32), compiled=True, rounds=1, device="cpu"
    )
    assert (tmp_path / "models_cpu_32x32_b4_compile.json").exists()
    rows = [(row["mode"], row["compiled"], "ms_by_kind" in row) for row in result["results"]]
    assert rows == [
        (mode, compiled, not compiled)
        for mode in ("inference", "training")
        for compiled in (False, True)
    ]
    printed = benchmark_models.format_models(result)
    assert printed.count("tiny, compiled") == 1


def test_peers_that_do_not_compile_are_left_out(tmp_path, monkeypatch):
    def fail(model):
        raise RuntimeError("no compiler\nhere")

    monkeypatch.setattr(torch, "compile", fail)
    monkeypatch.setitem(benchmark_models.MODELS, "tiny", Tiny)
    settings = dict(size=(32, 32), compiled=True, rounds=1, device="cpu")
    result = benchmark_models.benchmark_models(tmp_path, ["tiny"], **settings)
    assert [row.get("skipped") for row in result["results"]] == [None, "no compiler"] * 2
    printed = benchmark_models.format_models(result)
    assert "not run, training: tiny, compiled: no compiler" in printed
    with pytest.raises(RuntimeError, match="no compiler"):
        benchmark_models.benchmark_models(tmp_path, ["qna_vit_tiny"], **settings)
