"""The plain forms of the ops: their numbers, their memory, and their graph in ONNX."""

from collections import Counter

import pytest
import torch
from ops.cases import (
    make_deformable,
    make_elsa,
    make_neighborhood,
    make_outlook,
    make_projected,
    make_qna,
    peak_memory,
)
from torch import nn
from torch.export import Dim
from torch.utils._python_dispatch import TorchDispatchMode

from mmlocal.export import plain_forms
from mmlocal.layers.outlook_attention import _means_of_blocks
from mmlocal.ops import (
    OPS,
    deformable_attention,
    deformable_attention_from_offsets,
    elsa_attention,
    neighborhood_scores,
    outlook_attention,
    qna_attention,
)
from mmlocal.ops.elsa import _projected_operator

onnxruntime = pytest.importorskip("onnxruntime")


def operators(program) -> Counter:
    """Number of nodes by operator."""
    return Counter(str(n.target) for n in program.graph.nodes if n.op == "call_function")


class Plain(TorchDispatchMode):
    """Runs the plain form of each operator."""

    def __init__(self):
        super().__init__()
        self.forms, self.used = plain_forms(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in self.forms:
            self.used += 1
            return self.forms[function](*args)
        return function(*args, **kwargs or {})


@torch.no_grad()
def check(function, tensors, settings):
    """The plain form has the numbers of the op."""
    expected = function(**tensors, **settings)
    with Plain() as plain:
        out = function(**tensors, **settings)
    assert plain.used == 1
    assert out.dtype == expected.dtype
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("name", OPS)
def test_every_op(name):
    op = OPS[name]
    analysis = op.load_analysis()
    case = analysis.CASES["smoke"][0]
    torch.manual_seed(0)
    tensors, settings = analysis.make_inputs(case, torch.randn), analysis.settings(case)
    check(op.function, tensors, settings)


@pytest.mark.parametrize("ghost", [(0, 0), (1, 1), (0.5, 0)])
@pytest.mark.parametrize("shape", [(2, 2, 3, 6, 5, 5, 1), (1, 3, 2, 3, 2, 7, 2)])
def test_elsa(shape, ghost):
    check(elsa_attention, *make_elsa(shape, ghost))
    tensors, settings = make_elsa(shape, ghost, torch.float16)
    check(elsa_attention, tensors, settings | dict(softmax=False))


def test_projected_elsa():
    """Only Triton has this operator, so it is taken from its class."""
    tensors, settings = make_projected((2, 2, 3, 6, 5, 3, 1), (0, 1, True), 7)
    args = [tensors.get(name) for name in ("value", "features", "proj_weight", "proj_bias")]
    args += [None, tensors["ghost_add"], settings["kernel_size"], settings["dilation"]]
    expected = _projected_operator.definition(*args)
    form = plain_forms()[torch.ops.mmlocal.elsa_attention_projected.default]
    torch.testing.assert_close(form(*args, "triton"), expected)


@pytest.mark.parametrize("border", ["zero", "mask"])
@pytest.mark.parametrize("shape", [(2, 2, 3, 6, 5, 5, 1), (1, 3, 2, 3, 2, 7, 2)])
def test_neighborhood(shape, border):
    check(neighborhood_scores, *make_neighborhood(shape, border))


@pytest.mark.parametrize("tables", [(True, True), (False, False)])
@pytest.mark.parametrize("sum_queries", [True, False])
@pytest.mark.parametrize(
    "shape", [(2, 2, 3, 6, 5, 3, 1, 1, 2), (2, 1, 2, 9, 7, 3, 2, 1, 3), (1, 2, 2, 8, 8, 7, 3, 6, 1)]
)
def test_qna(shape, sum_queries, tables):
    tensors, settings = make_qna(shape, tables)
    check(qna_attention, tensors, settings | dict(sum_queries=sum_queries))


def test_qna_of_masked_and_of_large_scores():
    tensors, settings = make_qna((2, 2, 3, 6, 7, 3, 1, 1, 2))
    scores = tensors["scores"].detach()
    scores[0, :, :4] = -torch.inf  # also windows without any token
    scores[1] *= 1e4
    check(qna_attention, tensors | dict(scores=scores), settings)


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize(
    "shape",
    [
        (2, 2, 3, 6, 5, 3, 2, 1),
        (1, 2, 2, 7, 6, 3, 1, 1),
        (1, 1, 2, 9, 8, 5, 3, 0),
        (1, 1, 2, 9, 8, 2, 4, 1),
        (2, 1, 1, 7, 9, 4, 3, 3),
    ],
)
def test_outlook(shape, softmax):
    tensors, settings = make_outlook(shape)
    check(outlook_attention, tensors, settings | dict(softmax=softmax))


@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
@pytest.mark.parametrize("shape", [(2, 7, 2, 3, 6, (4, 3), (2, 5)), (1, 3, 1, 2, 4, (1, 1))])
def test_deformable(shape, padding_mode):
    for fused in (False, True):
        function = deformable_attention_from_offsets if fused else deformable_attention
        tensors, settings = make_deformable(shape, fused)
        check(function, tensors, settings | dict(padding_mode=padding_mode))


def test_deformable_far_away():
    """Points outside by more than any whole number."""
    tensors, settings = make_deformable((2, 7, 2, 3, 4, (4, 3)), False)
    locations = tensors["sampling_locations"].detach()
    locations[0, 0], locations[1, 1] = 1e30, -1e30
    for mode in ("zeros", "border"):
        changed = tensors | dict(sampling_locations=locations)
        check(deformable_attention, changed, settings | dict(padding_mode=mode))


BIG = dict(
    elsa=(elsa_attention, make_elsa((1, 4, 16, 40, 40, 7, 1), (0, 1), torch.float32), 10),
    qna=(qna_attention, make_qna((1, 4, 16, 40, 40, 7, 1, 3, 2), dtype=torch.float32), 16),
    outlook=(outlook_attention, make_outlook((1, 4, 16, 40, 40, 3, 2, 1), torch.float32), 12),
)


@pytest.mark.parametrize("name", BIG)
def test_memory(name):
    """In maps of the size of ``value``. All windows would take 49, or 9 for outlook attention."""
    function, (tensors, settings), limit = BIG[name]
    tensors = {key: x.detach() for key, x in tensors.items()}
    with torch.no_grad(), Plain():
        peak = peak_memory(lambda: function(**tensors, **settings))
    assert peak < limit * tensors["value"].numel() * 4


class Ops(nn.Module):
    """One call of each op, for maps of any size."""

    def __init__(self):
        super().__init__()
        self.ghost_add = nn.Parameter(torch.randn(8, 3, 3))
        self.ghost_mul = nn.Parameter(torch.randn(8, 3, 3))
        self.rel_pos = nn.Parameter(torch.randn(4, 3, 3))
        self.points = nn.Parameter(torch.rand(1, 1, 1, 2))

    def forward(self, image, attn, scores, offsets):
        height, width = image.shape[2:]
        blocks = _means_of_blocks(image.repeat(1, 21, 1, 1)[:, :162], 2)
        value = image.flatten(2).mT.unflatten(2, (2, 4))
        points = self.points.expand(1, height * width, 1, 2)
        offsets = offsets.flatten(2).mT.unflatten(2, (2, 1, 3, 2))
        return (
            elsa_attention(image, attn, self.ghost_mul, self.ghost_add, kernel_size=3, dilation=2),
            qna_attention(
                image, scores, self.rel_pos, num_queries=2, kernel_size=3, stride=2, padding=1
            ),
            neighborhood_scores(image, image, num_heads=2, kernel_size=3, border="mask"),
            outlook_attention(image, blocks, num_heads=2),
            deformable_attention_from_offsets(
                value,
                [(height, width)],
                points,
                offsets,
                offsets[..., 0] / 3,
                padding_mode="border",
            ),
        )


def inputs(batch, height, width):
    return tuple(torch.randn(batch, channels, height, width) for channels in (8, 18, 4, 12))


def test_onnx(tmp_path):
    """One graph serves all batches and all sizes, those that no stride divides included."""
    torch.manual_seed(0)
    module = Ops().eval()
    axes = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    program = torch.onnx.export(
        module, inputs(2, 12, 10), dynamo=True, dynamic_shapes=(axes,) * 4, verbose=False
    )
    domains = {node.domain for node in program.model.graph}
    assert domains <= {"", "ai.onnx"}
    kinds = Counter(node.op_type for node in program.model.graph)
    assert kinds["GridSample"] == 1
    assert not kinds["Loop"]
    path = tmp_path / "ops.onnx"
    program.save(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [x.name for x in session.get_inputs()]
    for size in ((2, 12, 10), (1, 7, 13), (3, 16, 16), (1, 3, 2)):
        args = inputs(*size)
        outs = session.run(None, dict(zip(names, (x.numpy() for x in args), strict=True)))
        for out, expected in zip(outs, module(*args), strict=True):
            torch.testing.assert_close(torch.from_numpy(out), expected, rtol=1e-4, atol=1e-5)


def test_torch_export():
    """A program has one node for each op, until the plain forms replace them."""
    axes = {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO}
    module = Ops().eval()
    program = torch.export.export(module, inputs(2, 12, 10), dynamic_shapes=(axes,) * 4)
    found = Counter({n: c for n, c in operators(program).items() if n.startswith("mmlocal.")})
    assert len(found) == sum(found.values()) == 5
    plain = program.run_decompositions(plain_forms())
    assert not [name for name in operators(plain) if "mmlocal" in name or "im2col" in name]
    args = inputs(3, 7, 9)
    expected = module(*args)
    torch.testing.assert_close(program.module()(*args), expected)
    torch.testing.assert_close(plain.module()(*args), expected)
