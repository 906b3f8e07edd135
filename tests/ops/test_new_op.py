"""An op of another package: a definition and one backend, made into an operator by one call."""

import functools
import sys
import textwrap

import pytest
import torch
import torch.nn.functional as F
from cases import leaves, run, worst_error
from torch import nn
from torch.func import grad, vmap

from mmlocal.ops.backends import make_backends
from mmlocal.ops.operator import Operator

FILES = {
    "reference": """
        import torch.nn.functional as F
        from torch import Tensor

        def forward(value: Tensor, scale: Tensor | None = None, dilation: int = 1) -> Tensor:
            '''The right neighbour, scaled.'''
            out = F.pad(value, (0, dilation))[..., dilation:]
            return out if scale is None else out * scale[:, None, None]
    """,
    "eager": """
        import torch

        seen = []

        def forward(value, scale, dilation):
            seen.append((dilation, torch.is_autocast_enabled(value.device.type)))
            out = torch.zeros_like(value)
            out[..., : value.shape[3] - dilation] = value[..., dilation:]
            return out if scale is None else out * scale[:, None, None]

        def backward(grad, value, scale, dilation, needs_grad):
            back = torch.zeros_like(value)
            back[..., dilation:] = grad[..., : value.shape[3] - dilation]
            return (
                back if scale is None else back * scale[:, None, None],
                (back * value).sum(dim=(0, 2, 3)) if needs_grad[1] else None,
            )
    """,
    "__init__": """
        import torch

        from mmlocal.ops.backends import make_backends
        from mmlocal.ops.operator import Operator
        from shifting_op import reference

        BACKENDS = make_backends(__name__, {torch.float32: 1e-6, torch.float64: 1e-15})
        operator = Operator("shift_for_a_test", reference.forward, BACKENDS, step="dilation")

        def shift(value, scale=None, *, dilation=1, backend=None):
            return operator(value, scale, dilation, backend=backend)
    """,
}


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outside") / "shifting_op"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / f"{name}.py").write_text("from __future__ import annotations\n"
                                           + textwrap.dedent(text))  # fmt: skip
    sys.path.insert(0, str(folder.parent))
    try:
        import shifting_op
        import shifting_op.eager

        yield shifting_op
    finally:
        sys.path.remove(str(folder.parent))


def tensors() -> dict:
    g = torch.Generator().manual_seed(0)
    randn = torch.randn
    return leaves({"value": randn(2, 3, 4, 5, generator=g), "scale": randn(3, generator=g)})


def test_schema_is_that_of_the_definition(package):
    schema = str(torch.ops.mmlocal.shift_for_a_test.default._schema)
    arguments = "(Tensor value, Tensor? scale, int dilation, str backend)"
    assert schema == f"mmlocal::shift_for_a_test{arguments} -> Tensor"
    schema = str(torch.ops.mmlocal.shift_for_a_test_backward.default._schema)
    arguments = f"(Tensor grad, {arguments[1:-1]}, bool[] needs_grad)"
    assert schema == f"mmlocal::shift_for_a_test_backward{arguments} -> (Tensor, Tensor)"


@pytest.mark.parametrize("dilation", [1, 3, 5])
def test_values_and_gradients(package, dilation):
    expected = run(package.shift, tensors(), {}, dilation=dilation, backend="reference")
    ours = run(package.shift, tensors(), {}, dilation=dilation)
    assert worst_error(ours, expected) <= 1e-6
    frozen = tensors()
    frozen["scale"].requires_grad_(False)
    assert run(package.shift, frozen, {}).keys() == {"out", "grad of value"}


def test_backends_get_no_autocast_and_no_step_beyond_the_map(package):
    package.eager.seen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        assert package.shift(**tensors(), dilation=2**70).dtype == torch.float32
    assert package.eager.seen == [(5, False)]


def test_the_rest_of_pytorch(package):
    """A single node for compilers and exporters, vmap, derivatives that only autograd has."""

    class Op(nn.Module):
        def forward(self, value, scale):
            return package.shift(value, scale)

    args = tuple(x.detach() for x in tensors().values())
    torch.library.opcheck(torch.ops.mmlocal.shift_for_a_test, (*args, 1, "eager"))
    nodes = torch.export.export(Op(), args).graph.nodes
    (node,) = [n for n in nodes if n.op == "call_function"]
    assert str(node.target) == "mmlocal.shift_for_a_test.default"
    torch.compiler.reset()
    compiled = torch.compile(Op(), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*args), package.shift(*args))
    value, scale = args
    out = vmap(package.shift, in_dims=(0, None))(value[:, None], scale)
    assert torch.equal(out.squeeze(1), package.shift(value, scale))
    live = tensors()
    (grad,) = torch.autograd.grad(package.shift(**live).sum(), live["value"], create_graph=True)
    with pytest.raises(RuntimeError, match="shift_for_a_test: backend='eager' has no second deriv"):
        grad.sum().backward()
    out = package.shift(**live, backend="reference").sum()
    (grad,) = torch.autograd.grad(out, live["value"], create_graph=True)
    grad.sum().backward()
    assert live["scale"].grad.isfinite().all()


