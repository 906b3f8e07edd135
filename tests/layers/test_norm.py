"""The layer normalization of our models, compared with PyTorch's."""

import pytest
import torch
from torch import Tensor, nn

from mmlocal.layers import LayerNorm

DIMS = 12


def both(eps: float = 1e-6, bias: bool = True) -> tuple[LayerNorm, nn.LayerNorm]:
    """Ours and PyTorch's, with the same parameters."""
    torch.manual_seed(0)
    ours, theirs = LayerNorm(DIMS, eps=eps, bias=bias), nn.LayerNorm(DIMS, eps=eps, bias=bias)
    for parameter in ours.parameters():
        nn.init.normal_(parameter)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def gradients(norm: nn.Module, x: Tensor, grad: Tensor) -> list[Tensor]:
    """Compute the gradients of input and parameters."""
    x = x.clone().requires_grad_()
    return list(torch.autograd.grad(norm(x), [x, *norm.parameters()], grad.to(norm(x).dtype)))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_ordinary_tokens_are_treated_as_by_pytorch(dtype, bias):
    ours, theirs = both(bias=bias)
    ours, theirs = ours.to(dtype), theirs.to(dtype)
    x, grad = torch.randn(2, 3, 4, 5, DIMS).to(dtype)[:, 0], torch.randn(2, 4, 5, DIMS).to(dtype)
    assert torch.equal(ours(x), theirs(x))
    results = zip(gradients(ours, x, grad), gradients(theirs, x, grad), strict=True)
    assert all(torch.equal(a, b) and a.any() for a, b in results)


@pytest.mark.parametrize("value", [0.0, 1e-4, 1.0])
def test_constant_tokens_have_no_gradient(value):
    ours, theirs = both()
    x, grad = torch.randn(3, DIMS), torch.randn(3, DIMS)
    x[1] = value
    x[2] *= 1e-4  # a variance of 1 % of eps
    assert torch.equal(ours(x), theirs(x))
    of_input, of_weight, of_bias = gradients(ours, x, grad)
    expected, _, expected_bias = gradients(theirs, x, grad)
    assert torch.equal(of_input[0], expected[0])
    assert not of_input[1:].any()
    assert expected[1:].abs().amax() > 100
    assert torch.equal(of_bias, expected_bias)
    assert of_weight.isfinite().all()


def test_pytorch_normalizes_in_evaluation():
    """Exporters see PyTorch's operator there, and forward-mode differentiation works."""
    ours, theirs = (norm.eval() for norm in both())
    x, grad = torch.zeros(2, DIMS), torch.randn(2, DIMS)
    assert torch.equal(gradients(ours, x, grad)[0], gradients(theirs, x, grad)[0])


def test_gradcheck():
    ours, _ = both(bias=True)
    x = torch.randn(3, DIMS, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ours.double(), x)
    assert torch.autograd.gradgradcheck(ours, x)


def test_autocast():
    ours, theirs = both()
    results = []
    for norm in (ours, theirs):
        x = torch.ones(3, DIMS).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = norm(x @ torch.randn(DIMS, DIMS, generator=torch.Generator().manual_seed(0)))
            y.float().square().sum().backward()
        results.append((y, x.grad, norm.weight.grad))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_compiles_to_one_graph():
    ours, _ = both()
    x, grad = torch.randn(4, DIMS), torch.randn(4, DIMS)
    x[2] = 0
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    for a, b in zip(gradients(ours, x, grad), gradients(compiled, x, grad), strict=True):
        torch.testing.assert_close(a, b)


def test_gradients_per_sample():
    ours, _ = both()
    parameters = dict(ours.named_parameters())
    x = torch.randn(3, DIMS)
    x[1] = 0

    def loss(parameters: dict, x: Tensor) -> Tensor:
        return torch.func.functional_call(ours, parameters, x).square().sum()

    together = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for i in range(3):
        alone = torch.func.grad(loss)(parameters, x[i])
        for name in parameters:
            torch.testing.assert_close(together[name][i], alone[name])
