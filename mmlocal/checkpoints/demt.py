"""State dicts of the official DeMT code (yangyangxu0/DeMT) under the names of ``DeMTHead``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from mmlocal.checkpoints.files import load_file
from mmlocal.checkpoints.matching import some
from mmlocal.checkpoints.system import (
    Renamed,
    System,
    check_renamed,
    count_blocks,
    mlp_ratio_of,
    official_weights,
    register_system,
    shape_of,
    square,
)

_MODEL = "DeMT"
_shape = partial(shape_of, _MODEL)

_WITH_CLASSES = ("semseg", "human_parts")
# Parts of the head that all tasks share: official name -> our name.
_SHARED = {
    "linear1.0": "encoder.proj",
    "linear1.1": "encoder.norm",
    "task_fusion": "interaction.attention",
    "smlp": "interaction.smlp",
}
# Parts that each task has, in a dict by names of tasks ...
_BY_NAME = {"bottleneck": "bottlenecks", "final_logits": "conv_outs"}
# ... and in a list in the order of the tasks.
_BY_INDEX = {
    "defor_mixers": "mixers.{}",
    "task_querys": "queries.{}.attention",
    "smlp2": "queries.{}.smlp",
}
# Layers of a block of a mixer. Until March 2023, the layer with the residual came first.
_DEFORM = {
    "get_offset.p_conv": "deform.positions",
    "get_offset.opt": "deform.offsets",
}
_LAYERS = {
    False: {"0": "conv", "2": "norm1", "3.fn.0": "deform.conv", "3.fn.2": "norm2"},
    True: {"0.fn.0": "deform.conv", "0.fn.2": "norm2", "1": "conv", "3": "norm1"},
}
_MIXER = re.compile(r"(blocks\.\d+)\.(.+)\.(\w+)")
# A constant that no code reads.
_UNUSED = re.compile(r"(?:head\.)?defor_mixers\.\d+\.blocks\.\d+\.\d\.fn\.0\.offset")
# What Lightning stores beside the network: losses and metrics have no weights.
_NO_WEIGHTS = re.compile(r"(criterion|metrics_dict)\.")


def convert_demt(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the parameters and buffers of an official DeMT head.

    Args:
        state_dict: state dict of the head, under official names without a prefix. Its order tells
            which mixer belongs to which task, as in every file that PyTorch writes.

    Returns:
        The state dict under the names of ``DeMTHead``, without the constants that no code reads.

    Raises:
        ValueError: a tensor has no place, or the head has no tasks.
    """
    tasks = tasks_of(state_dict)
    layers = _LAYERS[residual_comes_first(state_dict)]
    converted = {}
    for key, tensor in state_dict.items():
        if not _UNUSED.fullmatch(key):
            converted[_rename(key, tasks, layers)] = tensor
    return converted


def _rename(key: str, tasks: list[str], layers: Mapping[str, str]) -> str:
    for theirs, ours in _SHARED.items():
        if key.startswith(f"{theirs}."):
            return ours + key.removeprefix(theirs)
    part, _, rest = key.partition(".")
    if part in _BY_NAME:
        return f"{_BY_NAME[part]}.{rest}"
    index, _, rest = rest.partition(".")
    if part not in _BY_INDEX or not index.isdecimal() or int(index) >= len(tasks):
        raise ValueError(f"it is not an official {_MODEL}: {key} has no place in its head")
    owner = _BY_INDEX[part].format(tasks[int(index)])
    if part != "defor_mixers":
        return f"{owner}.{rest}"
    if match := _MIXER.fullmatch(rest):
        block, layer, name = match.groups()
        prefix, _, inner = layer.partition(".fn.0.")
        if layer in layers:
            return f"{owner}.{block}.{layers[layer]}.{name}"
        if inner in _DEFORM and f"{prefix}.fn.0" in layers:
            return f"{owner}.{block}.{_DEFORM[inner]}.{name}"
    raise ValueError(f"it is not an official {_MODEL}: {key} has no place in a deformable mixer")


def tasks_of(state_dict: Mapping[str, Tensor]) -> list[str]:
    """List the tasks of an official head, in their order.

    Args:
        state_dict: state dict of the head, under official names without a prefix.

    Raises:
        ValueError: there are none.
    """
    names = [key.split(".")[1] for key in state_dict if key.startswith("bottleneck.")]
    if not names:
        raise ValueError(f"it is not an official {_MODEL}: there is no bottleneck of a task")
    return list(dict.fromkeys(names))


