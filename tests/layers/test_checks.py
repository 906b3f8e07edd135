"""Bad arguments of layers and backbones: one error, which names the argument and its value."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from mmlocal.layers import (
    ELSA,
    MLP,
    ClassAttentionBlock,
    ConvStem,
    DropPath,
    EvenWindowAttention,
    GhostAttention,
    PatchEmbed,
    PatchMerging,
    QnA,
    TransformerBlock,
    UpsampleQnA,
    WindowAttention,
    WindowMSA,
)
from mmlocal.models.backbones import ELSAVOLO, VOLO, ELSASwin, GhostDeiT, QnAViT

NAN, INF = float("nan"), float("inf")
# Values that no argument of the kind takes.
COUNT = [0, -16, 1.5, "16", True, NAN, (7,), [], {}]
SQUARE = [0, -1, 1.5, "7", True, None, (7,), (0, 0), (7, 9), ("7", "7"), (7.0, 7.0)]
PAIR = [0, -1, 1.5, "7", True, None, (7,), (0, 7), ("7", "7"), (7, 7, 7)]
NUMBER = [NAN, INF, "x", True, (1,), []]
RATE = [*NUMBER, None, -0.5, 1.5]
RATIO = [*NUMBER, None, 0, -1, 0.01]
FLAG = ["no", 2, None, 0.5, []]
NAME = ["foo", 3, None, ()]
NORM = ["LN", 3, None, (), nn.Identity()]
DEPTHS = [(), (1, -1), (1, 1.5), ("1", "1"), 3, None, "11", (True, True)]
INDICES = [(), "01", None, 3, (0, 9), (0.5,), ("1",), (True,), (0, 0), {}]
FROZEN = [-2, 9, 1.5, "1", None, True, (1,)]

ELSA_ARCH = dict(embed_dims=12, depths=(1, 1), num_heads=(1, 1), group_width=4)
QNA_ARCH = dict(embed_dims=8, attn_depths=(0, 1), qna_depths=(1, 0), attn_heads=(1, 1),
                qna_heads=(1, 1))  # fmt: skip
DEIT_ARCH = dict(embed_dims=8, num_layers=2, num_heads=2)
VOLO_ARCH = dict(embed_dims=12, depths=(1, 1), num_heads=(2, 2), stem_dims=4)


def elsa_swin(**kwargs):
    return ELSASwin(**dict(arch=ELSA_ARCH, kernel_size=3, out_indices=(0, 1)) | kwargs)


def qna_vit(**kwargs):
    return QnAViT(**dict(arch=QNA_ARCH, window_sizes=(3, 3), out_indices=(0, 1)) | kwargs)


def ghost_deit(**kwargs):
    return GhostDeiT(**dict(arch=DEIT_ARCH) | kwargs)


def volo(**kwargs):
    return VOLO(**dict(arch=VOLO_ARCH, with_cls_token=True, out_indices=(0, 1)) | kwargs)


def elsa_volo(**kwargs):
    return ELSAVOLO(**dict(arch=VOLO_ARCH, out_indices=(0, 1)) | kwargs)


def elsa_arch(**kwargs):
    return elsa_swin(arch=ELSA_ARCH | kwargs)


def qna_arch(**kwargs):
    return qna_vit(arch=QNA_ARCH | kwargs)


def deit_arch(**kwargs):
    return ghost_deit(arch=DEIT_ARCH | kwargs)


def volo_arch(**kwargs):
    return volo(arch=VOLO_ARCH | kwargs)


def layer(kind, *args):
    def build(**kwargs):
        names = kind.__init__.__code__.co_varnames[1:]
        return kind(**dict(zip(names, args, strict=False)) | kwargs)

    build.__name__ = kind.__name__
    return build


block = layer(TransformerBlock, 12, nn.Identity())
CASES = [
    (elsa_swin, dict(
        in_channels=COUNT, patch_size=SQUARE, kernel_size=[*SQUARE, 4], window_size=SQUARE,
        fit_window=FLAG, mlp_ratio=RATIO, qkv_bias=FLAG, qk_scale=NUMBER, lam=[*NUMBER, None],
        gamma=[*NUMBER, None], drop_rate=RATE, attn_drop_rate=RATE, drop_path_rate=[*RATE, 1],
        patch_norm=FLAG, use_abs_pos_embed=FLAG, pretrain_img_size=[*PAIR, 3], out_indices=INDICES,
        frozen_stages=FROZEN, with_cp=FLAG, arch=["huge", 3, None, {}, []],
    )),
    (elsa_arch, dict(embed_dims=[*COUNT, 2], depths=DEPTHS, num_heads=[*DEPTHS, (5, 1)],
                     group_width=COUNT)),
    (qna_vit, dict(
        in_channels=COUNT, window_sizes=[(), 7, "77", (7, 0), (7, 1.5), (7, (7, 9)), (7,)],
        num_queries=COUNT, normalize_query=[*FLAG, (True,), (1, 1), "ab"], mlp_ratio=RATIO,
        stem=NAME, downsample_skip=NAME, drop_path_rate=[*RATE, 1], layer_scale_init_value=NUMBER,
        out_indices=INDICES, frozen_stages=FROZEN, norm_eval=FLAG, with_cp=FLAG,
        arch=["huge", 3, None, {}, QNA_ARCH | dict(kernel_size=3, other=1)],
    )),
    (qna_arch, dict(embed_dims=COUNT, attn_depths=DEPTHS, qna_depths=DEPTHS,
                    attn_heads=[*DEPTHS, (1, 5)], qna_heads=[*DEPTHS, (5, 1)],
                    kernel_size=[*SQUARE, 4])),
    (ghost_deit, dict(
        in_channels=COUNT, patch_size=SQUARE, pretrain_img_size=[*PAIR, 3], mlp_ratio=RATIO,
        qkv_bias=FLAG, qk_scale=NUMBER, ghost_ratio=[*COUNT, 3], lam=[*NUMBER, None],
        gamma=[*NUMBER, None], drop_rate=RATE, attn_drop_rate=RATE, drop_path_rate=[*RATE, 1],
        out_indices=INDICES, frozen_stages=FROZEN, with_cp=FLAG, arch=["huge", 3, None, {}],
    )),
    (deit_arch, dict(embed_dims=COUNT, num_layers=COUNT, num_heads=[*COUNT, 3])),
    (volo, dict(
        in_channels=COUNT, pretrain_img_size=[*PAIR, 15], mixer=["ELSA", 3, {}, dict(type="x")],
        with_cls_token=FLAG, drop_rate=RATE, attn_drop_rate=RATE, drop_path_rate=[*RATE, 1],
        out_indices=[*INDICES, (0,)], frozen_stages=FROZEN, norm_eval=FLAG, with_cp=FLAG,
        arch=["d6", 3, None, {}, VOLO_ARCH | dict(other=1)],
    )),
    (volo_arch, dict(embed_dims=COUNT, depths=DEPTHS, num_heads=[*DEPTHS, (5, 2), (2, 5)],
                     mlp_ratio=RATIO, stem_dims=COUNT)),
    (elsa_volo, dict(kernel_size=[*SQUARE, 4], group_width=COUNT, lam=[*NUMBER, None],
                     gamma=[*NUMBER, None], drop_rate=RATE, attn_drop_rate=RATE)),
    (layer(ELSA, 12, 2), dict(
        embed_dims=[*COUNT, 2], num_heads=[*COUNT, 5], kernel_size=[*SQUARE, 4], dilation=COUNT,
        qk_dims=COUNT, v_dims=COUNT, group_width=COUNT, groups=[*COUNT, 5], qkv_bias=FLAG,
        qk_scale=NUMBER, lam=NUMBER, gamma=NUMBER, attn_drop_rate=RATE, proj_drop_rate=RATE,
    )),
    (layer(QnA, 12, 2), dict(
        embed_dims=COUNT, num_heads=[*COUNT, 5], kernel_size=SQUARE, num_queries=COUNT,
        stride=COUNT, padding=[-1, 3, 1.5, "1", True, (1, 1)], attn_dims=COUNT, out_dims=COUNT,
        qkv_bias=FLAG, normalize_query=FLAG, detach_query_norm=FLAG,
        scale_pos_embed=FLAG, attn_scale=NAME,
    )),
    (layer(UpsampleQnA, 12, 2), dict(embed_dims=COUNT, num_heads=[*COUNT, 5], scale_factor=SQUARE,
                                     kernel_size=[*SQUARE, 4], attn_dims=COUNT, out_dims=COUNT)),
    (layer(GhostAttention, 12, 2), dict(
        embed_dims=COUNT, num_heads=[*COUNT, 5], map_size=PAIR, ghost_ratio=COUNT, lam=NUMBER,
        gamma=NUMBER, qkv_bias=FLAG, qk_scale=NUMBER, attn_drop_rate=RATE, proj_drop_rate=RATE,
    )),
    (layer(WindowMSA, 12, 2, 7), dict(
        embed_dims=COUNT, num_heads=[*COUNT, 5], window_size=PAIR, qkv_bias=FLAG, qk_scale=NUMBER,
        attn_drop_rate=RATE, proj_drop_rate=RATE, proj_bias=FLAG,
    )),
    (layer(WindowAttention, 12, 2, 7), dict(window_size=SQUARE, shift=FLAG,
                                                   fit_window=FLAG, embed_dims=COUNT)),
    (layer(EvenWindowAttention, 12, 2, 7), dict(window_size=SQUARE, num_heads=COUNT)),
    (layer(MLP, 12, 8), dict(embed_dims=COUNT, hidden_dims=COUNT, drop_rate=RATE, gelu=NAME)),
    (layer(PatchEmbed, 3, 8), dict(in_channels=COUNT, embed_dims=COUNT, patch_size=SQUARE,
                                   norm=FLAG, bias=FLAG)),
    (layer(PatchMerging, 3, 8), dict(in_dims=COUNT, out_dims=COUNT)),
    (layer(ConvStem, 3, 8), dict(in_channels=COUNT, embed_dims=COUNT, stem_dims=COUNT)),
    (layer(ClassAttentionBlock, 12, 2), dict(
        embed_dims=COUNT, num_heads=[*COUNT, 5], mlp_ratio=RATIO, drop_rate=RATE,
        attn_drop_rate=RATE, with_cp=FLAG,
    )),
    (layer(DropPath), dict(drop_prob=[*RATE, 1])),
    (block, dict(embed_dims=COUNT, mlp_ratio=RATIO, drop_rate=RATE, drop_path_rate=RATE,
                 with_cp=FLAG, norm1=NORM, norm2=NORM, gelu=NAME, out_dims=COUNT,
                 layer_scale_init_value=NUMBER)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("build", "name", "values"),
    [(build, name, values) for build, names in CASES for name, values in names.items()],
    ids=lambda x: getattr(x, "__name__", x if isinstance(x, str) else ""),
)
def test_bad_arguments(build, name, values):
    for value in values:
        with torch.device("meta"), pytest.raises((ValueError, TypeError)) as error:
            build(**{name: value})
        message = str(error.value)
        assert re.search(rf"\b{name}\b", message), (value, message)
        assert "\n" not in message
        raised_by = error.traceback[-1].frame.f_globals["__name__"]
        assert raised_by.startswith("mmlocal."), (value, raised_by)


def test_no_block_at_all():
    with pytest.raises(ValueError, match=r"arch must have a block .* first stage"):
        qna_vit(arch=QNA_ARCH | dict(qna_depths=(0, 1)), out_indices=(0,))


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in model.state_dict().items()}


def test_pairs_as_swin_has_them():
    """Lists, as configs have them, and NumPy's integers pass too."""
    pairs = dict(kernel_size=(3, 3), window_size=(7, 7), patch_size=[4, 4],
                 pretrain_img_size=(224, 224))  # fmt: skip
    numbers = dict(kernel_size=3, window_size=np.int64(7), patch_size=4, pretrain_img_size=224)
    models = [elsa_swin(use_abs_pos_embed=True, **kwargs) for kwargs in (pairs, numbers)]
    assert shapes(models[0]) == shapes(models[1])
    assert [out.shape for out in models[0](torch.zeros(1, 3, 20, 20))] == [
        (1, 12, 5, 5), (1, 24, 3, 3)
    ]  # fmt: skip
    pairs, numbers = (
        qna_vit(arch=QNA_ARCH | dict(kernel_size=kernel), window_sizes=windows)
        for kernel, windows in (((3, 3), [(7, 7), [7, 7]]), (3, (7, 7)))
    )
    assert shapes(pairs) == shapes(numbers)
    wide = elsa_swin(use_abs_pos_embed=True, pretrain_img_size=(32, 64))
    assert wide.absolute_pos_embed.shape == (1, 12, 8, 16)
    wide = ghost_deit(pretrain_img_size=(32, 64))
    assert wide.absolute_pos_embed.shape == (1, 8, 2, 4)
    assert wide.stages[0].blocks[0].attn.map_size == (2, 4)
    wide(torch.zeros(1, 3, 32, 64))


@pytest.mark.parametrize(
    "build", [layer(WindowAttention, 12, 2, 7), layer(EvenWindowAttention, 12, 2, 7)]
)
def test_bad_maps(build):
    for shape in ((1, 12, 12), (1, 3, 4, 11)):
        with pytest.raises(ValueError, match=r"x must be \(B, H, W, embed_dims=12\), got"):
            build()(torch.zeros(shape))
    with pytest.raises(TypeError, match="x must be a tensor, got list"):
        build()([1.0])


def test_bad_windows():
    attention = WindowMSA(12, 2, (3, 4))
    attention(torch.zeros(2, 6, 12), (2, 3))
    with pytest.raises(ValueError, match=r"x must be .* 12, embed_dims=12.* 3x4, got \(2, 6, 12\)"):
        attention(torch.zeros(2, 6, 12))
    with pytest.raises(ValueError, match=r"window_size must be at most \(3, 4\), got \(4, 4\)"):
        attention(torch.zeros(2, 16, 12), (4, 4))
