"""The Triton backends against the definitions: on a GPU, or else in Triton's interpreter.

The interpreter runs the kernels on CPU tensors, one program after the other. It has to be switched
on before Triton defines them, so these tests start once more in a process of their own.
"""

import functools
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import (
    BACKWARD_CHECKS,
    make_cotangent,
    make_elsa,
    make_neighborhood,
    make_outlook,
    make_projected,
    make_qna,
    worst_error,
)
from random_problems import differences, make_problem

from mmlocal.layers import ELSA
from mmlocal.ops import OPS, elsa_attention, neighborhood_scores, outlook_attention, qna_attention
from mmlocal.ops import elsa_attention_projected as projected
from mmlocal.ops.backends import choose_backend
from mmlocal.ops.layout import new_map

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TOO_OLD = next(b for b in OPS["elsa"].backends if b.name == "triton").requires() or ""
if TOO_OLD.startswith("needs triton"):
    pytest.skip(TOO_OLD, allow_module_level=True)
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
kernels = pytest.mark.skipif(
    not INTERPRETED and DEVICE == "cpu", reason="test_in_the_interpreter runs it"
)
on_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
ELSA_CASES = [
    # (batch, heads, channels per head, height, width, kernel, dilation), (lam, gamma), softmax
    ((2, 2, 2, 4, 5, 3, 1), (1, 1), True, F32, "contiguous"),
    ((1, 1, 2, 1, 1, 1, 1), (1, 1), True, F64, "contiguous"),
    ((1, 3, 4, 2, 6, 5, 1), (0, 1), True, BF16, "channels-last"),
    ((1, 1, 3, 7, 5, 5, 2), (1, 0), True, F16, "sliced"),
    ((1, 1, 2, 6, 5, 3, 2), (1, 1), False, F64, "transposed"),
    ((1, 2, 1, 3, 4, 3, 1), (0, 0), True, F32, "expanded"),
    ((1, 1, 96, 6, 7, 3, 1), (1, 1), True, F16, "channels-last"),  # three tiles, the last in part
    ((2, 1, 32, 16, 17, 1, 1), (1, 1), True, F32, "contiguous"),  # two partial sums
    ((1, 1, 2, 6, 7, 7, 1), (1, 1), True, F32, "contiguous"),
    ((0, 2, 2, 4, 5, 3, 1), (1, 1), True, F32, "contiguous"),
]
NEIGHBORHOOD_CASES = [
    # as above, border
    ((2, 2, 2, 4, 5, 3, 1), "zero", F32, "contiguous"),
    ((1, 1, 2, 1, 1, 1, 1), "mask", F64, "contiguous"),
    ((1, 3, 4, 2, 6, 5, 1), "mask", BF16, "channels-last"),
    ((1, 1, 3, 7, 5, 5, 2), "mask", F16, "sliced"),
    ((1, 1, 2, 6, 5, 3, 2), "zero", F64, "transposed"),
    ((1, 2, 1, 3, 4, 3, 1), "zero", F32, "expanded"),
    ((1, 1, 96, 6, 7, 3, 1), "mask", F16, "channels-last"),  # three tiles, the last in part
    ((0, 2, 2, 4, 5, 3, 1), "mask", F32, "contiguous"),
]
PROJECTED_CASES = [
    # as above, (lam, gamma, bias), features
    ((2, 2, 2, 4, 5, 3, 1), (1, 1, True), 20, F32, "contiguous"),
    ((1, 1, 2, 1, 1, 1, 1), (1, 1, True), 8, F64, "contiguous"),
    ((1, 3, 5, 7, 6, 5, 2), (0, 1, True), 33, BF16, "channels-last"),
    ((1, 1, 3, 6, 7, 7, 1), (1, 0, False), 100, F16, "sliced"),
    ((2, 1, 2, 6, 5, 3, 2), (1, 1, False), 16, F64, "transposed"),
    ((1, 2, 1, 3, 4, 3, 1), (0, 0, True), 40, F32, "expanded"),
    ((1, 1, 96, 6, 7, 3, 1), (1, 1, True), 530, F16, "channels-last"),  # three tiles, two blocks
    ((1, 2, 32, 9, 8, 7, 1), (0, 1, True), 64, BF16, "channels-last"),  # as in ELSA-Swin
    ((2, 3, 3, 5, 9, 5, 1), (1, 1, False), 64, F32, "channels-last"),
    ((0, 2, 2, 4, 5, 3, 1), (1, 1, True), 20, F32, "contiguous"),
]
QNA_CASES = [
    # (batch, heads, channels per head, height, width, kernel, stride, padding, queries),
    # (rel_pos, tap_weight), sum_queries
    ((2, 2, 2, 4, 5, 3, 1, 1, 2), (True, True), True, F32, "contiguous"),
    ((1, 1, 2, 1, 1, 1, 1, 0, 1), (True, True), True, F64, "contiguous"),
    ((1, 2, 3, 7, 6, 3, 2, 1, 3), (True, True), True, BF16, "channels-last"),
    ((1, 1, 2, 5, 4, 3, 1, 1, 2), (True, True), False, F16, "channels-last"),
    ((1, 1, 2, 7, 9, 4, 2, 1, 4), (False, True), False, F32, "sliced"),
    ((1, 2, 2, 5, 8, 2, 3, 1, 1), (True, False), True, F64, "transposed"),  # tokens in no window
    ((1, 1, 4, 8, 6, 5, 1, 0, 2), (False, False), True, F32, "expanded"),
    ((1, 1, 96, 6, 7, 3, 1, 1, 2), (True, True), True, F16, "channels-last"),  # three tiles
    ((2, 1, 32, 16, 17, 2, 1, 1, 2), (True, True), True, F32, "contiguous"),  # two partial sums
    ((1, 1, 2, 6, 7, 7, 1, 3, 2), (True, True), True, F32, "contiguous"),
    ((0, 2, 2, 4, 5, 3, 1, 1, 2), (True, True), True, F32, "contiguous"),
]
OUTLOOK_CASES = [
    # (batch, heads, channels per head, height, width, kernel, stride, padding), softmax
    ((2, 2, 2, 5, 4, 3, 2, 1), True, F32, "contiguous"),
    ((1, 1, 2, 1, 1, 3, 2, 1), True, F64, "contiguous"),
    ((1, 2, 32, 5, 6, 3, 2, 1), True, BF16, "channels-last"),  # heads of VOLO
    ((1, 2, 3, 4, 5, 3, 1, 1), False, F16, "channels-last"),
    ((1, 1, 2, 3, 4, 5, 2, 2), True, F32, "sliced"),
    ((1, 2, 2, 6, 7, 2, 3, 1), True, F64, "transposed"),  # pixels in no window
    ((2, 1, 3, 5, 4, 2, 1, 0), True, F32, "expanded"),
    ((1, 1, 96, 17, 18, 1, 1, 0), True, F16, "channels-last"),  # several tiles, the last in part
    ((0, 2, 2, 4, 5, 3, 2, 1), True, F32, "contiguous"),
]


