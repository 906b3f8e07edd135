"""Triton's deformable attention against the definition, as ``test_triton`` does for other ops."""

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import BACKWARD_CHECKS, make_cotangent, worst_error
from random_problems import differences, make_problem
from test_triton import (
    BF16,
    DEVICE,
    F16,
    F32,
    F64,
    INTERPRETED,
    CompileOnly,
    arrange,
    kernels,
    on_gpu,
    stack_bytes,
)

from mmlocal.ops import deformable_attention, deformable_attention_from_offsets
from mmlocal.ops.deformable import BACKENDS
from mmlocal.ops.layout import new_map

ATOL = next(b for b in BACKENDS if b.name == "triton").atol
GOLDEN = Path(__file__).parents[1] / "data/mtl/itsa_sampling_core.npz"
SHAPES = ((3, 4), (2, 1), (1, 2))
CASES = [
    # (batch, queries, heads, channels, points), maps, padding_mode, dtype, layout
    ((2, 2, 2, 3, 3), SHAPES, "zeros", F32, "contiguous"),
    ((2, 2, 2, 3, 3), SHAPES, "border", F64, "contiguous"),
    ((1, 2, 1, 70, 4), SHAPES[:2], "border", BF16, "contiguous"),  # as in ITSA: 64 + 8 channels
    ((1, 2, 1, 70, 2), SHAPES[:2], "zeros", F16, "transposed"),
    ((1, 2, 1, 32, 17), SHAPES[:1], "zeros", F32, "channels-last"),  # two blocks of points
    ((1, 1, 2, 8, 1), SHAPES, "border", F32, "sliced"),
    ((1, 1, 1, 300, 2), SHAPES[:1], "zeros", F32, "contiguous"),  # more channels than a warp has
    ((1, 1, 1, 1, 1), ((1, 1),), "border", F16, "contiguous"),
    ((0, 2, 2, 3, 2), SHAPES, "zeros", F32, "contiguous"),
    ((2, 0, 2, 3, 2), SHAPES, "zeros", F32, "contiguous"),
]
FUNCTIONS = {False: deformable_attention, True: deformable_attention_from_offsets}
operators = pytest.mark.parametrize("fused", FUNCTIONS, ids={False: "attention", True: "fused"}.get)


