"""Flax checkpoints of the official QnA code (moabarar/qna) under the names of ``QnAViT``."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from mmlocal.checkpoints.flax_files import LEAVES, find_flax, flatten, load_flax, to_pytorch
from mmlocal.checkpoints.matching import some
from mmlocal.checkpoints.qna_layers import (
    WINDOW_TABLE,
    convert_qna_layer,
    convert_window_attention,
)
from mmlocal.checkpoints.system import (
    Renamed,
    System,
    check_renamed,
    register_system,
    shape_of,
    square,
)

_MODEL = "QnA-ViT"
_shape = partial(shape_of, _MODEL)
_BLOCK_PARTS = {
    "LayerNorm_0": "norm1",
    "LayerNorm_1": "norm2",
    "MlpBlock_0/Dense_0": "mlp.fc1",
    "MlpBlock_0/Dense_1": "mlp.fc2",
    "LayerScale_0/scale_param": "gamma1",
    "LayerScale_1/scale_param": "gamma2",
    "Conv_0": "skip.conv",
    "AvgPool1x1Conv_0/Conv_0": "skip.conv",
}
_PARTS = {
    "StemBlock_0/conv_1x1": "patch_embed.proj",
    "StemBlock_0/conv_7x7": "patch_embed.conv",
    "StemBlock_0/BatchNorm_0": "patch_embed.norm",
    "ClassificationHead_0/head_logits": "head.fc",
}
_HEAD_NORM = "ClassificationHead_0/LayerNorm_0"
_HEAD_LAYER = "ClassificationHead_0/FusedKQnA_0/"
_BLOCK = re.compile(r"(LSA|QnA)Stage_([0-9]+)/(?:MSA|QnA)_Block_([0-9]+)(_stride_2)?/(.+)")
# Width of the attention windows of the published models, in all stages but the third.
_WINDOW_SIZE = 7


def convert_qna_vit(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the parameters of an official QnA-ViT to the names of a classifier of ours.

    Args:
        params: parameters, and batch statistics of a ``resnet`` stem, under official names. The
            parts of a name are joined by ``/``.

    Returns:
        A state dict of the backbone without prefix, including its last output norm, of ``head.fc``,
        and of ``neck.qna`` if the official head pools by attention.

    Raises:
        ValueError: no official model has one of the names.
    """
    attn_depths, _ = _depths(params)
    outer_parts = _PARTS | {_HEAD_NORM: f"norm{len(attn_depths) - 1}"}
    out: dict[str, Tensor] = {}
    layers: dict[tuple[str, str], dict[str, Tensor]] = {}
    for key, value in params.items():
        if match := _BLOCK.fullmatch(key):
            kind, stage, number, stride, inner = match.groups()
            position = int(number) - 1 + (attn_depths[int(stage)] if kind == "QnA" else 0)
            place = "downsample" if stride else f"blocks.{position}"
            prefix = f"stages.{stage}.{place}"
            parts = {k: f"{prefix}.{v}" for k, v in _BLOCK_PARTS.items()}
        elif key.startswith(_HEAD_LAYER):
            prefix, inner, parts = "neck.qna", key.removeprefix("ClassificationHead_0/"), {}
        else:
            prefix, inner, parts = "", key, outer_parts
        layer, _, rest = inner.partition("/")
        part, _, leaf = inner.rpartition("/")
        if prefix and layer in ("FusedKQnA_0", "MultiHeadSelfAttention_0"):
            layers.setdefault((prefix, layer), {})[rest] = value
        elif inner in parts:
            out[parts[inner]] = value
        elif part in parts and leaf in LEAVES:
            out[f"{parts[part]}.{LEAVES[leaf]}"] = to_pytorch(leaf, value)
        else:
            raise ValueError(f"it is not an official QnA-ViT: such a model has no parameter {key}")
    for (prefix, name), layer in layers.items():
        if name == "FusedKQnA_0":
            infix = "" if prefix == "neck.qna" else ".attn"
            converted = convert_qna_layer(layer)
        else:
            infix = ".attn.w_msa"
            table = layer.get(WINDOW_TABLE)
            if table is None:
                raise ValueError(f"{prefix}: window attention has no relative position table")
            converted = convert_window_attention(layer, table.shape[1])
        out |= {f"{prefix}{infix}.{key}": value for key, value in converted.items()}
    return out


