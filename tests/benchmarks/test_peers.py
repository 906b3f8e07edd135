"""Peers compute what their descriptions say."""

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from benchmarks import contestants, peers
from benchmarks.contestants import (
    CannotRunError,
    Contestant,
    list_backends,
    make_tensors,
    op_function,
    op_tensors,
)
from benchmarks.ops import choose_backends
from benchmarks.peers import PEERS
from mmlocal.ops import OPS
from mmlocal.ops.cases import Case

CPU = torch.device("cpu")
EXACT = dict(rtol=0, atol=1e-12)
SMOKE = [case for op in OPS.values() for case in op.load_analysis().CASES["smoke"]]


def peer(name: str) -> Contestant:
    return next(p for p in PEERS if p.name == name)


def qkv(*shape: int) -> list[torch.Tensor]:
    make = make_tensors(CPU, torch.float64)
    return [make(*shape).detach() for _ in range(3)]


def dense_attention(query, key, value, allowed) -> torch.Tensor:
    """Attention over all pairs of pixels that are ``allowed``, ``(H * W, H * W)``."""
    q, k, v = (x.flatten(1, 2).transpose(1, 2) for x in (query, key, value))
    logits = q @ k.transpose(2, 3) * q.shape[3] ** -0.5
    logits = logits.masked_fill(~allowed, float("-inf"))
    return (logits.softmax(dim=3) @ v).transpose(1, 2).view(query.shape)