def residual_comes_first(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether a mixer begins with the deformable layer, as in the code until March 2023.

    Args:
        state_dict: state dict of the head, under official names without a prefix.
    """
    return any(key.startswith("defor_mixers.0.blocks.0.0.fn.") for key in state_dict)


def demt_head_cfg(state_dict: Mapping[str, Tensor], in_channels: list[int]) -> dict:
    """Recover the arguments of ``DeMTHead`` from official names and shapes.

    Args:
        state_dict: state dict of the head, under official names without a prefix.
        in_channels: channels of the maps of the backbone.

    Returns:
        Config with ``type``. It has ``legacy``, as the published code with one image per process.

    Raises:
        ValueError: a parameter of every head is missing, or the head does not fit the backbone.
    """
    channels, joined = _shape(state_dict, "linear1.0.weight", 2)
    if joined != sum(in_channels):
        raise ValueError(
            f"its head takes {joined} channels, but the maps of its backbone have {in_channels}"
        )
    tasks: dict[str, dict] = {}
    for task in tasks_of(state_dict):
        number = _shape(state_dict, f"final_logits.{task}.weight", 4)[0]
        tasks[task] = dict(num_classes=number) if task in _WITH_CLASSES else {}
    depth = count_blocks(_MODEL, state_dict, "defor_mixers.{}.blocks.{}")[0]
    return dict(
        type="mmlocal.DeMTHead",
        in_channels=in_channels,
        tasks=tasks,
        channels=channels,
        mixer=dict(depth=depth, residual_first=residual_comes_first(state_dict)),
        legacy=True,
    )


def demt_backbone_cfg(state_dict: Mapping[str, Tensor]) -> dict:
    """Recover the arguments of mmseg's ``SwinTransformer``, whose names DeMT's Swin has.

    Args:
        state_dict: state dict of the backbone, without a prefix.

    Returns:
        Config with ``type``.

    Raises:
        ValueError: it is no Swin Transformer. No weights with HRNet were published.
    """
    if "patch_embed.projection.weight" not in state_dict:
        raise ValueError(
            f"its backbone is no Swin Transformer, with which alone weights of {_MODEL} were "
            f"published: it has {some(list(state_dict))}"
        )
    embed_dims, in_channels, patch_size, _ = _shape(state_dict, "patch_embed.projection.weight", 4)
    depths = count_blocks(_MODEL, state_dict, "stages.{}.blocks.{}")
    first = [f"stages.{i}.blocks.0." for i in range(len(depths))]
    tables = [name + "attn.w_msa.relative_position_bias_table" for name in first]
    shapes = [_shape(state_dict, name, 2) for name in tables]
    return dict(
        type="mmseg.SwinTransformer",
        in_channels=in_channels,
        embed_dims=embed_dims,
        patch_size=patch_size,
        window_size=(square(tables[0], shapes[0][0]) + 1) // 2,
        mlp_ratio=mlp_ratio_of(
            [_shape(state_dict, f"{name}ffn.layers.0.0.weight", 2) for name in first]
        ),
        depths=depths,
        num_heads=tuple(heads for _, heads in shapes),
        strides=(patch_size, *[2] * (len(depths) - 1)),
        out_indices=tuple(i for i in range(len(depths)) if f"norm{i}.weight" in state_dict),
        drop_path_rate=0.1,
    )


def rename_demt(content: Mapping) -> Renamed:
    """Bring a checkpoint of the official code under our names.

    Args:
        content: the checkpoint, as :func:`load_demt` reads it: a file of PyTorch Lightning, or a
            state dict.

    Returns:
        The renamed checkpoint. ``meta['head_cfg']`` is the config of the head.

    Raises:
        ValueError: the checkpoint has another architecture, or a tensor without a place.
    """
    official, left = official_weights(content)
    dropped = [key for key in official if _NO_WEIGHTS.match(key) or _UNUSED.fullmatch(key)]
    kept = {key: tensor for key, tensor in official.items() if key not in dropped}
    parts: dict[str, dict[str, Tensor]] = {"backbone": {}, "head": {}}
    for key, tensor in kept.items():
        part, _, name = key.partition(".")
        if part not in parts:
            raise ValueError(f"it is not an official {_MODEL}: {key} has no place")
        parts[part][name] = tensor
    backbone, head = parts.values()
    cfg = demt_backbone_cfg(backbone)
    in_channels = [_shape(backbone, f"norm{i}.weight", 1)[0] for i in cfg["out_indices"]]
    head_cfg = demt_head_cfg(head, in_channels)
    renamed = convert_demt(head)
    check_renamed(head, renamed)
    return Renamed(
        cfg,
        backbone,
        heads={f"decode_head.{key}": tensor for key, tensor in renamed.items()},
        dropped=dropped,
        left=left,
        head_cfg=head_cfg,
        untold=("drop_rate", "attn_drop_rate", "drop_path_rate"),
    )


def load_demt(path: Path) -> dict:
    """Read a checkpoint of PyTorch Lightning without executing anything in it.

    Args:
        path: a local file.

    Returns:
        The dict in the file.

    Raises:
        ImportError: mmseg is not installed. The models are built to check the weights.
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged or unsafe.
    """
    if find_spec("mmseg") is None:
        raise ImportError(f"{_MODEL} needs MMSegmentation: pip install onedl-mmsegmentation")
    # Lightning names its callbacks by their classes. An empty class replaces the one it writes.
    module = "pytorch_lightning.callbacks.model_checkpoint"
    stand_in = type("ModelCheckpoint", (), {"__module__": module})
    with torch.serialization.safe_globals([stand_in]):
        return load_file(path)


# Swin of mmseg computes with numbers while it is built, which the meta device cannot.
register_system(System("demt", _MODEL, rename_demt, load=load_demt, device="cpu"))