def qna_backbone_cfg(params: Mapping[str, Tensor]) -> dict:
    """Recover the arguments of ``QnAViT`` from official names and shapes.

    Shapes show neither ``normalize_query`` nor the rate of stochastic depth. Both keep their
    defaults; ``normalize_query`` is true in all stages of the published models. Where a stage has
    no blocks of a kind, their heads and windows have no effect. The config then doubles the heads
    from stage to stage and has windows of 7 tokens, as the published models do.

    Args:
        params: parameters of a classification model under official names. The parts of a name are
            joined by ``/``.

    Returns:
        Config with ``type``. ``layer_scale_init_value`` is 1 if the checkpoint has such factors.

    Raises:
        ValueError: a parameter of every QnA-ViT is missing or has an impossible shape.
    """
    stem = "patch" if "StemBlock_0/conv_1x1/kernel" in params else "resnet"
    kernel = f"StemBlock_0/conv_{'1x1' if stem == 'patch' else '7x7'}/kernel"
    _, _, in_channels, embed_dims = _shape(params, kernel, 4)
    attn_depths, qna_depths = _depths(params)
    last = len(qna_depths) - 1
    _shape(params, f"{_HEAD_NORM}/scale", 1)

    attn_heads: list[int | None] = [None] * (last + 1)
    qna_heads, window_sizes = attn_heads.copy(), [_WINDOW_SIZE] * (last + 1)
    qna = ""
    for i, depth in enumerate(attn_depths):
        if depth:
            table = f"LSAStage_{i}/MSA_Block_1/MultiHeadSelfAttention_0/{WINDOW_TABLE}"
            offsets, attn_heads[i] = _shape(params, table, 2)
            window_sizes[i] = (square(table, offsets) + 1) // 2
    for i, depth in enumerate(qna_depths):
        if depth or i < last:
            block = "QnA_Block_1" if depth else "QnA_Block_1_stride_2"
            qna = f"QnAStage_{i}/{block}/FusedKQnA_0"
            num_queries, _ = _shape(params, f"{qna}/query", 2)
            taps, tables = _shape(params, f"{qna}/rpe_bias", 2)
            # A block of stride 2 has twice the heads.
            qna_heads[i] = tables // num_queries // (1 if depth else 2)
    if not qna:
        raise ValueError("it is not an official QnA-ViT: there is no QnAStage_0/QnA_Block_1")
    arch = dict(
        embed_dims=embed_dims,
        attn_depths=attn_depths,
        qna_depths=qna_depths,
        attn_heads=_doubled(attn_heads),
        qna_heads=_doubled(qna_heads),
        kernel_size=square(f"{qna}/rpe_bias", taps),
    )
    pools = any("/AvgPool1x1Conv_0/" in key for key in params)
    cfg = dict(
        type="mmlocal.QnAViT",
        arch=arch,
        in_channels=in_channels,
        window_sizes=tuple(window_sizes),
        num_queries=num_queries,
        stem=stem,
        downsample_skip="avgpool" if pools else "conv",
        out_indices=(last,),
    )
    if any("/LayerScale_0/" in key for key in params):
        cfg["layer_scale_init_value"] = 1.0
    return cfg


