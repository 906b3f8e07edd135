"""What only the C++ backend has: instruction sets, vectors, tiles, and the way it is loaded.

That it computes the ops is tested with all other backends, in test_deformable.py, test_elsa.py,
test_outlook.py, test_qna.py and test_convolution.py.
"""

import _ctypes
import ctypes
import functools
import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import (
    make_convolution,
    make_deformable,
    make_elsa,
    make_neighborhood,
    make_outlook,
    make_qna,
    peak_memory,
)
from cases import run as run_op
from cases import worst_error as largest_difference

from mmlocal.ops import (
    build,
    deformable_attention,
    deformable_attention_from_offsets,
    elsa_attention,
    extension,
    grouped_conv2d,
    neighborhood_scores,
    outlook_attention,
    qna_attention,
)
from mmlocal.ops.convolution import BACKENDS as CONVOLUTION
from mmlocal.ops.deformable import BACKENDS as DEFORMABLE
from mmlocal.ops.elsa import BACKENDS as ELSA
from mmlocal.ops.elsa.cpp import Elsa
from mmlocal.ops.outlook import BACKENDS as OUTLOOK
from mmlocal.ops.qna import BACKENDS as QNA
from mmlocal.ops.qna.cpp import Qna

ROOT = Path(__file__).parents[2]
built = pytest.mark.skipif(extension.extension is None, reason=str(extension.unavailable_reason))
FLOATS = [torch.float64, torch.float32]


def atol(backends, dtype):
    return next(b for b in backends if b.name == "cpp").atol[dtype]


def run(op, tensors, backend, **settings):
    """Output and gradients."""
    leaves = {name: x.detach().requires_grad_() for name, x in tensors.items()}
    return run_op(op, leaves, settings, backend=backend)


def worst_error(op, tensors, **settings):
    """Against the definition in float64, relative to the largest value of each tensor."""
    exact = {name: x.double() for name, x in tensors.items()}
    return largest_difference(
        run(op, tensors, "cpp", **settings), run(op, exact, "reference", **settings)
    )


# batch, heads, channels per head, height, width, kernel, dilation
ELSA_SHAPES = [
    (2, 3, 32, 9, 21, 7, 1),  # as in ELSA-Swin
    (1, 2, 16, 8, 19, 5, 2),
    (1, 2, 40, 12, 11, 3, 1),  # a vector of 16 across two heads
    (2, 5, 4, 7, 22, 3, 1),  # several heads in a vector, and channels that do not fill vectors
    (1, 7, 3, 10, 19, 5, 1),  # heads that begin anywhere
    (1, 9, 1, 6, 17, 3, 2),  # as many heads as channels
    (1, 1, 48, 5, 30, 3, 3),  # an odd number of vectors
]
# batch, heads, channels per head, height, width, kernel, stride, padding, queries
QNA_SHAPES = [
    (2, 8, 8, 20, 37, 5, 1, 2, 2),  # as in QnA-ViT
    (1, 3, 8, 33, 21, 7, 2, 3, 2),  # vectors across heads
    (1, 2, 16, 30, 139, 3, 1, 1, 4),  # several tiles
    (1, 17, 4, 12, 11, 3, 1, 1, 3),  # several vectors of tables
    (1, 1, 32, 55, 150, 3, 3, 1, 2),  # tiles with stride
    (1, 2, 6, 9, 10, 3, 1, 1, 2),  # no power of two
]
# batch, heads, channels per head, height, width, kernel, stride, padding
OUTLOOK_SHAPES = [
    (2, 6, 32, 14, 13, 3, 2, 1),  # as in VOLO
    (1, 2, 40, 9, 8, 3, 1, 1),  # a vector of 16 across two heads
    (2, 5, 4, 7, 9, 3, 2, 1),  # several heads in a vector, and channels that do not fill vectors
    (1, 7, 3, 11, 10, 5, 2, 2),  # heads that begin anywhere
    (1, 9, 1, 6, 17, 4, 3, 3),  # as many heads as channels
    (1, 1, 48, 8, 9, 3, 5, 0),  # an odd number of vectors, and pixels in no window
]