def case_id(case: tuple) -> str:
    shape, *switches, dtype, layout = case
    return "-".join([*map(str, (*shape, *switches)), str(dtype)[6:], layout])


def arrange(x: torch.Tensor, layout: str) -> torch.Tensor:
    if x.dim() != 4 or layout == "contiguous":
        return x
    if layout == "channels-last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":  # as the value that one projection makes with the query and the key
        return torch.cat((x, x), dim=1)[:, x.shape[1] :]
    if layout == "transposed":
        return x.mT.contiguous().mT
    assert layout == "expanded"
    return x[:1, :, :1].expand(len(x), -1, x.shape[2], -1)


def results(op, tensors: dict, layout: str = "contiguous", **settings) -> dict[str, torch.Tensor]:
    """Output and gradients for one fixed cotangent."""
    tensors = {n: arrange(x.detach(), layout).requires_grad_() for n, x in tensors.items()}
    out = op(**tensors, **settings)
    cotangent = make_cotangent(out).to(out.device)
    cotangent = arrange(cotangent, layout if layout != "expanded" else "contiguous")
    grads = torch.autograd.grad(out, list(tensors.values()), cotangent)
    named = {f"grad of {n}": g for n, g in zip(tensors, grads, strict=True)}
    return {"out": out.detach(), **named}