def rename_qna(
    content: Mapping,
    kernel_size: int | None = None,
    window_sizes: Sequence[int] | None = None,
) -> Renamed:
    """Bring a checkpoint of the official code under our names.

    Args:
        content: the checkpoint, as :func:`~mmlocal.checkpoints.load_flax` reads it. It may be a
            training state, a map with ``params`` and, for a ``resnet`` stem, ``batch_stats``, or
            the parameters alone.
        kernel_size: new width of the backbone's QnA windows, to which tables are resized; ``None``
            to keep the width.
        window_sizes: new widths of the attention windows, one per stage, to which tables are
            resized; ``None`` to keep the widths.

    Returns:
        The renamed checkpoint.

    Raises:
        ValueError: the checkpoint has another architecture, or a parameter without a place.
    """
    params = flatten(content.get("params", content))
    statistics = content.get("batch_stats") if "params" in content else None
    params |= flatten(statistics or {})
    left = [str(k) for k in content if k not in ("params", "batch_stats")]
    if wrong := [
        k for k, v in params.items() if not torch.is_tensor(v) or not v.is_floating_point()
    ]:
        raise ValueError(f"{len(wrong)} of its parameters are not arrays of floats: {some(wrong)}")

    cfg = qna_backbone_cfg(params)
    dropped = [key for key in params if key.endswith("FusedKQnA_0/Wk_b")]
    official = {key: value for key, value in params.items() if key not in dropped}
    ours = convert_qna_vit(official)
    check_renamed(official, ours)
    if cfg["stem"] == "resnet":  # Flax does not count batches
        ours["patch_embed.norm.num_batches_tracked"] = torch.tensor(0)
    heads = {k: v for k, v in ours.items() if k.startswith(("head.", "neck."))}
    backbone = {k: v for k, v in ours.items() if k not in heads}
    tables: dict = {}
    if kernel_size is not None:
        tables["arch"] = cfg["arch"] | dict(kernel_size=kernel_size)
    if window_sizes is not None:
        if min(window_sizes, default=0) < 1:
            raise ValueError(f"window_sizes must be at least 1, got {window_sizes}")
        tables["window_sizes"] = tuple(window_sizes)
    untold = ["normalize_query", "drop_path_rate"]
    if "layer_scale_init_value" in cfg:
        untold.append("layer_scale_init_value")
    left = left if "params" in content else []
    return Renamed(cfg, backbone, heads, dropped, left, tables, untold=tuple(untold))


def _depths(params: Mapping[str, Tensor]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Count the blocks of each stage: window attention, and QnA without blocks of stride 2."""
    blocks: dict[tuple[str, int], set[int]] = defaultdict(set)
    for key in params:
        if match := _BLOCK.fullmatch(key):
            kind, stage, number, stride, _ = match.groups()
            blocks["stride" if stride else kind, int(stage)].add(int(number))
    if not blocks:
        raise ValueError("it is not an official QnA-ViT: there is no QnAStage_0/QnA_Block_1")
    last = max(stage for _, stage in blocks)
    last += ("stride", last) in blocks  # the last stage has no block at all
    attn_depths, qna_depths = [], []
    for i in range(last + 1):
        attn, qna = len(blocks["LSA", i]), len(blocks["QnA", i])
        wanted = [set(range(1, attn + 1)), set(range(1, qna + 1)), {qna + 1} if i < last else set()]
        if [blocks[kind, i] for kind in ("LSA", "QnA", "stride")] != wanted:
            raise ValueError(
                f"it is not a whole QnA-ViT: blocks of stage {i} of {last + 1} are missing"
            )
        attn_depths.append(attn)
        qna_depths.append(qna)
    return tuple(attn_depths), tuple(qna_depths)


def _doubled(heads: Sequence[int | None]) -> tuple[int, ...]:
    """Fill in missing heads, which double from stage to stage as the channels do."""
    known = next((i for i, count in enumerate(heads) if count), 0)
    first = heads[known] or 1
    return tuple(n or max(1, (first << i) >> known) for i, n in enumerate(heads))


register_system(
    System(
        "qna",
        _MODEL,
        rename_qna,
        options={
            "kernel_size": dict(
                type=int, metavar="K", help="resize the tables of QnA to windows of this width"
            ),
            "window_sizes": dict(
                type=int,
                nargs="+",
                metavar="W",
                help="resize the tables of window attention to these widths, one for each stage; "
                "for images of 384 pixels: 7 7 24 12",
            ),
        },
        find=find_flax,
        load=load_flax,
        antialias=True,
    )
)
