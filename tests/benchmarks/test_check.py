"""A backend that misses its tolerance is refused, and nothing is timed."""

import sys
import types
from dataclasses import replace

import pytest
import torch
from tool_scripts import load_tool

from benchmarks.check import WrongResultError, check_backend
from mmlocal.ops import OPS, elsa, qna
from mmlocal.ops.backends import Backend
from mmlocal.ops.cases import Case
from mmlocal.ops.elsa import eager as elsa_eager
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
    with pytest.raises(WrongResultError, match=message):
        check(op)


def check(op: str) -> None:
    backend = next(b for b in OPS[op].backends if b.name == "broken")
    check_backend(backend, BIG[op], torch.float32, CPU)


@pytest.mark.parametrize("broken", ["nothing"], indirect=True)
@pytest.mark.parametrize("op", ["elsa", "qna"])
def test_right_backend_is_not(op, broken):
    check(op)


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