def check(op, tensors: dict, layout: str = "contiguous", **settings) -> None:
    """Values and gradients against the definition in float64 on the same (rounded) numbers, and
    the dtype and memory format of both."""
    exact = {n: x.detach().double() for n, x in tensors.items()}
    expected = results(op, exact, layout, **settings, backend="reference")
    tensors = {n: x.detach().to(DEVICE) for n, x in tensors.items()}
    ours = results(op, tensors, layout, **settings, backend="triton")
    error = worst_error({n: x.cpu() for n, x in ours.items()}, expected)
    print(f"worst error {error:.1e}, limit {tolerance(op, tensors):.1e}")
    assert error <= tolerance(op, tensors)
    likes = {"out": next(iter(tensors.values()))} | {f"grad of {n}": x for n, x in tensors.items()}
    for name, x in ours.items():
        assert x.dtype == likes[name].dtype
        if x.numel():
            like = arrange(likes[name], layout)
            promised = new_map(like, x.shape) if like.dim() == 4 else x.contiguous()
            assert x.stride() == promised.stride(), name


def tolerance(op, tensors: dict) -> float:
    op = inspect.unwrap(op)
    owner = next(known for known in OPS.values() if op in (known.function, *known.variants))
    backends, dtype = owner.backends, next(iter(tensors.values())).dtype
    limit = next(b for b in backends if b.name == "triton").atol[dtype]
    # Half precision: the gradient of the logits is rounded, and what is made of it once more.
    return 1.5 * limit if op is projected and dtype in (BF16, F16) else limit


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
    cases = (ELSA_CASES, NEIGHBORHOOD_CASES, PROJECTED_CASES, QNA_CASES, OUTLOOK_CASES)
    assert int(passed[1]) >= sum(map(len, cases))


class CompileOnly:
    """Stands for the driver of a GPU where there is none: the compiler needs no more.

    Args:
        capability: 80 for an A100, 90 for an H100 or H200.
    """

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # compiled kernels are kept by device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_benchmarker(self):
        return lambda call, quantiles: (call(), [1.0] * len(quantiles))[1]


def stack_bytes(cubin: bytes, folder: Path) -> int:
    """Return the bytes of its stack, which holds the registers that do not fit."""
    import triton

    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    done = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True)
    return int(re.search(r"STACK:(\d+)", done.stdout)[1])


MODULES = [
    "elsa.triton_impl",
    "elsa.triton_projected",
    "neighborhood.triton_impl",
    "outlook.triton_impl",
    "qna.triton_impl",
]
LAYOUTS = ("contiguous", "channels-last")
# ELSA's modules in all pairs. The others for both GPUs and in both layouts; over all modules, each
# GPU meets each layout.
COMPILED = [
    (module, capability, layout)
    for number, module in enumerate(MODULES)
    for gpu, capability in enumerate((80, 90))
    for layout in (LAYOUTS if module.startswith("elsa") else [LAYOUTS[(number + gpu) % 2]])
]
# Kernels that a module runs and does not name.
BORROWED = {
    "elsa.triton_projected": {"grad_value_kernel", "grad_ghost_kernel"},
    "neighborhood.triton_impl": {"forward_kernel", "grad_value_kernel"},
}


