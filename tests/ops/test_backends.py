"""Which backend a call gets: by argument, by environment variable, by what can run."""

import warnings

import pytest
import torch

from mmlocal.ops import (
    OPS,
    backends,
    elsa_attention,
    elsa_attention_projected,
    qna_attention,
)
from mmlocal.ops.backends import Backend, choose_backend
from mmlocal.ops.elsa import BACKENDS


def backend(name: str, **changes) -> Backend:
    settings = dict(
        description="", module="math", devices=("any",), dtypes=(torch.float32,), atol={}
    )
    return Backend(name=name, deterministic=True, **(settings | changes))


GOOD, OTHER = backend("good"), backend("other")
BROKEN = backend("broken", requires=lambda: "needs a thing")
VALUE = torch.zeros(1)


def test_variable_names_a_backend(monkeypatch):
    assert choose_backend("op", (GOOD, OTHER), VALUE, None) is GOOD
    monkeypatch.setenv("MMLOCAL_BACKEND", "other")
    assert choose_backend("op", (GOOD, OTHER), VALUE, None) is OTHER
    assert choose_backend("op", (GOOD, OTHER), VALUE, "good") is GOOD, "the argument comes first"
    monkeypatch.setenv("MMLOCAL_BACKEND", "")
    assert choose_backend("op", (GOOD, OTHER), VALUE, None) is GOOD


def test_unknown_name_in_the_variable(monkeypatch):
    monkeypatch.setenv("MMLOCAL_BACKEND", "nope")
    with pytest.raises(ValueError, match="op: MMLOCAL_BACKEND must be one of good, other, got 'no"):
        choose_backend("op", (GOOD, OTHER), VALUE, None)
    with pytest.raises(ValueError, match="op: backend must be one of good, other, got 'nada'"):
        choose_backend("op", (GOOD, OTHER), VALUE, "nada")


def test_variable_that_names_what_cannot_run(monkeypatch):
    """No silent way out: the reason, as with the argument, and who asked for it."""
    monkeypatch.setenv("MMLOCAL_BACKEND", "broken")
    reason = r"op: no backend can run here \(broken: needs a thing\)"
    with pytest.raises(RuntimeError, match=reason + "; MMLOCAL_BACKEND asks for it"):
        choose_backend("op", (GOOD, BROKEN), VALUE, None)
    with pytest.raises(RuntimeError, match=reason + "$"):
        choose_backend("op", (GOOD, BROKEN), VALUE, "broken")


def test_variable_is_read_by_the_ops(monkeypatch):
    monkeypatch.setenv("MMLOCAL_BACKEND", "eager")
    used = []
    monkeypatch.setattr(Backend, "load", lambda self: used.append(self.name) or real(self))
    elsa_attention(torch.zeros(1, 1, 2, 2), torch.zeros(1, 9, 2, 2), kernel_size=3)
    qna_attention(torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 3, 3), num_queries=1, kernel_size=3)
    assert used == ["eager", "eager"]


real = Backend.load


def test_compiled_code_reads_the_variable(monkeypatch):
    torch.compiler.reset()
    names = [b.name for b in BACKENDS]
    monkeypatch.setenv("MMLOCAL_BACKEND", "eager")
    graphs = []

    @torch.compile(fullgraph=True, backend=lambda graph, inputs: graphs.append(graph) or graph)
    def op(value, attn):
        return elsa_attention(value, attn, kernel_size=3)

    op(torch.zeros(1, 1, 2, 2), torch.zeros(1, 9, 2, 2))
    (node,) = [n for n in graphs[0].graph.nodes if "elsa" in str(n.target)]
    assert [x for x in node.args if x in names] == ["eager"]


def test_a_slow_backend_is_told_once_with_the_mend():
    """Only where something is missing that this device could use, and nobody asked for it."""
    missing = backend("fast", devices=("cpu",), requires=lambda: "not there: `make it`")
    elsewhere = backend("gpu", devices=("cuda",), requires=lambda: "no GPU")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(3):
            assert choose_backend("op", (elsewhere, missing, GOOD), VALUE, None) is GOOD
    assert [str(warning.message) for warning in told] == [
        "mmlocal runs its good backend on this cpu, which is several times slower than fast: "
        "not there: `make it`"
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other = backend("other_fast", devices=("cpu",), requires=lambda: "not there")
        choose_backend("op", (elsewhere, other, GOOD), VALUE, "good")
        choose_backend("op", (elsewhere, GOOD), VALUE, None)


@pytest.mark.parametrize("projected", [False, True])
def test_the_warning_points_at_the_caller(projected, monkeypatch):
    monkeypatch.delenv("MMLOCAL_BACKEND", raising=False)
    monkeypatch.setattr("mmlocal.ops.extension.unavailable_reason", f"gone: {projected}")
    op, tensors = elsa_attention, [torch.zeros(1, 2, 3, 3), torch.zeros(1, 9, 3, 3)]
    if projected:
        op, tensors = elsa_attention_projected, [*tensors, torch.zeros(9, 9)]
    with pytest.warns(UserWarning, match="several times slower than cpp: gone") as told:
        op(*tensors, kernel_size=3)
    assert told[0].filename == __file__


def test_a_module_that_does_not_import_is_a_reason(monkeypatch, tmp_path):
    """Whatever it raises; the next backend is taken."""
    (tmp_path / "half_installed.py").write_text("raise AttributeError('no attribute knobs')")
    monkeypatch.syspath_prepend(tmp_path)
    broken = backend("broken", module="half_installed")
    assert choose_backend("op", (broken, GOOD), VALUE, None) is GOOD
    reason = "broken: its module does not import: AttributeError: no attribute knobs"
    with pytest.raises(RuntimeError, match=reason):
        choose_backend("op", (broken, GOOD), VALUE, "broken")


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        (None, "triton is not installed"),
        ((3, 2), "needs triton 3.3 or newer, this is 3.2"),
        ((), "needs triton 3.3 or newer, this is of unknown version"),
        ((3, 3), None),
        ((3, 10), None),
    ],
)
def test_oldest_triton(version, reason, monkeypatch):
    monkeypatch.setattr(backends, "_TRITON_VERSION", version)
    monkeypatch.setattr(backends, "TRITON_INTERPRETED", True)
    found = [b for op in OPS.values() for b in op.backends if b.name == "triton"]
    assert len(found) == 5
    assert all(triton.requires() == reason for triton in found)


def test_a_tensor_without_numbers_has_any_backend():
    on_gpu = backend("gpu", devices=("cuda",))
    assert choose_backend("op", (on_gpu,), torch.zeros(1, device="meta"), "gpu") is on_gpu


def test_the_variable_may_name_a_backend_that_an_op_lacks(monkeypatch):
    monkeypatch.setenv(backends.ENVIRONMENT_VARIABLE, "triton")
    op = OPS["convolution"]
    assert choose_backend(op.name, op.backends, torch.zeros(1), None).name == "eager"
    monkeypatch.setenv(backends.ENVIRONMENT_VARIABLE, "cuda")
    with pytest.raises(ValueError, match="MMLOCAL_BACKEND must be one of cpp, eager, reference"):
        choose_backend(op.name, op.backends, torch.zeros(1), None)
    with pytest.raises(ValueError, match="backend must be one of cpp, eager, reference"):
        choose_backend(op.name, op.backends, torch.zeros(1), "triton")