# batch, groups, height, width, kernel, padding, dilation
CONVOLUTION_SHAPES = [
    (2, 16, 37, 21, 7, 3, 1),  # as in ELSA-Swin, with several tasks of rows
    (2, 32, 7, 7, 7, 3, 1),
    (1, 5, 9, 11, 3, 1, 1),  # a part of a vector
    (1, 1, 19, 40, 5, 4, 2),  # maps that skip pixels
    (1, 3, 10, 9, 8, 4, 1),  # an even kernel
    (1, 2, 17, 5, 11, 5, 1),  # more taps than work at once
]

# batch, queries, heads, channels per head, points, and pairs of height and width
DEFORMABLE_SHAPES = [
    (2, 37, 4, 70, 16, (7, 9), (4, 5)),  # as in ITSA: no whole vectors of channels
    (1, 21, 2, 32, 4, (5, 6), (3, 3), (2, 2), (1, 1), (4, 1)),  # several maps in a vector
    (1, 9, 3, 5, 18, (5, 6), (3, 4)),  # several vectors of points
    (1, 8, 1, 131, 3, (6, 5)),  # several blocks of channels
    (2, 300, 1, 16, 5, (9, 3), (3, 9), (1, 7), (2, 1)),  # several tasks of queries
]


def elsa_inputs(shape, dtype=torch.float32):
    tensors, settings = make_elsa(shape, dtype=dtype)
    return {name: x.detach() for name, x in tensors.items()}, settings


def qna_inputs(shape, dtype=torch.float32):
    tensors, settings = make_qna(shape, dtype=dtype)
    return {name: x.detach() for name, x in tensors.items()}, settings


def outlook_inputs(shape, dtype=torch.float32):
    tensors, settings = make_outlook(shape, dtype=dtype)
    return {name: x.detach() for name, x in tensors.items()}, settings


def neighborhood_inputs(shape, dtype=torch.float32):
    tensors, settings = make_neighborhood(shape, dtype=dtype)
    return {name: x.detach() for name, x in tensors.items()}, settings


@built
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", ELSA_SHAPES, ids=str)
def test_elsa_at_sizes_of_vectors(shape, dtype):
    tensors, settings = elsa_inputs(shape, dtype)
    assert worst_error(elsa_attention, tensors, **settings) < atol(ELSA, dtype)


def convolution_inputs(shape, dtype=torch.float32):
    tensors, settings = make_convolution(shape, dtype=dtype)
    return {name: x.detach() for name, x in tensors.items()}, settings


@built
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", CONVOLUTION_SHAPES, ids=str)
def test_convolution_at_sizes_of_vectors_and_blocks(shape, dtype):
    tensors, settings = convolution_inputs(shape, dtype)
    assert worst_error(grouped_conv2d, tensors, **settings) < atol(CONVOLUTION, dtype)


@built
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("softmax", [True, False], ids=["logits", "weights"])
@pytest.mark.parametrize("shape", OUTLOOK_SHAPES, ids=str)
def test_outlook_at_sizes_of_vectors(shape, softmax, dtype):
    tensors, settings = outlook_inputs(shape, dtype)
    error = worst_error(outlook_attention, tensors, softmax=softmax, **settings)
    assert error < atol(OUTLOOK, dtype)


def deformable_inputs(shape, dtype=torch.float32):
    tensors, settings = make_deformable(shape, dtype=dtype)
    return {name: x.detach() for name, x in tensors.items()}, settings | {"padding_mode": "border"}


def fused_inputs(shape, dtype=torch.float32):
    tensors, settings = make_deformable(shape, True, dtype)
    return {name: x.detach() for name, x in tensors.items()}, settings