@pytest.mark.skipif(INTERPRETED or DEVICE == "cuda", reason="compiles where nothing else does")
@pytest.mark.parametrize(("module", "capability", "layout"), COMPILED)
def test_kernels_compile(module, capability, layout, monkeypatch, tmp_path):
    """To machine code that keeps all numbers in registers.

    The interpreter takes some programs that the compiler does not.
    """
    jit = pytest.importorskip("triton.runtime.jit")
    triton_impl = pytest.importorskip(f"mmlocal.ops.{module}")
    run, compiled = jit.JITFunction.run, []

    def compile_only(self, *args, warmup, **kwargs):
        kernel = run(self, *args, warmup=True, **kwargs)
        compiled.append(self.__name__)
        assert stack_bytes(kernel.asm["cubin"], tmp_path) == 0, self.__name__

    monkeypatch.setattr(jit.JITFunction, "run", compile_only)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)  # one config
    if module == "elsa.triton_impl":
        tensors, _ = make_elsa((1, 3, 32, 14, 14, 7, 1), dtype=BF16)
        settings = (7, 1, True)
    elif module == "elsa.triton_projected":
        dtype = F32 if layout == "contiguous" else BF16  # features in blocks and at once
        tensors, _ = make_projected((1, 3, 32, 14, 14, 7, 1), (1, 1, True), 64, dtype)
        settings = (7, 1)
    elif module == "outlook.triton_impl":
        tensors, settings = make_outlook((1, 6, 32, 14, 14, 3, 2, 1), dtype=BF16)
        settings = (*settings.values(), True)
    elif module == "neighborhood.triton_impl":
        tensors, _ = make_neighborhood((1, 3, 32, 14, 14, 7, 1), dtype=BF16)
        settings = (3, 7, 1, True)
    else:
        tensors, settings = make_qna((1, 8, 8, 14, 14, 3, 2, 1, 2), dtype=BF16)
        settings = (*settings.values(), True)
    tensors = [arrange(x.detach(), layout) for x in tensors.values()]
    monkeypatch.setattr(jit.driver, "_active", CompileOnly(capability))
    out = triton_impl.forward(*tensors, *settings)
    triton_impl.backward(out, *tensors, *settings, [True] * len(tensors))
    kernels = {name for name in vars(triton_impl) if name.endswith("_kernel")}
    kernels |= BORROWED.get(module, set())
    assert set(compiled) == kernels
    assert len(kernels) >= 3


@kernels
@pytest.mark.parametrize("case", ELSA_CASES, ids=case_id)
def test_elsa(case):
    shape, ghost, softmax, dtype, layout = case
    tensors, settings = make_elsa(shape, ghost, dtype)
    check(elsa_attention, tensors, layout, **settings, softmax=softmax)


@kernels
@pytest.mark.parametrize("case", PROJECTED_CASES, ids=case_id)
def test_elsa_with_projection(case):
    shape, switches, dims, dtype, layout = case
    tensors, settings = make_projected(shape, switches, dims, dtype)
    check(projected, tensors, layout, **settings)


@kernels
@pytest.mark.parametrize("case", NEIGHBORHOOD_CASES, ids=case_id)
def test_neighborhood(case):
    shape, border, dtype, layout = case
    tensors, settings = make_neighborhood(shape, border, dtype)

    @functools.wraps(neighborhood_scores)
    def op(query, key, **settings):
        """With 7 in place of -inf, which has no distance from -inf."""
        scores = neighborhood_scores(query, key, **settings)
        return torch.where(scores == -torch.inf, 7.0, scores)

    check(op, tensors, layout, **settings)


@kernels
def test_elsa_with_projection_of_large_logits():
    tensors, settings = make_projected((1, 2, 2, 4, 5, 3, 1), (1, 1, True), 20, F16)
    tensors["proj_weight"] = tensors["proj_weight"] * 1e3
    check(projected, tensors, **settings)


@kernels
def test_projection_and_its_inputs_may_be_frozen():
    """Only what is asked for is computed; ghost heads are in float32 in mixed precision."""
    tensors, settings = make_projected((1, 2, 2, 4, 3, 3, 1), (1, 1, True), 20, BF16)
    tensors = {n: x.to(DEVICE, F32 if "ghost" in n else BF16) for n, x in tensors.items()}
    full = results(projected, tensors, **settings, backend="triton")
    for name, x in tensors.items():
        part = functools.partial(projected, **{n: x for n, x in tensors.items() if n != name})
        ours = results(part, {name: x}, **settings, backend="triton")
        assert torch.equal(ours["out"], full["out"])
        assert ours[f"grad of {name}"].dtype == x.dtype
        assert torch.equal(ours[f"grad of {name}"], full[f"grad of {name}"]), name


