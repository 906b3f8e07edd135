"""Class maps add up to the scores of classes, and refuse models without such scores."""

import numpy as np
import pytest
import torch
from torch import nn

from mmlocal.layers.class_attention import ClassAttention
from mmlocal.models.backbones import VOLO
from mmlocal.visualization.class_maps import class_maps, draw_class_maps


class Model(nn.Module):
    """A backbone and a head, with the calls of OpenMMLab's models."""

    def __init__(self, backbone: nn.Module, head: nn.Module, name: str = "head") -> None:
        super().__init__()
        self.backbone = backbone
        self.add_module(name, head)
        self.name = name

    def forward(self, inputs, mode):
        assert mode == "tensor"
        return getattr(self, self.name)(self.backbone(inputs))


class Pooled(nn.Module):
    """A linear classifier of the mean of the last map."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.fc = nn.Linear(dims, 5)

    def forward(self, feats):
        return self.fc(feats[-1].mean((2, 3)))


class Convolution(nn.Conv2d):
    def forward(self, x):
        return (super().forward(x),)


def test_linear_classifier():
    """The maps are the class activation maps: they add up to the logits without the bias."""
    torch.manual_seed(0)
    model = Model(Convolution(3, 6, 3, stride=2, padding=1), Pooled(6)).eval()
    inputs = torch.randn(1, 3, 10, 14)
    maps = class_maps(model, inputs, number=2)
    logits = model(inputs, "tensor")[0].detach()
    assert maps.classes == logits.topk(2).indices.tolist()
    assert maps.scores == pytest.approx(logits.softmax(0)[maps.classes].tolist())
    features = model.backbone(inputs)[0][0]
    weights = model.head.fc.weight[maps.classes]
    cam = torch.einsum("kc,chw->khw", weights, features).detach() / (5 * 7)
    torch.testing.assert_close(maps.maps, cam)
    bias = model.head.fc.bias.detach()[maps.classes]
    torch.testing.assert_close(maps.maps.sum((1, 2)), logits[maps.classes] - bias)
    assert maps.attention.shape == (0, 5, 7)


def test_segmentor():
    """A class has the positions that make its own pixels. Classes without pixels are left out."""

    class Head(nn.Module):
        def forward(self, feats):
            return torch.cat([feats[-1], -10 - feats[-1][:, :1].abs()], dim=1)

    class Same(nn.Module):
        def forward(self, x):
            return (1 * x,)

    inputs = torch.zeros(1, 2, 4, 6)
    inputs[0, 0, :, :4] = 1
    inputs[0, 1, :, 4:] = 1
    maps = class_maps(Model(Same(), Head(), "decode_head"), inputs)
    assert maps.classes == [0, 1]
    assert maps.scores == pytest.approx([4 / 6, 2 / 6])
    torch.testing.assert_close(maps.maps, inputs[0])


def test_class_attention(tmp_path):
    """With a class token, the map is the last stage's, and the token's attention comes with it."""
    torch.manual_seed(0)
    arch = dict(embed_dims=16, depths=(1, 1), num_heads=(1, 2), stem_dims=8)
    backbone = VOLO(arch, pretrain_img_size=32, with_cls_token=True, out_indices=(1,))

    class Head(nn.Module):
        def forward(self, feats):
            return feats[-1][1][:, :5]

    inputs = torch.randn(1, 3, 32, 48)
    model = Model(backbone, Head()).eval()
    maps = class_maps(model, inputs)
    assert maps.maps.shape == (3, 2, 3)
    assert maps.attention.shape == (2, 2, 3)
    assert maps.maps.abs().max() > 0
    assert ((maps.attention > 0) & (maps.attention < 1)).all()
    assert not any(module._forward_hooks for module in model.modules())
    image = np.zeros((32, 48, 3), np.uint8)
    figure = draw_class_maps(maps, ["a", "b", "c", "d", "e"], "title", image, (32, 48))
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles[0] == "image"
    assert titles[4:] == ["class token, block 0", "class token, block 1"]


def test_class_attention_maps():
    """The weights give the output of the layer."""
    torch.manual_seed(0)
    layer = ClassAttention(8, 2).double()
    tokens = torch.randn(2, 5, 8, dtype=torch.float64)
    values = layer.kv(tokens)[..., 8:].unflatten(2, (2, 4))
    mixed = torch.einsum("bhn,bnhd->bhd", layer.attention_maps(tokens), values).flatten(1)
    torch.testing.assert_close(layer.proj(mixed)[:, None], layer(tokens))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(2, 2), "need a classifier or a segmentor, with a backbone and a head; Linear"),
        (Model(Convolution(3, 4, 3), nn.Identity()), "Model gives another output"),
        (Model(nn.AdaptiveAvgPool2d(1), nn.Flatten()), None),
        (Model(nn.Flatten(), nn.Identity()), "whose last output is a map .*; Flatten gives none"),
    ],
)
def test_other_models(model, message):
    inputs = torch.randn(1, 3, 6, 6)
    if message is None:
        assert class_maps(model, inputs).maps.shape == (3, 1, 1)
        return
    with pytest.raises(ValueError, match=message):
        class_maps(model, inputs)