@built
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("shape", DEFORMABLE_SHAPES, ids=str)
def test_deformable_at_sizes_of_vectors(shape, fused, dtype):
    tensors, settings = fused_inputs(shape, dtype) if fused else deformable_inputs(shape, dtype)
    function = deformable_attention_from_offsets if fused else deformable_attention
    assert worst_error(function, tensors, **settings) < atol(DEFORMABLE, dtype)


@built
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("sum_queries", [True, False], ids=["sum", "each"])
@pytest.mark.parametrize("shape", QNA_SHAPES, ids=str)
def test_qna_at_sizes_of_vectors_and_tiles(shape, sum_queries, dtype):
    tensors, settings = qna_inputs(shape, dtype)
    error = worst_error(qna_attention, tensors, sum_queries=sum_queries, **settings)
    assert error < atol(QNA, dtype)


@built
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("sum_queries", [True, False], ids=["sum", "each"])
@pytest.mark.parametrize("low", [-1000.0, -60.0, -30.0, -float("inf")], ids=str)
def test_qna_windows_far_below_the_peak_of_the_map(low, sum_queries, dtype):
    """Some windows see nothing but scores whose exponentials, over the map's largest, are 0."""
    for shape in [(2, 4, 8, 12, 23, 3, 1, 1, 2), (1, 2, 8, 13, 26, 3, 2, 1, 2)]:
        tensors, settings = qna_inputs(shape, dtype)
        tensors["scores"][:, ::3, 4:, 5:19] += low
        tensors["scores"][:, 1, :, :] += 300.0  # one table of large scores
        error = worst_error(qna_attention, tensors, sum_queries=sum_queries, **settings)
        assert error < atol(QNA, dtype)


@built
@pytest.mark.parametrize("far", [-200.0, 100.0], ids=str)
def test_qna_positions_far_apart(far):
    """One tap outweighs all others, except where it lies outside the map."""
    tensors, settings = qna_inputs((1, 2, 8, 9, 11, 3, 1, 1, 2))
    tensors["rel_pos"][:, 0, 0] += far
    error = worst_error(qna_attention, tensors, **settings)
    assert error < atol(QNA, torch.float32)


@built
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_slices_of_channels_last_maps(dtype):
    """As the layers give them: no dense map, and vectors that begin anywhere."""
    for inputs, op, backends in (
        (elsa_inputs((2, 2, 16, 7, 12, 3, 1), dtype), elsa_attention, ELSA),
        (qna_inputs((2, 4, 8, 7, 12, 3, 1, 1, 2), dtype), qna_attention, QNA),
        (outlook_inputs((2, 2, 16, 7, 9, 3, 1, 1), dtype), outlook_attention, OUTLOOK),
    ):
        tensors, settings = inputs
        names, maps = list(tensors)[:2], list(tensors.values())[:2]
        both = torch.cat(maps, dim=1).contiguous(memory_format=torch.channels_last)
        slices = both.split([x.shape[1] for x in maps], dim=1)
        sliced = tensors | dict(zip(names, slices, strict=True))
        assert worst_error(op, sliced, **settings) < atol(backends, dtype)
        outs = run(op, sliced, "cpp", **settings)
        for name in ("out", *(f"grad of {name}" for name in names)):
            assert outs[name].is_contiguous(memory_format=torch.channels_last)
        for x in run(op, tensors, "cpp", **settings).values():
            assert x.is_contiguous()