@kernels
def test_projection_under_autocast():
    """Is computed in the lower precision, as a convolution; the rest is left alone."""
    tensors, settings = make_projected((1, 2, 2, 4, 3, 3, 1), (1, 1, True), 20, F32)
    tensors = {n: x.to(DEVICE) for n, x in tensors.items()}
    lower = {n: x.to(BF16) if n[:4] in ("feat", "proj") else x for n, x in tensors.items()}
    expected = results(projected, lower, **settings, backend="triton")
    with torch.autocast(DEVICE, BF16):
        ours = results(projected, tensors, **settings, backend="triton")
    assert all(x.dtype == F32 for x in ours.values())
    assert all(torch.equal(x, expected[n].float()) for n, x in ours.items())
    mixed = tensors | {"proj_bias": lower["proj_bias"]}
    with pytest.raises(TypeError, match="features, proj_weight and proj_bias must have one dtype"):
        projected(**mixed, **settings, backend="triton")


@kernels
@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
def test_opcheck_of_projection(layout):
    tensors, _ = make_projected((2, 2, 2, 3, 4, 1, 1), (1, 1, True), 20, F32)  # quick
    args = [arrange(x.detach().to(DEVICE), layout) for x in tensors.values()]
    inputs = [x.clone().requires_grad_() for x in args]
    torch.library.opcheck(torch.ops.mmlocal.elsa_attention_projected, (*inputs, 1, 1, "triton"))
    backward = torch.ops.mmlocal.elsa_attention_projected_backward
    for keep in ({0, 1, 2, 3, 4, 5}, {1}, {3, 4}):
        needed = [i in keep for i in range(6)]
        args_of_backward = (args[0].clone(), *args, 1, 1, "triton", needed)
        torch.library.opcheck(backward, args_of_backward, **BACKWARD_CHECKS)


@kernels
def test_layer_folds_its_projection():
    """One node, no convolution to logits, and the same numbers as another backend."""
    torch.manual_seed(0)
    layer = ELSA(12, 3, kernel_size=3, group_width=4, lam=1, backend="triton").to(DEVICE)
    x = torch.randn(1, 5, 4, 12, device=DEVICE)
    graph = torch.export.export(layer, (x,)).graph
    targets = [str(n.target) for n in graph.nodes if n.op == "call_function"]
    assert [t for t in targets if "elsa" in t] == ["mmlocal.elsa_attention_projected.default"]
    assert sum("conv" in t for t in targets) == 2  # to q, k and v; of q * k

    def run(backend: str) -> dict[str, torch.Tensor]:
        layer.backend = backend
        out = layer(x)
        grads = torch.autograd.grad(out.square().sum(), list(layer.parameters()))
        return dict(
            zip(["out", *dict(layer.named_parameters())], [out.detach(), *grads], strict=True)
        )

    assert worst_error(run("triton"), run("eager")) < 1e-5


@kernels
@pytest.mark.parametrize("case", QNA_CASES, ids=case_id)
def test_qna(case):
    shape, tables, sum_queries, dtype, layout = case
    tensors, settings = make_qna(shape, tables, dtype)
    check(qna_attention, tensors, layout, **settings, sum_queries=sum_queries)


@kernels
@pytest.mark.parametrize("case", OUTLOOK_CASES, ids=case_id)
def test_outlook(case):
    shape, softmax, dtype, layout = case
    tensors, settings = make_outlook(shape, dtype)
    check(outlook_attention, tensors, layout, **settings, softmax=softmax)


# Seeds of calls that are small, most of them with infinity or NaN in one of the tensors.
RANDOM = {
    "elsa": [1, 23, 101, 294],
    "neighborhood": [10, 16, 23, 58],
    "outlook": [18, 58, 151, 377],
    "qna": [826, 1998, 2233, 2286],
}


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
def test_half_precision_beside_float64():
    """Gradients of bfloat16 tensors that are computed in float64."""
    for op, (tensors, settings) in (
        (elsa_attention, make_elsa((1, 1, 2, 3, 3, 3, 1))),
        (qna_attention, make_qna((1, 1, 2, 3, 3, 3, 1, 1, 1))),
        (outlook_attention, make_outlook((1, 1, 2, 3, 3, 3, 2, 1))),
    ):
        mixed = {n: x.detach().to(F64 if n == "value" else BF16) for n, x in tensors.items()}
        exact = {n: x.double() for n, x in mixed.items()}
        expected = results(op, exact, **settings, backend="reference")
        on_device = {n: x.to(DEVICE) for n, x in mixed.items()}
        ours = results(op, on_device, **settings, backend="triton")
        for name, x in ours.items():
            limit = 1e-14 if x.dtype == F64 else 4e-3
            assert worst_error({name: x.cpu()}, {name: expected[name]}) < limit, name