def pixels(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column of each pixel of a map, row by row."""
    rows, cols = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return rows.flatten(), cols.flatten()


def near_block(at: torch.Tensor, block: int, halo: int) -> torch.Tensor:
    """Mark the keys that lie at most ``halo`` outside the block of a query, along one axis."""
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
    # Swin pads the map to whole windows with zeros, and the zeros take part.
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


def test_unfold_is_stand_alone_self_attention():
    """Both contestants, and by hand for one channel of a window in the middle of the map."""
    case = Case("neighborhood", "", 2, 12, 3, 9, 11, 5)
    tensors, unfold = peer("sasa_unfold").build(case, make_tensors(CPU, torch.float64))
    same, ours = peer("sasa").build(case, make_tensors(CPU, torch.float64))
    assert all(torch.equal(x, same[name]) for name, x in tensors.items())
    out = unfold(**tensors)
    torch.testing.assert_close(ours(**tensors), out, **EXACT)
    query, key, value = (x[1, 4:8].flatten(1) for x in (
        tensors["query"][:, :, 4:5, 6:7], *(tensors[n][:, :, 2:7, 4:9] for n in ("key", "value"))
    ))  # fmt: skip
    weights = (query * key).sum(dim=0).softmax(dim=0)
    torch.testing.assert_close(out[1, 5, 4, 6], (weights * value[1]).sum(), **EXACT)


@pytest.mark.parametrize(
    "case",
    [
        Case("elsa", "", 2, 12, 3, 9, 11, 5),
        Case("elsa", "", 2, 12, 4, 6, 5, 3, variant="involution"),
        Case("outlook", "", 2, 12, 3, 9, 8, 3, stride=2),
        Case("outlook", "", 1, 12, 2, 7, 9, 5, stride=3),
    ],
    ids=lambda case: f"{case.op}-{case.kernel_size}",
)
def test_unfold_is_the_op(case):
    tensors, unfold = peer("unfold").build(case, make_tensors(CPU, torch.float64))
    torch.testing.assert_close(
        unfold(**tensors), op_function(case, "reference")(**tensors), **EXACT
    )


@pytest.mark.parametrize("name", ["mmcv", "from_offsets"])
def test_deformable_peers_are_the_op(name):
    if name == "mmcv":
        pytest.importorskip("mmcv.ops")
    case = Case("deformable", "", 2, 12, 3, 5, 6, 3, variant="2 tasks, 2 levels")
    tensors, other = peer(name).build(case, make_tensors(CPU, torch.float64))
    plain = op_tensors(case, make_tensors(CPU, torch.float64))
    padding = "zeros" if name == "mmcv" else "border"
    call = op_function(case, "reference")
    # The weights come from a softmax in float32, and the other form divides by their sum again.
    tolerance = EXACT if name == "mmcv" else dict(rtol=0, atol=1e-6)
    torch.testing.assert_close(other(**tensors), call(**plain, padding_mode=padding), **tolerance)


def test_no_convolution_stands_beside_an_op_without_windows():
    beside = {p.name for p in PEERS if p.stands_beside("deformable")}
    assert beside == {"mmcv", "from_offsets"}


def test_layers_have_the_same_weights():
    """With its projections, our layer computes the op; timm's layer computes the same."""
    case = Case("outlook", "", 2, 12, 3, 7, 8, 3, stride=2)
    tensors, ours = peer("layer").build(case, make_tensors(CPU, torch.float64))
    out = ours(**tensors)
    assert out.shape == (2, 12, 7, 8)
    if importlib.util.find_spec("timm") is None:
        with pytest.raises(CannotRunError, match="timm is not installed"):
            peer("timm_layer").build(case, make_tensors(CPU, torch.float64))
        return
    same, timm = peer("timm_layer").build(case, make_tensors(CPU, torch.float64))
    assert all(torch.equal(x, same[name]) for name, x in tensors.items())
    torch.testing.assert_close(timm(**tensors), out, rtol=0, atol=1e-10)


@pytest.mark.parametrize("stride", [1, 2])
def test_exp_convolutions_are_qna(stride):
    case = Case("qna", "", 2, 12, 3, 9, 11, 5, stride)
    tensors, conv = peer("exp_conv").build(case, make_tensors(CPU, torch.float64))
    torch.testing.assert_close(conv(**tensors), op_function(case, "reference")(**tensors))
    # By hand, for one window with all its tokens: row 4, column 6 is the centre.
    scores = tensors["scores"][0, :, 2:7, 4:9] + tensors["rel_pos"]
    weights = scores.flatten(1).softmax(dim=1).view_as(scores) * tensors["tap_weight"]
    window = tensors["value"][0, :, 2:7, 4:9]
    by_hand = torch.stack(
        [(window[c] * (weights[c // 4] + weights[3 + c // 4])).sum() for c in range(12)]
    )
    torch.testing.assert_close(conv(**tensors)[0, :, 4 // stride, 6 // stride], by_hand)


@pytest.mark.parametrize("case", SMOKE, ids=lambda case: f"{case.op}-{case.name}")
def test_contestants_see_the_same_map(case):
    """Backends give the same result. Peers give a result of the same size."""
    make = make_tensors(CPU, torch.float64)
    tensors = op_tensors(case, make)
    expected = op_function(case, "reference")(**tensors)
    like = next(iter(tensors.values()))
    running = {b.name for b in choose_backends(case.op, None, like.dtype, CPU)}
    assert {"eager", "reference"} <= running
    for contestant in list_backends(case.op):
        if contestant.name in running:
            _, function = contestant.build(case, make)
            torch.testing.assert_close(function(**tensors), expected, **EXACT)
    stride = peers.output_stride(case)
    rows, cols = (-(-side // stride) for side in (case.height, case.width))
    numbers = case.batch * case.channels * rows * cols
    for name in ("dwconv", "conv", "swin", "halo"):
        try:
            tensors, function = peer(name).build(case, make)
        except CannotRunError:
            assert stride == 2
            assert name in ("swin", "halo")
        else:
            assert function(**tensors).numel() == numbers


def test_reference_is_left_out_before_memory_runs_out(monkeypatch):
    case = Case("elsa", "", 1, 64, 2, 256, 256, 13)
    reference = next(b for b in list_backends("elsa") if b.name == "reference")
    monkeypatch.setattr(contestants, "available_memory", lambda: 2**30)
    with pytest.raises(CannotRunError, match="needs about 16 GiB, 1 are free"):
        reference.build(case, make_tensors(CPU, torch.float32))