@built
def test_threads_do_not_change_the_result():
    calls = [
        (elsa_attention, *elsa_inputs((2, 3, 16, 17, 23, 5, 1))),
        (neighborhood_scores, *neighborhood_inputs((2, 3, 16, 17, 23, 5, 1))),
        (qna_attention, *qna_inputs((2, 4, 8, 50, 140, 3, 1, 1, 2))),
        (outlook_attention, *outlook_inputs((3, 3, 16, 23, 17, 3, 2, 1))),
        (outlook_attention, *outlook_inputs((2, 2, 16, 22, 9, 5, 2, 2))),
        *((grouped_conv2d, *convolution_inputs(shape)) for shape in CONVOLUTION_SHAPES),
        *((deformable_attention, *deformable_inputs(shape)) for shape in DEFORMABLE_SHAPES),
        *((deformable_attention_from_offsets, *fused_inputs(shape)) for shape in DEFORMABLE_SHAPES),
    ]
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            # PyTorch has no OpenMP runtime of these names on other systems.
            assert extension.extension.threads() == count or sys.platform != "linux"
            results.append([run(op, tensors, "cpp", **s) for op, tensors, s in calls])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for ours, expected in zip(other, results[0], strict=True):
            assert all(torch.equal(x, expected[name]) for name, x in ours.items())