@kernels
def test_elsa_with_large_logits():
    tensors, settings = make_elsa((1, 2, 2, 4, 5, 3, 1), dtype=F16)
    tensors["attn"] = tensors["attn"] * 1e4
    check(elsa_attention, tensors, **settings)


@kernels
def test_elsa_with_masked_logits():
    """The softmax starts on taps that do not count."""
    tensors, settings = make_elsa((1, 2, 2, 4, 5, 3, 1), dtype=F32)
    attn = tensors["attn"].detach().clone()
    attn.unflatten(1, (2, 9))[:, :, :8] = -torch.inf
    check(elsa_attention, tensors | {"attn": attn}, **settings)


@kernels
@pytest.mark.parametrize("kind", ["large", "masked"])
def test_outlook_with_special_logits(kind):
    tensors, settings = make_outlook((1, 2, 2, 4, 5, 3, 2, 1), F32)
    attn = tensors["attn"].detach() * (1e4 if kind == "large" else 1)
    if kind == "masked":
        attn.unflatten(1, (2, 9, 9))[:, :, :, :8] = -torch.inf
    check(outlook_attention, tensors | {"attn": attn}, **settings)


@kernels
def test_inputs_of_outlook_may_be_frozen():
    """Only what is asked for is computed."""
    tensors, settings = make_outlook((1, 1, 2, 3, 2, 3, 2, 1), BF16)
    tensors = {n: x.detach().to(DEVICE) for n, x in tensors.items()}
    full = results(outlook_attention, tensors, **settings, backend="triton")
    for name, x in tensors.items():
        others = {n: x for n, x in tensors.items() if n != name}
        part = functools.partial(outlook_attention, **others)
        ours = results(part, {name: x}, **settings, backend="triton")
        assert torch.equal(ours[f"grad of {name}"], full[f"grad of {name}"]), name


@kernels
@pytest.mark.parametrize("kind", ["masked", "large", "largest and lowest"])
def test_qna_with_special_scores(kind):
    """Tokens that are masked, windows without a token, and scores that overflow an exponential."""
    tensors, settings = make_qna((1, 2, 2, 6, 7, 3, 2, 1, 2), dtype=F32)
    scores = tensors["scores"].detach().clone()
    signs = torch.arange(scores.numel()).view(scores.shape) * 7 % 5 < 2
    if kind == "masked":
        scores[:, 1:, :, 5:] = -torch.inf
        scores[..., :4] = -torch.inf
    elif kind == "large":
        scores += torch.where(signs, 1e4, -1e4)
    else:
        scores = torch.where(signs, torch.finfo(F32).max, torch.finfo(F32).min)
    check(qna_attention, tensors | {"scores": scores}, **settings)


@kernels
@pytest.mark.parametrize("op", ["elsa", "qna"])
def test_inputs_may_be_frozen_and_of_other_dtypes(op):
    """Only what is asked for is computed; tables are in float32 in mixed precision."""
    if op == "elsa":
        tensors, settings = make_elsa((1, 2, 2, 4, 3, 3, 1), dtype=BF16)
        function = elsa_attention
    else:
        tensors, settings = make_qna((1, 2, 2, 4, 3, 3, 1, 1, 2), dtype=BF16)
        function = qna_attention
    tensors = {n: x.detach().to(DEVICE) for n, x in tensors.items()}
    tensors |= {n: x.float() for n, x in list(tensors.items())[2:]}
    full = results(function, tensors, **settings, backend="triton")
    assert [x.dtype for x in full.values()] == [BF16, BF16, BF16, F32, F32]
    for name, x in tensors.items():
        part = functools.partial(function, **{n: x for n, x in tensors.items() if n != name})
        ours = results(part, {name: x}, **settings, backend="triton")
        assert torch.equal(ours["out"], full["out"])
        assert torch.equal(ours[f"grad of {name}"], full[f"grad of {name}"]), name