def test_choice_of_backend(package):
    assert [b.name for b in package.BACKENDS] == ["eager", "reference"]
    with pytest.raises(ValueError, match="shift_for_a_test: backend must be one of eager, ref"):
        package.shift(**tensors(), backend="triton")
    half = {n: x.bfloat16() for n, x in tensors().items()}
    with pytest.raises(RuntimeError, match=r"eager: does not take torch.bfloat16 \| reference: "):
        package.shift(**half)


def test_a_kind_of_backend_that_does_not_exist():
    with pytest.raises(ValueError, match=r"changes must be of triton, cpp, .*, got cuda"):
        make_backends("somewhere", {}, cuda={})


def test_a_step_that_is_no_argument(package):
    with pytest.raises(ValueError, match=r"step must be an argument of .*, got .stride."):
        Operator("stepless_for_a_test", package.reference.forward, (), step="stride")


def test_a_definition_without_type_hints():
    with pytest.raises(ValueError, match="must have a type annotation"):
        Operator("untyped_for_a_test", lambda value: value, ())


class DepthWise:
    """A depth-wise convolution of 3x3, as a backend that is a module."""

    @staticmethod
    def forward(value, weight):
        return F.conv2d(value, weight, padding=1, groups=len(weight))

    @staticmethod
    def backward(grad, value, weight, needs_grad):
        sizes = dict(bias_sizes=None, stride=[1, 1], padding=[1, 1], dilation=[1, 1])
        return torch.ops.aten.convolution_backward(
            grad, value, weight, **sizes, transposed=False, output_padding=[0, 0],
            groups=len(weight), output_mask=[*needs_grad, False],
        )[:2]  # fmt: skip


@pytest.fixture(scope="module")
def depth_wise():
    def definition(value: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return DepthWise.forward(value, weight)

    sys.modules["depth_wise_op.eager"] = sys.modules["depth_wise_op.reference"] = DepthWise
    backends = make_backends("depth_wise_op", {torch.float32: 1e-5, torch.float64: 1e-13})
    yield functools.partial(
        Operator("depth_wise_for_a_test", definition, backends, tables=("weight",)), backend="eager"
    )
    del sys.modules["depth_wise_op.eager"], sys.modules["depth_wise_op.reference"]


@pytest.mark.parametrize("in_dims", [(0, None), (None, 0), (0, 0)], ids=str)
def test_vmap_with_a_table_of_four_dimensions(depth_wise, in_dims):
    """The weight ``(C, 1, 3, 3)`` has no batch that vmap could add to."""
    g = torch.Generator().manual_seed(0)
    shapes = ((2, 3, 4, 5), (3, 1, 3, 3))
    args = [torch.randn(*([4] if d == 0 else []), *shape, generator=g, dtype=torch.float64)
            for d, shape in zip(in_dims, shapes, strict=True)]  # fmt: skip
    single = [[x if d is None else x[i] for x, d in zip(args, in_dims, strict=True)]
              for i in range(4)]  # fmt: skip
    out = vmap(depth_wise, in_dims)(*args)
    torch.testing.assert_close(out, torch.stack([DepthWise.forward(*one) for one in single]))
    for argnums in ((0,), (0, 1)):
        gradients = vmap(grad(lambda *x: depth_wise(*x).square().sum(), argnums), in_dims)(*args)
        for i, ours in zip(argnums, gradients, strict=True):
            expected = [grad(lambda *x: DepthWise.forward(*x).square().sum(), i)(*one)
                        for one in single]  # fmt: skip
            torch.testing.assert_close(ours, torch.stack(expected))


def test_fake_gradient_of_a_table_of_four_dimensions(depth_wise):
    """The fake gradient of a table is contiguous, even if the table is channels-last."""
    weight = torch.randn(3, 4, 3, 3).contiguous(memory_format=torch.channels_last).to("meta")
    value = torch.empty(2, 3, 4, 5, device="meta")
    backward = torch.ops.mmlocal.depth_wise_for_a_test_backward
    of_value, of_weight = backward(value, value, weight, "eager", [True, True])
    assert of_value.shape == value.shape
    assert of_weight.shape == weight.shape
    assert of_weight.is_contiguous()


def test_a_table_that_is_not_a_tensor_of_the_definition():
    def definition(value: torch.Tensor, size: int) -> torch.Tensor:
        return value

    with pytest.raises(ValueError, match="bad_table: tables must be among value, got size"):
        Operator("bad_table", definition, (), tables=("size",))