@built
@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_other_instruction_sets(capability):
    """The variable chooses PyTorch's kernels and ours."""
    if capability == "avx2" and "AVX" not in torch.backends.cpu.get_cpu_capability():
        pytest.skip("this CPU has no AVX2")
    code = """
import sys, torch
sys.path.insert(0, "tests/ops")
from test_cpp import *
from mmlocal.ops import OPS
print(extension.extension.lanes(torch.float32), extension.extension.lanes(torch.float64))
for inputs, op, shapes in (
    (elsa_inputs, elsa_attention, ELSA_SHAPES),
    (neighborhood_inputs, neighborhood_scores, ELSA_SHAPES),
    (outlook_inputs, outlook_attention, OUTLOOK_SHAPES),
    (deformable_inputs, deformable_attention, DEFORMABLE_SHAPES),
    (fused_inputs, deformable_attention_from_offsets, DEFORMABLE_SHAPES),
    (qna_inputs, qna_attention, QNA_SHAPES),
    (convolution_inputs, grouped_conv2d, CONVOLUTION_SHAPES),
):
    backends = next(k.backends for k in OPS.values() if op in (k.function, *k.variants))
    for shape in shapes:
        for dtype in FLOATS:
            tensors, settings = inputs(shape, dtype)
            error = worst_error(op, tensors, **settings)
            assert error < atol(backends, dtype), (shape, error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"ATEN_CPU_CAPABILITY": capability},
    )
    assert done.returncode == 0, done.stderr
    lanes = "4 2" if capability == "default" else "8 4"
    assert done.stdout.strip() == lanes


@built
@pytest.mark.parametrize(
    ("op", "inputs"),
    [
        (elsa_attention, elsa_inputs((2, 3, 32, 28, 28, 7, 1))),
        (qna_attention, qna_inputs((2, 8, 8, 64, 64, 3, 1, 1, 2))),
        (qna_attention, qna_inputs((2, 8, 8, 64, 64, 7, 1, 3, 2))),
        (outlook_attention, outlook_inputs((2, 6, 32, 28, 28, 3, 2, 1))),
        (grouped_conv2d, convolution_inputs((2, 16, 56, 56, 7, 3, 1))),
        (deformable_attention, deformable_inputs((1, 400, 4, 70, 16, (20, 20), (10, 10)))),
        (deformable_attention_from_offsets, fused_inputs((1, 400, 4, 70, 16, (20, 20), (10, 10)))),
    ],
    ids=[
        "elsa",
        "qna 3x3",
        "qna 7x7",
        "outlook",
        "convolution",
        "deformable",
        "deformable from offsets",
    ],
)
def test_memory_of_the_forward_pass(op, inputs):
    """Beside the output, a twentieth of what the definition takes."""
    tensors, settings = inputs
    tensors = {
        name: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
        for name, x in tensors.items()
    }
    output = op(**tensors, **settings).numel() * 4
    extra, unfold = (
        peak_memory(functools.partial(op, **tensors, **settings, backend=backend)) - output
        for backend in ("cpp", "reference")
    )
    print(f"memory beside the output: {extra} bytes, by unfold {unfold}")
    assert extra < unfold / 20


@built
def test_a_call_makes_its_output_and_its_tables_only():
    """Each further tensor would cost as much as some pixels of a small map."""
    tensors, settings = qna_inputs((2, 8, 8, 14, 14, 3, 2, 1, 2))
    for name in ("value", "scores"):
        tensors[name] = tensors[name].contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), torch.profiler.profile() as profile:
        qna_attention(**tensors, **settings, backend="cpp")
    made = [e.name for e in profile.events() if e.name in ("aten::empty", "aten::copy_")]
    assert made == ["aten::empty"] * 2


@built
def test_calls_of_other_counts_check_other_shapes():
    """What is known about a call is kept for calls with the same counts."""
    sizes = dict(batch=1, width=4, heads=1, head_dims=16, kernel=3, dilation=1, softmax=True)
    maps = dict(
        value=torch.zeros(1, 4, 4, 16),
        attn=torch.zeros(1, 4, 4, 9),
        out=torch.empty(1, 4, 4, 16),
    )
    for _ in range(2):
        extension.extension.run("elsa_forward", Elsa, torch.float32, height=4, **sizes, **maps)
        for changes, message in [
            (dict(height=3), r"value must be \(1, 3, 4, 16\), got \(1, 4, 4, 16\)"),
            (dict(height=4, heads=2), r"value must be \(1, 4, 4, 32\)"),
            (dict(height=4, size=1), r"Elsa has no members \['size'\]"),
            (dict(height=4, sum=torch.zeros(1)), r"Elsa has no members \['sum'\]"),
        ]:
            with pytest.raises(RuntimeError, match=message):
                extension.extension.run(
                    "elsa_forward", Elsa, torch.float32, **(sizes | changes), **maps
                )


MEND = "`mmlocal build` compiles them"
# Each function of the library, which begins with the name of its op, and its structure.
FUNCTIONS = re.findall(
    r"^MMLOCAL_FUNCTIONS\((\w+), (\w+)\)", (build.SOURCES / "library.cpp").read_text(), re.M
)


@built
def test_reasons(tmp_path, monkeypatch):
    """A library that is missing, broken or of other sources is a reason with its mend."""
    path = tmp_path / "_C.so"
    loaded, reason = extension._load(path)
    assert loaded is None
    assert reason.startswith("the C++ kernels are not compiled: " + MEND)

    path.write_bytes(b"no library")
    loaded, reason = extension._load(path)
    assert loaded is None
    assert reason.startswith("the C++ kernels do not load (")
    assert MEND in reason

    loaded, reason = extension._load(Path(_ctypes.__file__))  # a library, but not ours
    assert loaded is None
    assert "do not load" in reason
    assert MEND in reason

    assert extension._load(build.LIBRARY)[1] is None
    monkeypatch.setattr(build, "FLAGS", [*build.FLAGS, "-Wall"])
    loaded, reason = extension._load(build.LIBRARY)
    assert loaded is None
    assert reason.startswith("the C++ kernels are of another version of mmlocal: " + MEND)


@built
@pytest.mark.parametrize(("function", "name"), FUNCTIONS)
def test_structures_are_those_of_the_kernels(function, name):
    op, _, _ = function.partition("_")
    structure = getattr(importlib.import_module(f"mmlocal.ops.{op}.cpp"), name)
    size = getattr(extension.extension._library, f"mmlocal_size_of_{function}")()
    assert size == ctypes.sizeof(structure)
    text = (build.SOURCES / "kernels.h").read_text()
    body = re.search(rf"struct {name} {{(.*?)\n}};", text, re.S).group(1)
    kinds = {
        "int64_t": ctypes.c_int64,
        "bool": ctypes.c_bool,
        "Map": extension.Map,
        "QueryMap": extension.QueryMap,
        "T*": extension.Table,
        "int64_t*": extension.Counts,
        "uint8_t*": extension.Flags,
    }
    members = []
    for line in filter(str.strip, re.sub(r"//[^\n]*", "", body).split(";")):
        declaration = r"(?:const )?(\w+\*?)(?:<[^>]*>)? ([\w, ]+)"
        kind, names = re.fullmatch(declaration, " ".join(line.split())).groups()
        members += [(name.strip(), kinds[kind]) for name in names.split(",")]
    assert structure._fields_ == members
    shaped = {name for name, kind in members if kind not in (ctypes.c_int64, ctypes.c_bool)}
    assert structure().shapes(4).keys() == shaped


@built
def test_the_library_needs_no_torch_and_no_python():
    """So that no upgrade of either can lose it."""
    code = f"import ctypes; ctypes.CDLL({str(build.LIBRARY)!r})"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@built
def test_threads_are_those_of_torch():
    """One pool: without the OpenMP runtime of PyTorch, one thread does everything."""
    assert extension._openmp() is not None or sys.platform != "linux"


@built
@pytest.mark.parametrize("argument", ["shape", "dtype", "layout"])
def test_the_library_is_never_called_with_memory_that_does_not_fit(argument):
    sizes = dict(batch=1, height=4, width=4, heads=1, head_dims=16, kernel=3, dilation=1)
    out = {
        "shape": torch.zeros(1, 4, 3, 16),
        "dtype": torch.zeros(1, 4, 4, 16, dtype=torch.float64),
        "layout": torch.zeros(1, 16, 4, 4).permute(0, 2, 3, 1),
    }[argument]
    maps = dict(value=torch.zeros(1, 4, 4, 16), attn=torch.zeros(1, 4, 4, 9), out=out)
    with pytest.raises(RuntimeError, match="out must be "):
        extension.extension.run("elsa_forward", Elsa, torch.float32, softmax=True, **sizes, **maps)


@built
def test_a_function_gets_no_structure_of_another_size():
    with pytest.raises(RuntimeError, match=r"elsa_forward takes .* bytes, got Qna of "):
        extension.extension.run("elsa_forward", Qna, torch.float32)


@built
def test_a_table_that_is_not_contiguous_is_refused():
    sizes = dict(batch=1, channels=4, queries=1, heads=2, kernel=3)
    with pytest.raises(RuntimeError, match="rel_pos must be contiguous"):
        extension.extension.run(
            "qna_forward", Qna, torch.float32, **sizes, rel_pos=torch.zeros(2, 3, 3).mT
        )


def test_files_of_an_editor_are_no_sources(tmp_path, monkeypatch):
    digest = build.digest()
    monkeypatch.setattr(build, "SOURCES", Path(shutil.copytree(build.SOURCES, tmp_path / "csrc")))
    (tmp_path / "csrc/.ipynb_checkpoints").mkdir()
    (tmp_path / "csrc/kernels.h~").write_text("older")
    assert build.digest() == digest
    (tmp_path / "csrc/more.h").write_text("// more")
    assert build.digest() != digest


@built
def test_sources_that_are_gone_are_a_reason(monkeypatch):
    def gone():
        raise FileNotFoundError("csrc")

    monkeypatch.setattr(build, "digest", gone)
    assert "do not load (csrc)" in extension._load()[1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ('"c++', "is not a command: No closing quotation"),
        ("/my compilers/c++", r"no C\+\+ compiler \(/my\); a path with blanks needs quotes"),
        ("true", "does not load"),
    ],
)
def test_a_strange_compiler_is_one_sentence(given, message, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", given)
    with pytest.raises(build.BuildError, match=message):
        build.build(tmp_path / "_C.so")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extension_is_a_reason_of_the_backend(monkeypatch):
    monkeypatch.setattr(extension, "unavailable_reason", "there is none")
    tensors, settings = elsa_inputs((1, 1, 2, 3, 3, 3, 1))
    elsa_attention(**tensors, **settings)
    with pytest.raises(RuntimeError, match="cpp: there is none"):
        elsa_attention(**tensors, **settings, backend="cpp")
