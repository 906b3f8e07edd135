"""A backend that misses its tolerance is refused, and nothing is timed."""

import sys
import types
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tool_scripts import load_tool

from benchmarks.check import WrongResultError, check_backend
from mmlocal.ops import OPS, Op, deformable, elsa, outlook, qna
from mmlocal.ops.backends import Backend
from mmlocal.ops.cases import Case
from mmlocal.ops.deformable import eager as deformable_eager
from mmlocal.ops.elsa import eager as elsa_eager
from mmlocal.ops.outlook import eager as outlook_eager
from mmlocal.ops.qna import eager as qna_eager

CPU = torch.device("cpu")


def spoil(kind: str, module: types.ModuleType) -> types.ModuleType:
    """A backend like ``module``, but with wrong results."""

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
    """Put a broken backend into all ops."""
    for op, module in ((elsa, elsa_eager), (outlook, outlook_eager), (qna, qna_eager)):
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
    "outlook": Case("outlook", "big", 1, 4, 2, 70, 61, 3, 2),
    "qna": Case("qna", "big", 1, 4, 2, 70, 61, 3, 2),
}


@pytest.mark.parametrize("op", BIG)
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
    with pytest.raises(WrongResultError, match=message):
        check(op)


def check(op: str) -> None:
    backend = next(b for b in OPS[op].backends if b.name == "broken")
    check_backend(backend, BIG[op], torch.float32, CPU)


@pytest.mark.parametrize("broken", ["nothing"], indirect=True)
@pytest.mark.parametrize("op", BIG)
def test_right_backend_is_not(op, broken):
    check(op)


@pytest.mark.parametrize("wrong", [None, "small map", "last queries"])
def test_op_without_windows(wrong, monkeypatch):
    """A wrong last query of the whole map, or a wrong value anywhere."""
    case = Case("deformable", "big", 1, 8, 2, 12, 13, 2, variant="2 tasks, 2 levels")
    backend = next(b for b in deformable.BACKENDS if b.name == "eager")
    right = deformable_eager.forward

    def forward(value, *args):
        out = right(value, *args)
        if wrong == "small map" or (wrong and out.shape[1] > 200):
            out[:, -1] *= 1.1
        return out

    monkeypatch.setattr(deformable_eager, "forward", forward)
    if wrong is None:
        check_backend(backend, case, torch.float32, CPU)
        return
    message = f"deformable, big, {wrong}, backend eager, torch.float32: output is off"
    with pytest.raises(WrongResultError, match=message):
        check_backend(backend, case, torch.float32, CPU)


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


@pytest.mark.parametrize("wrong", [False, True])
def test_maps_of_several_resolutions_and_a_table_of_four_dimensions(wrong, monkeypatch):
    """A gate of half the resolution scales a depth-wise convolution of full resolution."""

    def gated(value, gate, weight, *, backend):
        out = F.conv2d(value, weight, padding=1, groups=len(weight))
        gate = gate.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        out = out * gate[..., : value.shape[2], : value.shape[3]]
        if wrong and backend == "broken" and value.shape[2] > 60:
            height, width = value.shape[2:]
            out = out + F.pad(torch.ones(1, 1, 1, 1), (width - 1, 0, height - 1, 0))
        return out

    def make_inputs(case, make):
        channels, height, width = case.channels, case.height, case.width
        return dict(
            value=make(case.batch, channels, height, width),
            gate=make(case.batch, channels, -(-height // 2), -(-width // 2)),
            weight=make(channels, 1, 3, 3),
        )

    analysis = types.ModuleType("analysis_of_gated")
    analysis.make_inputs, analysis.settings = make_inputs, lambda case: {}
    monkeypatch.setitem(sys.modules, analysis.__name__, analysis)
    atol = {torch.float32: 1e-5}
    backend = Backend("broken", "", "torch", ("any",), tuple(atol), deterministic=True, atol=atol)
    op = Op("gated", gated, (backend,), analysis.__name__, tables=("weight",))
    monkeypatch.setitem(OPS, "gated", op)
    case = Case("gated", "big", 1, 4, 1, 70, 61, 3, stride=2)
    if not wrong:
        check_backend(backend, case, torch.float32, CPU)
        return
    with pytest.raises(WrongResultError, match=r"gated, big, last corner.*: output is off by"):
        check_backend(backend, case, torch.float32, CPU)
