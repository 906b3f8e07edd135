"""The parts of ``benchmarks/gpu_check.sh``: isolation of items, and what only a GPU runs."""

import math
import os
import signal
import time
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from benchmarks.contestants import make_tensors
from benchmarks.gpu import speed
from benchmarks.gpu.correctness import correctness_items
from benchmarks.gpu.flex import FlexNeighborhood
from benchmarks.gpu.isolated import Item, run_items
from benchmarks.gpu.networks import LAYERS, MODELS, build, compiled_items, network_items
from benchmarks.gpu.problems import big_problems, odd_problems
from mmlocal.ops import OPS, elsa_attention


def two_rows():
    yield dict(process=os.getpid())
    yield dict(process=os.getpid())


def error():
    yield dict(process=os.getpid())
    raise OSError("no compiler")


def crash():
    os.kill(os.getpid(), signal.SIGKILL)
    yield


def hang():
    time.sleep(60)
    yield


def run(items: list[Item], workers: int = 1, deadline: float = math.inf) -> dict[str, list[dict]]:
    rows: dict[str, list[dict]] = {item.name: [] for item in items}
    run_items(items, workers, deadline, lambda item, row: rows[item.name].append(row))
    return rows


@pytest.mark.parametrize("workers", [1, 3])
def test_no_item_harms_the_next(workers):
    rows = run(
        [
            Item("first", two_rows),
            Item("second", two_rows),
            Item("error", error),
            Item("crash", crash),
            Item("hang", hang, seconds=0.3),
            Item("last", two_rows),
        ],
        workers,
    )
    assert [len(x) for x in rows.values()] == [2, 2, 2, 1, 1, 2]
    assert rows["error"][1]["failed"] == "OSError: no compiler"
    assert "in error" in rows["error"][1]["traceback"]
    assert rows["crash"] == [dict(failed="its process ended with exit code -9")]
    assert rows["hang"] == [dict(failed="did not end in 0.3 s")]
    if workers == 1:
        assert rows["first"] == rows["second"]
        assert rows["last"][0] not in (rows["first"][0], rows["error"][0])


def test_items_in_processes_of_their_own():
    rows = run([Item("a", two_rows), Item("b", two_rows, fresh=True), Item("c", two_rows)])
    assert rows["a"] != rows["b"]
    assert rows["b"] != rows["c"]


def test_the_time_is_up():
    items = [Item("cut", hang), Item("never", two_rows)]
    rows = run(items, deadline=time.monotonic() + 0.3)
    assert rows["cut"] == [dict(left_out="the time was up before it ended")]
    assert rows["never"] == [dict(left_out="the time was up")]


def test_shapes_for_a_gpu():
    """They are valid calls of every op."""
    problems = odd_problems()
    assert {p.op for p in problems} == set(OPS) - {"convolution"}  # it has no Triton kernels
    assert {p.function for p in problems} == {p.function for p in big_problems(2**31, 16, 509)}
    for problem in problems:
        tensors, cotangent = problem.make("cpu", torch.float16, channels_last=True)
        assert {name: x.shape for name, x in tensors.items()} == problem.shapes
        assert cotangent.shape == problem.output_shape
    assert all(2**31 < p.elements < 2 * 2**31 for p in big_problems(2**31, 16, 509))
    names = [item.name for item in correctness_items("cuda", False, 1.0)]
    assert len(set(names)) == len(names) == 3 * len(problems) + 7


def test_what_is_timed_on_a_gpu():
    items = [item.name for item in speed.speed_items("cuda", False)]
    assert len(set(items)) == len(items)
    for dtype in ("bfloat16", "float32"):
        found = [name.partition(",")[0] for name in items if name.endswith(dtype)]
        counts = {op: found.count(op) for op in OPS}
        assert counts == dict(convolution=0, elsa=4, qna=5, neighborhood=2, outlook=1, deformable=2)
    assert [item.name for item in speed.shape_items("cuda", False)] == items[1:]
    assert len(speed.flex_items("cuda", False)) == 4
    assert len(network_items("cuda", False)) == 2 * (len(MODELS) + len(LAYERS))
    assert len(compiled_items("cuda", False)) == 6


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    layer = build(name)
    x = torch.randn(1, 3, 2, LAYERS[name][0])
    assert layer(x).shape == x.shape


def test_projected_contestant():
    case = replace(OPS["elsa"].load_analysis().CASES["smoke"][0], name="")
    tensors, function = speed._projected(case, make_tensors("cpu", torch.float64))
    logits = F.conv2d(
        tensors["features"], tensors["proj_weight"][:, :, None, None], tensors["proj_bias"]
    )
    expected = elsa_attention(tensors["value"], logits, None, tensors["ghost_add"], kernel_size=3)
    torch.testing.assert_close(function(**tensors), expected)


@torch.no_grad()
def test_flex_mixer():
    """Each pixel attends to its window, cut off at the border."""
    torch.manual_seed(0)
    mixer = FlexNeighborhood(8, 2, kernel_size=3, compiled=False).eval()
    x = torch.randn(1, 3, 4, 8)
    rows, cols = torch.meshgrid(torch.arange(3), torch.arange(4), indexing="ij")
    near = [(p.flatten()[:, None] - p.flatten()).abs() <= 1 for p in (rows, cols)]
    query, key, value = mixer.qkv(x).view(1, 12, 3, 2, 4).permute(2, 0, 3, 1, 4)
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=near[0] & near[1])
    expected = mixer.proj(out.transpose(1, 2).reshape(1, 3, 4, 8))
    torch.testing.assert_close(mixer(x), expected)