def test_choice():
    """Never on a CPU unless named, and then only in the interpreter."""
    value = torch.zeros(1)
    for op in OPS.values():
        triton = next((b for b in op.backends if b.name == "triton"), None)
        if triton is None:
            continue
        assert choose_backend(op.name, op.backends, value, None) is not triton
        if INTERPRETED:
            assert choose_backend(op.name, op.backends, value, "triton") is triton
        else:
            with pytest.raises(RuntimeError, match=r"triton: .*(not on cpu|not installed)"):
                choose_backend(op.name, op.backends, value, "triton")


def test_ops_do_not_import_triton():
    code = "import sys, mmlocal.ops; assert 'mmlocal.ops.triton_common' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# What follows needs a GPU: more shapes, what depends on timing and devices, and the compiler.

LARGE_ELSA = [
    ((2, 3, 32, 56, 56, 7, 1), (1, 1), True),
    ((3, 12, 32, 14, 14, 7, 1), (0, 1), True),
    ((1, 4, 48, 37, 61, 5, 2), (1, 1), False),
    ((1, 1, 160, 20, 30, 3, 1), (1, 1), True),
    ((1, 2, 32, 33, 29, 13, 1), (1, 0), True),
]
LARGE_PROJECTED = [
    ((2, 3, 32, 56, 56, 7, 1), (0, 1, True), 64),
    ((1, 12, 32, 14, 14, 7, 1), (1, 1, True), 256),
    ((1, 4, 48, 37, 61, 5, 2), (1, 0, False), 88),
    ((1, 2, 32, 33, 29, 13, 1), (1, 1, True), 344),
    ((1, 1, 160, 20, 30, 3, 1), (1, 1, True), 640),
]
LARGE_QNA = [
    ((2, 8, 8, 56, 56, 3, 1, 1, 2), (True, True), True),
    ((2, 16, 8, 28, 28, 7, 2, 3, 2), (True, True), True),
    ((1, 6, 16, 37, 61, 3, 2, 1, 3), (True, False), True),
    ((1, 4, 32, 20, 30, 3, 1, 1, 4), (True, True), False),
    ((1, 1, 160, 33, 29, 13, 1, 6, 1), (False, True), True),
]
LARGE_OUTLOOK = [
    ((2, 6, 32, 28, 28, 3, 2, 1), True),
    ((1, 3, 48, 37, 61, 3, 1, 1), True),
    ((1, 2, 160, 20, 31, 5, 2, 2), False),
]


@on_gpu
@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "sliced"])
@pytest.mark.parametrize("dtype", [F64, F32, BF16, F16], ids=str)
def test_large_maps(dtype, layout):
    for shape, ghost, softmax in LARGE_ELSA:
        tensors, settings = make_elsa(shape, ghost, dtype)
        check(elsa_attention, tensors, layout, **settings, softmax=softmax)
        tensors, settings = make_neighborhood(shape, "zero", dtype)
        check(neighborhood_scores, tensors, layout, **settings)
    for shape, switches, dims in LARGE_PROJECTED:
        tensors, settings = make_projected(shape, switches, dims, dtype)
        check(projected, tensors, layout, **settings)
    for shape, tables, sum_queries in LARGE_QNA:
        tensors, settings = make_qna(shape, tables, dtype)
        check(qna_attention, tensors, layout, **settings, sum_queries=sum_queries)
    for shape, softmax in LARGE_OUTLOOK:
        tensors, settings = make_outlook(shape, dtype)
        check(outlook_attention, tensors, layout, **settings, softmax=softmax)


