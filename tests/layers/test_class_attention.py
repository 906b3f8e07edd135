"""Class attention against a loop, and the stem of VOLO."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmlocal.layers import ClassAttentionBlock, ConvStem
from mmlocal.layers.class_attention import ClassAttention


@pytest.mark.parametrize("tokens", [1, 2, 7])
def test_class_attention(tokens):
    torch.manual_seed(0)
    layer = ClassAttention(6, 3).double()
    x = torch.randn(2, tokens, 6, dtype=torch.float64)
    out = layer(x)
    assert out.shape == (2, 1, 6)
    q, kv = layer.q(x), layer.kv(x)
    for image in range(2):
        heads = []
        for head in range(3):
            part = slice(2 * head, 2 * head + 2)
            keys, values = kv[image, :, :6][:, part], kv[image, :, 6:][:, part]
            weights = (keys @ q[image, 0, part] / 2**0.5).softmax(0)
            heads.append(weights @ values)
        torch.testing.assert_close(out[image, 0], layer.proj(torch.cat(heads)))


def test_dropout_is_off_in_eval_mode():
    torch.manual_seed(0)
    block = ClassAttentionBlock(8, 2, drop_rate=0.5, attn_drop_rate=0.5)
    inputs = torch.randn(2, 1, 8), torch.randn(2, 5, 8)
    assert not torch.equal(block(*inputs), block(*inputs))
    block.eval()
    assert torch.equal(block(*inputs), block(*inputs))


@pytest.mark.parametrize(
    ("cls_token", "x"),
    [((2, 1, 8), (3, 5, 8)), ((2, 8), (2, 5, 8)), ((2, 1, 8), (2, 5, 9)), ((2, 1, 8), (2, 8))],
    ids=str,
)
def test_other_shapes(cls_token, x):
    block = ClassAttentionBlock(8, 2)
    with pytest.raises(ValueError, match=r"must be \(B, 1, 8\) and \(B, N, 8\), got "):
        block(torch.zeros(cls_token), torch.zeros(x))


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        (dict(num_heads=3), ValueError, "num_heads must divide embed_dims=8, got num_heads=3"),
        (dict(embed_dims=0), ValueError, "embed_dims must be at least 1, got 0"),
        (dict(mlp_ratio=0.1), ValueError, "mlp_ratio must give at least one .* 8, got 0.1"),
        (dict(mlp_ratio="3"), TypeError, "mlp_ratio must be a number, got '3'"),
        (dict(drop_rate=-1), ValueError, r"drop_rate must be in \[0, 1\], got -1"),
        (dict(attn_drop_rate=2), ValueError, r"attn_drop_rate must be in \[0, 1\], got 2"),
        (dict(with_cp=1), TypeError, "with_cp must be True or False, got 1"),
    ],
)
def test_bad_arguments(kwargs, error, message):
    with pytest.raises(error, match=message):
        ClassAttentionBlock(**dict(embed_dims=8, num_heads=2) | kwargs)


@pytest.mark.parametrize("size", [(8, 8), (9, 24), (31, 17)], ids=str)
def test_stem(size):
    """Any image equals the image with zeros up to whole patches."""
    torch.manual_seed(0)
    stem, image = ConvStem(3, 6, 4).eval(), torch.randn(2, 3, *size)
    height, width = (-(-side // 8) for side in size)
    out = stem(image)
    assert out.shape == (2, height, width, 6)
    padded = F.pad(image, (0, 8 * width - size[1], 0, 8 * height - size[0]))
    assert torch.equal(out, stem(padded))
    convs = [m for m in stem.modules() if isinstance(m, nn.Conv2d)]
    assert [(m.kernel_size[0], m.stride[0], m.bias is None) for m in convs] == [
        (7, 2, True), (3, 1, True), (3, 1, True), (4, 4, False)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "error", "message"),
    [
        ((1, 3, 7, 8), ValueError, "at least one patch of 8x8 pixels, got 7x8"),
        ((1, 4, 8, 8), ValueError, r"in_channels=3"),
        ((3, 8, 8), ValueError, r"in_channels=3"),
    ],
)
def test_bad_images(shape, error, message):
    with pytest.raises(error, match=message):
        ConvStem(3, 6)(torch.zeros(shape))
