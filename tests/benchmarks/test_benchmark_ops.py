"""The whole benchmark of ops."""

import json
import sys
import types
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from tool_scripts import TIMES, run_tool

from benchmarks import ops
from benchmarks.contest import measure_case
from benchmarks.contestants import Contestant, list_backends
from benchmarks.peers import PEERS, output_stride
from benchmarks.report import MODES
from mmlocal import info
from mmlocal.errors import UsageError
from mmlocal.ops import OPS, Op, register_op
from mmlocal.ops.backends import Backend, choose_backend
from mmlocal.ops.cases import Case

CPU = torch.device("cpu")
SMOKE = [case for op in OPS.values() for case in op.load_analysis().CASES["smoke"]]


def test_benchmark_ops(tmp_path):
    names = ["dwconv", "conv", "exp_conv", "swin", "halo"]
    arguments = ["--shapes", "smoke", "--device", "cpu", "--rounds", "2", "--out", tmp_path]
    printed = run_tool("benchmark_ops.py", *arguments, "--peers", *names)
    result = json.loads((tmp_path / "ops_smoke_cpu.json").read_text())
    assert result.keys() == {"hardware", "versions", "date", "settings", "results"}
    assert result["hardware"]["threads"] == 1
    assert result["versions"]["torch"] == torch.__version__
    assert result["settings"]["rounds"] == 2
    for case in SMOKE:
        rows = [row for row in result["results"] if row["case"]["name"] == case.name
                and row["case"]["op"] == case.op]  # fmt: skip
        for mode in ("forward", "training"):
            found = {row["contestant"]: row for row in rows if row["mode"] == mode}
            beside = {peer.name for peer in PEERS if peer.stands_beside(case.op)} & {*names}
            assert found.keys() >= {"eager", "reference"} | beside - {"exp_conv"}
            assert ("exp_conv" in found) == (case.op == "qna")
            for row in found.values():
                if output_stride(case) == 2 and row["contestant"] in ("swin", "halo"):
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


def test_extra_memory_of_the_definition():
    """It writes out windows of 25 values. The tap-by-tap form does not."""
    case = Case("elsa", "", 1, 32, 2, 48, 48, 5)
    found = [("backend", c) for c in list_backends("elsa") if c.name in ("eager", "reference")]
    rows = measure_case(case, found, torch.float32, CPU, rounds=1)
    extra = {(row["contestant"], row["mode"]): row["extra_bytes"] for row in rows}
    value = 4 * 32 * 48 * 48
    for mode in MODES:
        assert extra["reference", mode] > 50 * value
        assert extra["eager", mode] < 15 * value


def test_peers_may_fail_backends_may_not():
    def fail(case, make):
        raise NotImplementedError("not here\nand more")

    case = SMOKE[0]
    failing = Contestant("failing", "", fail, ("elsa",))
    rows = measure_case(case, [("peer", failing)], torch.float32, CPU, rounds=1)
    assert [(row["mode"], row["skipped"]) for row in rows] == [
        ("forward", "not here"),
        ("training", "not here"),
    ]
    with pytest.raises(NotImplementedError):
        measure_case(case, [("backend", failing)], torch.float32, CPU, rounds=1)


@pytest.fixture
def box(monkeypatch) -> Iterator[None]:
    """An op from another package: the mean of each window."""

    def box_mean(value, *, kernel_size, backend=None):
        choose_backend("box_mean", backends, value, backend)
        return F.avg_pool2d(value, kernel_size, stride=1, padding=kernel_size // 2)

    atol = {torch.float32: 1e-6, torch.float64: 1e-14}
    settings = dict(devices=("any",), dtypes=tuple(atol), deterministic=True, atol=atol)
    backends = tuple(Backend(x, "mean", "torch", **settings) for x in ("eager", "reference"))
    analysis = types.ModuleType("analysis_of_box")
    analysis.FLOPS = {}
    analysis.CASES = {"smoke": [Case("box", "tiny", 1, 4, 1, 9, 11, 3)], "boxes": []}
    analysis.make_inputs = lambda case, make: dict(
        value=make(case.batch, case.channels, case.height, case.width)
    )
    analysis.settings = lambda case: dict(kernel_size=case.kernel_size)
    analysis.window_values = lambda case: 0
    monkeypatch.setitem(sys.modules, analysis.__name__, analysis)
    register_op(Op("box", box_mean, backends, analysis.__name__))
    yield
    del OPS["box"]


@pytest.mark.usefixtures("box")
def test_an_op_of_another_package(tmp_path):
    assert "boxes" in ops.case_sets()
    found = ops.benchmark_ops(tmp_path, shapes="smoke", peers=["conv", "exp_conv"], rounds=1)
    rows = [row for row in found["results"] if row["case"]["op"] == "box"]
    names = {row["contestant"] for row in rows if "skipped" not in row}
    assert names == {"eager", "reference", "conv"}  # the other peer is one of QnA
    assert {row["case"]["op"] for row in found["results"]} == set(OPS)
    assert "box" in {row["op"] for row in info.backends()}


def test_plots(monkeypatch, tmp_path):
    cases = [Case("elsa", f"{k}", 1, 8, 2, 9, 9, k) for k in (3, 5)]
    monkeypatch.setitem(OPS["elsa"].load_analysis().CASES, "figure2", cases)
    result = ops.benchmark_ops(
        tmp_path, ["elsa"], "figure2", ["float32", "bfloat16"], ["eager"], ["dwconv"], 1, "cpu"
    )
    assert {row["dtype"] for row in result["results"]} == {"float32", "bfloat16"}
    assert json.loads((tmp_path / "ops_figure2_cpu.json").read_text()) == result
    for dtype in ("float32", "bfloat16"):
        assert (tmp_path / f"ops_figure2_cpu_elsa_{dtype}.png").stat().st_size > 10000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(backends=["fast"]), "backends: must be among .*eager.*, got 'fast'"),
        (dict(peers=["fast"]), "peers: must be among .*halo.*, got 'fast'"),
        (dict(rounds=0), "rounds: must be at least 1, got 0"),
    ],
)
def test_bad_options_of_benchmark_ops(options, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        ops.benchmark_ops(tmp_path, shapes="smoke", device="cpu", **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu(tmp_path):
    with pytest.raises(UsageError, match="device: torch sees no GPU"):
        ops.benchmark_ops(tmp_path, device="cuda")
