"""The pooling neck; its agreement with the official heads is in test_qna_parity.py."""

import pytest
import torch
from torch import nn

from mmlocal.models.necks import QnAPooling
from mmlocal.registry import MODELS


def make(**kwargs) -> QnAPooling:
    torch.manual_seed(0)
    neck = QnAPooling(**dict(in_channels=12, num_heads=3, map_size=5) | kwargs).double()
    nn.init.normal_(neck.qna.rel_pos_table)
    nn.init.normal_(neck.qna.attn_scale_table)
    return neck


@pytest.mark.parametrize("add_mean", [False, True])
@pytest.mark.parametrize("num_queries", [1, 3])
def test_one_window_over_the_map(num_queries, add_mean):
    """The pooling equals a plain softmax over all tokens."""
    neck = make(num_queries=num_queries, add_mean=add_mean)
    x = torch.randn(2, 12, 5, 5, dtype=torch.float64)
    qna, tokens = neck.qna, x.flatten(2).transpose(1, 2)
    query = nn.functional.normalize(qna.query.view(num_queries, 3, 4), dim=2, eps=0) / 4**0.5
    key = (tokens @ qna.key.weight.t()).view(2, 25, 3, 4)
    value = qna.value(tokens).view(2, 25, 3, 4)
    bias, scale = (t.view(25, num_queries, 3) for t in (qna.rel_pos_table, qna.attn_scale_table))
    attn = (torch.einsum("lhd,bthd->btlh", query, key) + bias).softmax(dim=1) * scale
    expected = qna.proj(torch.einsum("btlh,bthd->bhd", attn, value).flatten(1))
    if add_mean:
        expected = expected + tokens.mean(dim=1)
    (out,) = neck(x)
    assert out.shape == (2, 12)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)  # the epsilon of unit queries
    # of several maps, the last one
    assert torch.equal(neck((torch.zeros(2, 6, 9, 9), x))[0], out)
    assert torch.equal(neck([x])[0], out)


@pytest.mark.parametrize("add_mean", [False, True])
def test_gradients(add_mean):
    neck = QnAPooling(12, 3, 4, add_mean=add_mean)
    x = torch.randn(2, 12, 4, 4, requires_grad=True)
    neck(x)[0].square().sum().backward()
    assert x.grad.any()
    for name, parameter in neck.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_built_by_name():
    neck = MODELS.build(dict(type="mmlocal.QnAPooling", in_channels=12, num_heads=3))
    assert type(neck) is QnAPooling
    neck.init_weights()
    assert neck(torch.randn(1, 12, 7, 7))[0].shape == (1, 12)


def test_errors():
    with pytest.raises(ValueError, match=r"num_heads must divide attn_dims=12 .* got num_heads=5"):
        make(num_heads=5)
    with pytest.raises(ValueError, match="map_size must be at least 1, got 0"):
        make(map_size=0)
    for size in [(5, 6), (4, 5), (7, 7)]:
        message = rf"map_size must be the size of the map, {size[0]}x{size[1]} here, got 5"
        with pytest.raises(ValueError, match=message):
            make()(torch.zeros(1, 12, *size))
    with pytest.raises(ValueError, match=r"inputs must be \(B, in_channels, H, W\), got \(12, 5\)"):
        make()(torch.zeros(12, 5))
    with pytest.raises(ValueError, match="embed_dims=12"):
        make()(torch.zeros(1, 6, 5, 5))
