"""The benchmark uses the shapes that layers of the published models pass to the ops."""

import pytest
import torch

from mmlocal.layers import ELSA, OutlookAttention, QnA
from mmlocal.models.backbones import VOLO, ELSASwin, QnAViT
from mmlocal.ops import OPS


def layer_shapes(model: torch.nn.Module, batch: int, size: tuple[int, int]) -> set[tuple]:
    """Shapes that each local-attention layer of a model passes to its op, without computing."""
    shapes = set()

    def hook(layer, args):
        height, width = args[0].shape[1:3]
        if isinstance(layer, ELSA):
            heads, channels, stride = layer.num_heads, layer.v_dims, 1
        elif isinstance(layer, OutlookAttention):
            heads, channels, stride = layer.num_heads, layer.embed_dims, layer.stride
        else:
            heads, channels, stride = layer.num_heads, layer.value.out_features, layer.stride
        shapes.add((batch, channels, heads, height, width, layer.kernel_size, stride))

    for layer in model.modules():
        if isinstance(layer, (ELSA, OutlookAttention, QnA)):
            layer.register_forward_pre_hook(hook)
    with torch.no_grad():
        model(torch.empty(batch, 3, *size, device="meta"))
    return shapes


MODELS = [
    (f"{family} {arch}", kind, arch)
    for family, kind in {"ELSA-Swin": ELSASwin, "QnA-ViT": QnAViT, "VOLO": VOLO}.items()
    for arch in kind.arch_zoo
]


@pytest.mark.parametrize(("name", "kind", "arch"), MODELS, ids=[name for name, *_ in MODELS])
def test_stages_are_those_of_the_models(name, kind, arch):
    stages = [case for op in OPS.values() for case in op.load_analysis().CASES.get("stages", [])]
    cases = [case for case in stages if name in case.name.split(",")[0].split(" = ")]
    with torch.device("meta"):
        model = kind(arch).eval()
    for batch, *size in ((4, 224, 224), (1, 800, 1280)):
        expected = {
            (c.batch, c.channels, c.heads, c.height, c.width, c.kernel_size, c.stride)
            for c in cases
            if c.name.endswith(f"{size[0]}x{size[1]}")
        }
        assert expected
        assert layer_shapes(model, batch, size) == expected


def test_each_case_belongs_to_its_op():
    for op in OPS.values():
        for cases in op.load_analysis().CASES.values():
            assert {case.op for case in cases} == {op.name}
