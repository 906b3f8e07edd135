"""The machine code of the Triton kernels: no spills, and figures that belong to these kernels."""

import dataclasses
import importlib
import json
import os
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton.backends.driver")

from benchmarks import triton_audit
from benchmarks.ptx import count_loops
from benchmarks.triton_calls import CALLS, VARIANTS, Call
from benchmarks.triton_driver import SHARED_MEMORY

ROOT = Path(__file__).parents[2]
AUDIT = json.loads((ROOT / triton_audit.AUDIT).read_text())
ROWS = triton_audit.unpack(AUDIT["results"])
compiles = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"
)


PTX = """
.visible .entry kernel(.param .u32 kernel_param_0)
{
	ld.param.b32 	%r1, [kernel_param_0];
	mov.b32 	%r2, 0;
$L__BB0_1:
	mov.b32 	%r3, 0;
$L__BB0_2:
	@%p9 ld.global.b32 	%r9, [ %rd1 + 0 ];
	add.s32 	%r3, %r3, 2;
	setp.lt.s32 	%p1, %r3, %r1;
	@%p1 bra 	$L__BB0_2;
	add.s32 	%r2, %r2, 1;
	setp.eq.b32 	%p2, %r2, 3;
	@!%p2 bra 	$L__BB0_1;
	setp.eq.f32 	%p3, %r9, %r9;
	@%p3 bra 	$L__BB0_4;
$L__BB0_3:
	bra.uni 	$L__BB0_3;
$L__BB0_4:
	ret;
$L__func_end0:
}
"""


def test_loops_are_counted():
    """Inside and outside, also one that depends on an argument; what is unknown is left out."""
    loops = [(loop.runs, loop.depth, loop.work["load"]) for loop in count_loops(PTX, [10])]
    assert loops == [(3, 0, 0), (15, 1, 1), (0, 0, 0)]


def test_figures_are_of_these_kernels():
    assert AUDIT["kernels"] == triton_audit.fingerprint(), "run python tools/audit_triton.py"


def test_page_is_as_the_tool_writes_it():
    page = (ROOT / triton_audit.PAGE).read_text()
    assert triton_audit.page_with(page, ROWS) == page, "run python tools/audit_triton.py"


def kernels() -> set[str]:
    """Return the names of all kernels, with their modules."""
    found = set()
    for path in (ROOT / "mmlocal/ops").glob("*/triton_*.py"):
        module = f"{path.parent.name}.{path.stem}"
        for name, kernel in vars(importlib.import_module(f"mmlocal.ops.{module}")).items():
            inner = kernel
            while hasattr(inner, "fn"):
                inner = inner.fn
            if name.endswith("_kernel") and inner.__module__ == f"mmlocal.ops.{module}":
                found.add(f"{module}.{name}")
    return found


def test_every_kernel_and_configuration_is_in_the_figures():
    names = {call.name for call in CALLS}
    for dtype in triton_audit.DTYPES:
        for capability in triton_audit.CAPABILITIES:
            rows = [r for r in ROWS if (r["dtype"], r["capability"]) == (dtype, capability)]
            rows = [r for r in rows if r["call"] in names]
            assert {r["kernel"] for r in rows} == kernels()
            assert {r["call"] for r in rows} == names
            for kernel in kernels():
                mine = {(r["tile"], r["warps"]) for r in rows if r["kernel"] == kernel}
                assert len(mine) >= (1 if kernel.startswith("deformable") else 4), kernel


def test_every_variant_is_in_the_figures():
    capability = triton_audit.MACHINES[triton_audit.VARIANTS_ON].capability
    found = {(r["call"], r["dtype"]) for r in ROWS if r["capability"] == capability}
    assert {(v.name, dtype) for v in VARIANTS for dtype in triton_audit.DTYPES} <= found
    assert {(c.name, dtype) for c in CALLS for dtype in triton_audit.ALL_DTYPES} <= found
    assert {call for call, _ in found} == {call.name for call in [*CALLS, *VARIANTS]}


def constants_of(call: Call) -> set[tuple]:
    """Return what Triton would compile for a call, without compiling: kernels and constants."""
    knobs = pytest.importorskip("triton.knobs")
    found = set()

    def note(*, fn, compile, **others) -> bool:
        names = list(compile["signature"])
        constants = {(names[at], *path): x for (at, *path), x in compile["constants"].items()}
        found.add((fn.module, fn.name, *sorted((*name, str(x)) for name, x in constants.items())))
        return True  # Triton takes the kernel as compiled

    with knobs.runtime.scope():
        knobs.runtime.jit_cache_hook = note
        # No other test compiles for this machine, so nothing is compiled already.
        triton_audit.launches_of(call, torch.float16, 100)
    assert found
    return found


@compiles
def test_every_variant_adds_constants():
    """No variant is compiled twice under two names."""
    known = set().union(*(constants_of(call) for call in CALLS))
    for call in VARIANTS:
        found = constants_of(call)
        assert not found <= known, call.name
        known |= found


@pytest.mark.parametrize("op", ["elsa", "neighborhood", "outlook", "qna"])
@compiles
def test_published_stages_are_compiled(op):
    """Each window, stride and width of a head that a published model has."""
    calls = [c for c in [*CALLS, *VARIANTS] if c.module.__name__.split(".")[-2] == op]
    compiled = set()
    for call in calls:
        for _, _, *constants in constants_of(call):
            by_name = {x[0]: int(x[1]) for x in constants if x[0] in ("KERNEL", "PER_HEAD")}
            stride = next((int(x[1]) for x in constants if x[0] == "STRIDE"), 1)
            compiled.add((by_name["KERNEL"], by_name["PER_HEAD"], stride))
    cases = importlib.import_module(f"mmlocal.ops.{op}.analysis").CASES
    published = {
        (case.kernel_size, case.channels // case.heads, case.stride)
        for name in ("stages", "involution")
        for case in cases.get(name, [])
    }
    assert published
    assert published <= compiled


def test_no_spills_and_within_the_limits():
    assert [r for r in ROWS if r["spilled"]] == []
    for row in ROWS:
        assert row["registers"] <= 255
        assert row["shared"] <= SHARED_MEMORY[row["capability"]]
        assert triton_audit.resident_warps(row) >= 8, row


def test_packed_rows():
    """One for all configurations of a kernel."""
    assert triton_audit.pack(ROWS) == AUDIT["results"]
    names = [
        [row[n] for n in ("call", "dtype", "kernel", "capability")] for row in AUDIT["results"]
    ]
    assert all(names.count(x) == 1 for x in names)


def test_shares():
    row = dict(cycles=2 * triton_audit.MACHINES["A100"].cycles_per_byte)
    assert triton_audit.share_of(row, triton_audit.MACHINES["A100"]) == 0.5
    assert triton_audit.share_of(dict(cycles=1e-3), triton_audit.MACHINES["B200"]) == 1.0


@compiles
def test_compiled_again():
    """One configuration of some kernels has the figures that are written down."""
    call = next(c for c in CALLS if c.name == "QnA-ViT-T, stage 1")
    once = dataclasses.replace(call, deterministic=True)
    rows = triton_audit.audit([once], ["bfloat16"], [90])
    assert len(rows) == 4
    assert not any(r["spilled"] for r in rows)
    import triton

    if triton.__version__ == AUDIT["triton"]:
        assert all(row in ROWS for row in rows), "run python tools/audit_triton.py"