def on_one_gpu() -> list[tuple]:
    """The ops on maps of more than one tile, on the GPU."""
    elsa = make_elsa((2, 3, 32, 28, 29, 7, 1), dtype=F32)
    qna = make_qna((2, 8, 8, 28, 29, 3, 2, 1, 2), dtype=F32)
    scores = make_neighborhood((2, 3, 32, 28, 29, 7, 1), dtype=F32)
    outlook = make_outlook((2, 6, 32, 28, 29, 3, 2, 1), dtype=F32)
    return [
        (op, {n: x.detach().cuda() for n, x in tensors.items()}, settings)
        for op, (tensors, settings) in (
            (elsa_attention, elsa),
            (qna_attention, qna),
            (neighborhood_scores, scores),
            (outlook_attention, outlook),
        )
    ]


@on_gpu
def test_is_chosen_and_deterministic_on_a_gpu():
    """Without a name, every run of it gives the same bits."""
    for op, tensors, settings in on_one_gpu():
        first = results(op, tensors, **settings, backend="triton")
        for _ in range(3):
            again = results(op, tensors, **settings)
            assert all(torch.equal(x, first[n]) for n, x in again.items())


@on_gpu
def test_projection_on_a_gpu():
    """Every run gives the same bits; compiled code calls the same kernels."""
    tensors, settings = make_projected((2, 3, 32, 28, 29, 7, 1), (1, 1, True), 64, F32)
    tensors = {n: x.detach().cuda() for n, x in tensors.items()}
    first = results(projected, tensors, **settings, backend="triton")
    torch.compiler.reset()
    compiled = torch.compile(functools.partial(projected, **settings), fullgraph=True)
    for op, kwargs in ((projected, settings), (projected, settings), (compiled, {})):
        again = results(op, tensors, **kwargs)
        assert worst_error(*({n: x.cpu() for n, x in r.items()} for r in (again, first))) < 1e-6
        assert op is compiled or all(torch.equal(x, first[n]) for n, x in again.items())


@on_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_another_device_than_the_current_one():
    for op, tensors, settings in on_one_gpu():
        expected = results(op, tensors, **settings, backend="triton")
        moved = {n: x.to("cuda:1") for n, x in tensors.items()}
        ours = results(op, moved, **settings, backend="triton")
        assert torch.cuda.current_device() == 0
        assert all(x.device.index == 1 for x in ours.values())
        assert worst_error(*({n: x.cpu() for n, x in r.items()} for r in (ours, expected))) < 1e-6


@on_gpu
def test_more_numbers_than_fit_32_bits():
    """A batch whose last sample lies behind the 2**31st number."""
    samples = 2**31 // (32 * 9 * 256 * 256) + 2
    shape = (1, 32, 1, 256, 256)
    tensors = {
        "value": torch.randn(*shape[:2], 256, 256, dtype=F16, device=DEVICE),
        "attn": torch.randn(1, 32 * 9, 256, 256, dtype=F16, device=DEVICE),
    }
    expected = results(elsa_attention, tensors, kernel_size=3, backend="triton")
    many = {n: x.repeat(samples, 1, 1, 1) for n, x in tensors.items()}
    out = elsa_attention(**many, kernel_size=3, backend="triton")
    assert many["attn"].numel() > 2**31
    assert torch.equal(out[-1], expected["out"][0])


@on_gpu
@pytest.mark.parametrize("compiler", ["inductor", "aot_eager"])
def test_compile(compiler):
    for op, tensors, settings in on_one_gpu():
        torch.compiler.reset()
        expected = results(op, tensors, **settings)
        compiled = torch.compile(
            functools.partial(op, **settings), fullgraph=True, backend=compiler
        )
        ours = results(compiled, tensors)
        assert worst_error(*({n: x.cpu() for n, x in r.items()} for r in (ours, expected))) < 1e-6


@on_gpu
@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
def test_opcheck(layout):
    for op, tensors, settings in on_one_gpu():
        inputs = [arrange(x, layout).requires_grad_() for x in tensors.values()]
        name = op.__name__
        extra = (True, "triton")  # softmax, sum_queries or masked, and the backend
        others = {"lam", "gamma", "border"}  # these do not reach the operator
        args = (*inputs, *(x for n, x in settings.items() if n not in others), *extra)
        torch.library.opcheck(getattr(torch.ops.mmlocal, name), args)