def make(size, maps, fused: bool, dtype=F32, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return the tensors of a call, on the device. A third of the samples is outside its map."""
    g = torch.Generator().manual_seed(seed)
    batch, queries, heads, channels, points = size
    weights = (batch, queries, heads, len(maps), points)
    pixels = sum(height * width for height, width in maps)
    tensors = {"value": torch.randn(batch, pixels, heads, channels, generator=g)}
    if fused:
        tensors |= {
            "reference_points": torch.rand(min(1, batch), queries, 1, 2, generator=g),
            "sampling_offsets": torch.randn(*weights, 2, generator=g),
            "attention_logits": 2 * torch.randn(weights, generator=g),
        }
    else:
        tensors |= {
            "sampling_locations": torch.rand(*weights, 2, generator=g) * 1.4 - 0.2,
            "attention_weights": torch.randn(weights, generator=g),
        }
    return {n: x.to(DEVICE, dtype) for n, x in tensors.items()}


def spread(x: torch.Tensor) -> torch.Tensor:
    """Return the same numbers with gaps in memory."""
    return torch.stack((x, x + 1), dim=-1)[..., 0]


def results(fused: bool, tensors: dict, maps, mode: str, backend="triton", cotangent=None) -> dict:
    """Output and gradients for one fixed cotangent."""
    tensors = {n: x.detach().requires_grad_() for n, x in tensors.items()}
    out = FUNCTIONS[fused](**tensors, spatial_shapes=maps, padding_mode=mode, backend=backend)
    if cotangent is None:
        cotangent = make_cotangent(out).to(out.device)
    grads = torch.autograd.grad(out, list(tensors.values()), cotangent.to(out.dtype))
    named = {f"grad of {n}": g for n, g in zip(tensors, grads, strict=True)}
    return {"out": out.detach(), **named}


def definition(fused: bool, tensors: dict, maps, mode: str, cotangent=None) -> dict:
    """The same by the definition in float64, on the same (rounded) numbers."""
    exact = {n: x.detach().cpu().double() for n, x in tensors.items()}
    return results(fused, exact, maps, mode, "reference", cotangent)


def on_cpu(tensors: dict) -> dict:
    return {n: x.cpu() for n, x in tensors.items()}


def case_id(case: tuple) -> str:
    size, maps, mode, dtype, layout = case
    return "-".join([*map(str, size), str(len(maps)), mode, str(dtype)[6:], layout])


@pytest.mark.skipif(INTERPRETED, reason="is what runs this")
def test_in_the_interpreter():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "", __file__],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, done.stdout
    assert int(passed[1]) >= 2 * len(CASES)


@pytest.mark.skipif(INTERPRETED or DEVICE == "cuda", reason="compiles where nothing else does")
@pytest.mark.parametrize(
    ("capability", "dtype", "maps", "deterministic"),
    [
        (80, BF16, 12, False),
        (80, F32, 15, False),
        (90, F32, 12, False),
        (90, BF16, 15, True),
    ],
)
@operators
def test_kernels_compile(fused, capability, dtype, maps, deterministic, monkeypatch, tmp_path):
    """As ITSA calls them, to machine code that keeps all numbers in registers.

    Offsets into tensors have 64 bits, and the channels of a head are read in blocks of 16 bytes, or
    of 8 in smaller tiles.
    """
    jit = pytest.importorskip("triton.runtime.jit")
    name = "triton_fused" if fused else "triton_impl"
    module = pytest.importorskip(f"mmlocal.ops.deformable.{name}")
    run, compiled = jit.JITFunction.run, {}

    def compile_only(self, *args, warmup, **kwargs):
        kernel = run(self, *args, warmup=True, **kwargs)
        compiled[self.__name__] = kernel.asm
        assert stack_bytes(kernel.asm["cubin"], tmp_path) == 0, self.__name__

    monkeypatch.setattr(jit.JITFunction, "run", compile_only)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic)
    monkeypatch.setattr(jit.driver, "_active", CompileOnly(capability))
    tensors = make((1, 5, 4, 70, 16), ((3, 4),) * maps, fused, dtype)
    if fused:
        tensors["reference_points"] = tensors["reference_points"].expand(-1, -1, maps, -1)
    settings = ([3, 4] * maps, "border")
    out = module.forward(*tensors.values(), *settings)
    module.backward(out, *tensors.values(), *settings, [True] * len(tensors))
    assert set(compiled) == {"forward_kernel", "backward_kernel"}
    for kernel, asm in compiled.items():
        small = deterministic and kernel == "backward_kernel"
        assert f"ld.global.v{2 if small else 4}.b32" in asm["ptx"], kernel
        # The first offset of each tensor is that of this program's row.
        offsets = re.findall(
            r"tt\.addptr %(value|places|weights|grad|grad_[a-z]+|out),.*, (i\d+)", asm["ttir"]
        )
        assert len(offsets) >= 4, kernel
        assert {bits for _, bits in offsets} == {"i64"}, str(offsets)


@kernels
@operators
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_values_and_gradients(case, fused):
    size, maps, mode, dtype, layout = case
    tensors = {n: arrange(x, layout) for n, x in make(size, maps, fused, dtype).items()}
    if layout != "contiguous":
        tensors = {n: x if n == "value" else spread(x) for n, x in tensors.items()}
    expected = definition(fused, tensors, maps, mode)
    ours = results(fused, tensors, maps, mode)
    error = worst_error(on_cpu(ours), expected)
    print(f"worst error {error:.1e}, limit {ATOL[dtype]:.1e}")
    assert error <= ATOL[dtype]
    assert all(x.dtype == dtype for x in ours.values())
    assert ours["out"].is_contiguous()
    assert (
        ours["grad of value"].stride()
        == new_map(tensors["value"], ours["grad of value"].shape).stride()
    )


@kernels
@pytest.mark.parametrize(("name", "mode"), [("zeros", "zeros"), ("clamp", "border")])
def test_golden(name, mode):
    """One sample and head of the official function's numbers."""
    golden = np.load(GOLDEN, allow_pickle=False)
    maps = json.loads(str(golden["meta"]))["shapes_hw"]
    b, head, channels = 1, 2, golden["value"].shape[3]
    own = slice(head, head + 1)
    value, locations, weights = (
        torch.from_numpy(golden[n][b : b + 1, :, own]).to(DEVICE)
        for n in ("value", "sampling_locations", "attention_weights")
    )
    of_head = slice(head * channels, (head + 1) * channels)
    cotangent = torch.from_numpy(golden["grad_output"][b : b + 1, :, of_head]).to(DEVICE)
    tensors = dict(value=value, sampling_locations=locations, attention_weights=weights)
    ours = results(False, tensors, maps, mode, cotangent=cotangent)
    expected = {"out": golden[f"{name}.output"][b : b + 1, :, of_head]}
    expected |= {f"grad of {n}": golden[f"{name}.grad_{n}"][b : b + 1, :, own] for n in tensors}
    error = worst_error(on_cpu(ours), {n: torch.from_numpy(x) for n, x in expected.items()})
    print(f"worst error {error:.1e}")
    assert error < 2e-6


def extreme(fused: bool) -> dict[str, torch.Tensor]:
    """Samples far outside, at infinity and at NaN, and exactly on pixels and on borders."""
    tensors = make((1, 3, 1, 8, 4), ((4, 2), (2, 4)), fused)
    places = tensors["sampling_offsets" if fused else "sampling_locations"]
    inf = torch.inf
    numbers = [0.0, 1.0, -1.0, 0.5, 2.0, -0.25, 1e9, -1e9, 1e38, -3e38, inf, -inf]
    places[:, :2].view(-1)[: 2 * len(numbers)] = torch.tensor(numbers).repeat(2).to(places)
    places[0, 2, 0, 1, 2, 1] = torch.nan
    if fused:
        tensors["reference_points"][:] = 0.125  # so far from the border, pixels are whole numbers
    return tensors


@kernels
@operators
@pytest.mark.parametrize("mode", ["zeros", "border"])
def test_samples_anywhere(fused, mode):
    """They read no number beyond their map, and agree with the definition, NaN included."""
    maps, tensors = ((4, 2), (2, 4)), extreme(fused)
    around = torch.full((3, *tensors["value"].shape[1:]), torch.nan, device=DEVICE)
    around[1:2] = tensors["value"]
    tensors["value"] = around[1:2]
    ours = on_cpu(results(fused, tensors, maps, mode))
    expected = definition(fused, tensors, maps, mode)
    for name, x in ours.items():
        torch.testing.assert_close(
            x.double(), expected[name], atol=1e-5, rtol=1e-5, equal_nan=True, msg=name
        )
    assert ours["out"][0, :2].isfinite().all()
    assert ours["out"][0, 2].isnan().all()
    assert ours["grad of value"].isfinite().all()


@kernels
@operators
def test_inputs_may_be_frozen_and_of_other_dtypes(fused):
    """Only what is asked for is computed; positions are in float32 in mixed precision."""
    maps = SHAPES[:2]
    tensors = make((1, 2, 1, 4, 2), maps, fused, BF16)
    tensors = {n: x.float() if n[:4] in ("samp", "refe") else x for n, x in tensors.items()}
    full = results(fused, tensors, maps, "border")
    assert worst_error(on_cpu(full), definition(fused, tensors, maps, "border")) <= ATOL[BF16]
    assert all(full[f"grad of {n}"].dtype == x.dtype for n, x in tensors.items())
    for name in tensors:
        live = {n: y.detach().requires_grad_(n == name) for n, y in tensors.items()}
        out = FUNCTIONS[fused](**live, spatial_shapes=maps, padding_mode="border", backend="triton")
        (ours,) = torch.autograd.grad(out, live[name], make_cotangent(out))
        assert torch.equal(ours, full[f"grad of {name}"]), name


@kernels
@operators
def test_more_programs_than_a_dimension_of_a_grid_has(fused, monkeypatch):
    from mmlocal.ops.deformable import triton_impl

    tensors = make((1, 3, 2, 4, 1), SHAPES[:1], fused)
    expected = results(fused, tensors, SHAPES[:1], "zeros")
    monkeypatch.setattr(triton_impl, "_PROGRAMS", 4)  # the last two of 8 have no row
    ours = results(fused, tensors, SHAPES[:1], "zeros")
    assert worst_error(ours, expected) < 1e-6  # sums for the value have another order


@pytest.fixture
def deterministic():
    """Switch deterministic algorithms on, and off again after the test."""

    def switch(warn_only: bool = False) -> None:
        torch.use_deterministic_algorithms(True, warn_only=warn_only)

    yield switch
    torch.use_deterministic_algorithms(False)


@kernels
@pytest.mark.parametrize(("fused", "scale"), [(False, 1e-12), (False, 1e12), (True, 1.0)])
def test_deterministic_gradient_of_value(fused, scale, deterministic):
    """It has the same bits in whatever order the queries come, and no larger an error."""
    maps, mode = ((1, 2),), "border"
    tensors = make((1, 10, 1, 2, 2), maps, fused)
    cotangent = torch.randn(1, 10, 2, generator=torch.Generator().manual_seed(1)) * scale
    expected = definition(fused, tensors, maps, mode, cotangent)["grad of value"]
    deterministic()
    order = torch.arange(9, -1, -1)
    turned = {n: x if n == "value" else x[:, order] for n, x in tensors.items()}
    first = results(fused, tensors, maps, mode, cotangent=cotangent.to(DEVICE))
    again = results(fused, turned, maps, mode, cotangent=cotangent[:, order].to(DEVICE))
    assert torch.equal(first["grad of value"], again["grad of value"])
    assert torch.equal(first["out"][:, order], again["out"])
    assert worst_error({"": first["grad of value"].cpu()}, {"": expected}) < 1e-6


@kernels
def test_deterministic_gradient_of_numbers_that_are_not_finite(deterministic):
    deterministic()
    maps = ((2, 2), (1, 2))
    tensors = make((1, 4, 1, 3, 2), maps, False)
    cotangent = torch.ones(1, 4, 3)
    for channel, number in enumerate((torch.nan, torch.inf, 1.0)):
        cotangent[0, 1, channel] = number
    expected = definition(False, tensors, maps, "zeros", cotangent)["grad of value"]
    ours = results(False, tensors, maps, "zeros", cotangent=cotangent.to(DEVICE))
    torch.testing.assert_close(
        ours["grad of value"].cpu().double(), expected, atol=1e-6, rtol=1e-6, equal_nan=True
    )


@kernels
@operators
def test_no_deterministic_gradient_in_float64(fused, deterministic):
    maps = SHAPES[:1]
    tensors = make((1, 1, 1, 2, 1), maps, fused, F64)
    expected = results(fused, tensors, maps, "zeros")
    deterministic()
    with pytest.raises(RuntimeError, match="value in float64; pass backend='eager', a value in"):
        results(fused, tensors, maps, "zeros")
    frozen = {n: x.detach().requires_grad_(n != "value") for n, x in tensors.items()}
    out = FUNCTIONS[fused](**frozen, spatial_shapes=maps, backend="triton")
    torch.autograd.grad(out.sum(), [x for x in frozen.values() if x.requires_grad])
    deterministic(warn_only=True)
    with pytest.warns(UserWarning, match="no deterministic gradient of a value in float64"):
        ours = results(fused, tensors, maps, "zeros")
    assert all(torch.equal(x, expected[n]) for n, x in ours.items())


# Seeds of calls that are small, most of them with infinity or NaN in one of the tensors.
RANDOM = {"deformable": [9, 88, 153, 217], "deformable_from_offsets": [114, 194, 196, 223]}


@kernels
@pytest.mark.parametrize("op", RANDOM)
def test_random_problems(op):
    found = []
    for seed in RANDOM[op]:
        problem = make_problem(op, seed, limit=3)
        exact = problem.run("reference", F64)
        problem.tensors = {n: x.to(DEVICE) for n, x in problem.tensors.items()}
        problem.cotangent = problem.cotangent.to(DEVICE)
        found += differences(problem, "triton", exact)
    assert found == []


@kernels
@operators
def test_opcheck(fused):
    tensors = make((1, 1, 1, 2, 1), ((1, 2),), fused)
    if fused:
        tensors["reference_points"] = tensors["reference_points"].expand(1, 1, 1, 2)
    name = FUNCTIONS[fused].__name__
    inputs = [x.clone().requires_grad_() for x in tensors.values()]
    settings = ([1, 2], "zeros", "triton")
    torch.library.opcheck(getattr(torch.ops.mmlocal, name), (*inputs, *settings))
    needed = [i != 1 for i in range(len(inputs))]
    backward = getattr(torch.ops.mmlocal, f"{name}_backward")
    grad = torch.ones(1, 1, 2, device=DEVICE)
    args = (grad, *tensors.values(), *settings, needed)
    torch.library.opcheck(backward, args, **BACKWARD_CHECKS)


# What follows needs a GPU.

LARGE = [
    ((2, 700, 4, 70, 16), ((27, 35), (14, 18), (7, 9)) * 4),
    ((1, 700, 8, 32, 4), ((40, 50), (20, 25), (10, 13), (5, 7))),
    ((3, 333, 1, 200, 5), ((31, 17),)),
]


def off_pixels(tensors: dict, maps) -> dict:
    """Move samples that lie near a pixel, where the slope jumps, in place.

    The last digit of a position decides on which side of the pixel such a sample lies.
    """
    fused = "sampling_offsets" in tensors
    places = tensors["sampling_offsets" if fused else "sampling_locations"]
    sides = torch.tensor([(width, height) for height, width in maps], device=places.device)[:, None]
    for _ in range(20):
        pixels = places.double()
        if fused:
            pixels = pixels + tensors["reference_points"].double()[:, :, None, :, None] * sides
        else:
            pixels = pixels * sides
        near = ((pixels - 0.5).frac().abs() - 0.5).abs() > 0.499
        places.add_(near * (0.3 if fused else 0.3 / sides))
    assert not near.any()
    return tensors


@on_gpu
@operators
@pytest.mark.parametrize("mode", ["zeros", "border"])
@pytest.mark.parametrize("dtype", [F64, F32, BF16, F16], ids=str)
def test_large_maps(dtype, mode, fused):
    for size, maps in LARGE:
        tensors = off_pixels(make(size, maps, fused, dtype), maps)
        exact = {n: x.double() for n, x in tensors.items()}
        expected = results(fused, exact, maps, mode, "eager")
        assert worst_error(results(fused, tensors, maps, mode), expected) <= ATOL[dtype]


@on_gpu
@operators
def test_same_bits_on_a_gpu(fused, deterministic):
    """Of all results but the gradient of the value; of all where that is asked for."""
    size, maps = LARGE[0]
    tensors = make(size, maps, fused, BF16)
    first = results(fused, tensors, maps, "zeros")
    again = results(fused, tensors, maps, "zeros", backend=None)
    assert all(torch.equal(x, first[n]) for n, x in again.items() if n != "grad of value")
    deterministic()
    first = results(fused, tensors, maps, "zeros")
    for _ in range(3):
        again = results(fused, tensors, maps, "zeros")
        assert all(torch.equal(x, first[n]) for n, x in again.items())


@on_gpu
@operators
@pytest.mark.parametrize("compiler", ["inductor", "aot_eager"])
def test_compile(fused, compiler):
    torch.compiler.reset()
    size, maps = LARGE[1]
    tensors = {n: x.requires_grad_() for n, x in make(size, maps, fused).items()}
    op = functools.partial(FUNCTIONS[fused], spatial_shapes=maps)
    compiled = torch.compile(op, fullgraph=True, backend=compiler)
    outs = op(**tensors), compiled(**tensors)
    grads = [torch.autograd.grad(x.square().sum(), list(tensors.values())) for x in outs]
    assert torch.equal(*outs)
    for ours, expected in zip(*grads, strict=True):
        assert worst_error({"": ours}, {"": expected}) < 1e-5


@on_gpu
def test_more_numbers_than_fit_32_bits():
    """A batch whose last sample lies behind the 2**31st number."""
    size, maps = (1, 2**20, 1, 8, 16), ((40, 50), (20, 25))
    tensors = make(size, maps, True, F16)
    samples = 2**31 // tensors["sampling_offsets"].numel() + 2

    def run(tensors: dict) -> list[torch.Tensor]:
        """Without the gradient of the value, to which too many samples would add."""
        live = [tensors[n].requires_grad_() for n in ("sampling_offsets", "attention_logits")]
        op = deformable_attention_from_offsets
        out = op(**tensors, spatial_shapes=maps, backend="triton")
        return [out.detach(), *torch.autograd.grad(out, live, torch.ones_like(out))]

    many = {n: x.repeat(samples, *[1] * (x.dim() - 1)) for n, x in tensors.items()}
    assert many["sampling_offsets"].numel() > 2**31
    for ours, expected in zip(run(many), run(tensors), strict=True):
        assert torch.equal(ours[-1], expected[0])
