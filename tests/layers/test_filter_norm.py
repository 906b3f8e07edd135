import pytest
import torch

from mmlocal.layers.filter_norm import filter_norm


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_mean_and_deviation(dim):
    torch.manual_seed(0)
    filters = 3 + 2 * torch.randn(4, 5, 6, dtype=torch.float64)
    out = filter_norm(filters, dim)
    zeros = torch.zeros_like(out.sum(dim))
    torch.testing.assert_close(out.mean(dim), zeros, rtol=0, atol=1e-14)
    torch.testing.assert_close(out.std(dim), zeros + 1, rtol=0, atol=1e-14)
    # nothing but a shift and a scale of each filter
    other = filter_norm(7 - 0.5 * filters, dim)
    torch.testing.assert_close(other, -out, rtol=0, atol=1e-13)


def test_one_filter_by_hand():
    out = filter_norm(torch.tensor([[1.0, 2.0, 6.0]], dtype=torch.float64), 1)
    expected = torch.tensor([[-2.0, -1.0, 3.0]], dtype=torch.float64) / 7**0.5
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-15)


def test_gradient():
    torch.manual_seed(0)
    filters = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f: filter_norm(f, 1), filters)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_equal_taps_are_zero_without_a_gradient(dtype):
    filters = torch.full((2, 9), 0.25, dtype=dtype, requires_grad=True)
    out = filter_norm(filters, 1)
    assert out.dtype == dtype
    assert not out.any()
    out[:, 0].sum().backward()
    assert torch.equal(filters.grad, torch.zeros_like(filters))


def test_half_precision_is_the_rounded_result():
    torch.manual_seed(0)
    filters = (1000 * torch.randn(3, 49)).half()
    exact = filter_norm(filters.double(), 1)
    torch.testing.assert_close(filter_norm(filters, 1).double(), exact, rtol=1e-3, atol=1e-3)


def test_one_tap():
    with pytest.raises(ValueError, match=r"at least 2 taps, got .* 1 in dimension 1 of \(4, 1\)"):
        filter_norm(torch.ones(4, 1), 1)
