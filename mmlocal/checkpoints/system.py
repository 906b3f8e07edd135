"""The parts of a converter of an official code base, and functions that converters share.

A converter is one file in this folder. It renames the tensors of a checkpoint, recovers the
config of the backbone from their shapes, and ends with :func:`register_system`.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from mmlocal.checkpoints.files import load_file

# Heads with the same names in mmdet 2.x and 3.x, and in mmseg 0.x and 1.x.
_HEAD = re.compile(r"(neck|rpn_head|roi_head|decode_head|auxiliary_head)\.")


@dataclass
class Renamed:
    """An official checkpoint under our names.

    Args:
        cfg: config of the backbone that its shapes describe.
        backbone: state dict of that backbone.
        heads: the other tensors, under the names of a full model.
        dropped: official names of tensors that our models do not store.
        left: entries of the official checkpoint that are not carried over.
        tables: arguments to replace in ``cfg``. They may change the sizes of tables only, which
            are interpolated.
        source: further entries of ``meta['source']``, beside the file.
        meta: further entries of ``meta``.
        untold: arguments of the backbone that no weight tells. Where ``cfg`` does not have one, its
            default is assumed.
    """

    cfg: dict
    backbone: dict[str, Tensor]
    heads: dict[str, Tensor]
    dropped: list[str]
    left: list[str]
    tables: dict = field(default_factory=dict)
    source: dict = field(default_factory=dict)
    meta: dict = field(default_factory=dict)
    untold: tuple[str, ...] = ()


@dataclass(frozen=True)
class System:
    """How to convert the checkpoints of one official code base.

    Args:
        name: name of the code base on the command line.
        model: name of its models, for messages.
        rename: makes a :class:`Renamed` of the result of ``load`` and of any of ``options``; raises
            ``ValueError`` if it cannot.
        options: keyword arguments of ``rename``, and how the command line shows each of them:
            arguments of ``ArgumentParser.add_argument``.
        find: maps the path that the user named to the file to read.
        load: reads that file; raises ``OSError`` or ``ValueError``.
        antialias: of :func:`~mmlocal.checkpoints.match_state_dict`, for ``Renamed.tables``.
    """

    name: str
    model: str
    rename: Callable[..., Renamed]
    options: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    find: Callable[[Path], Path] = Path
    load: Callable[[Path], dict] = load_file
    antialias: bool = False


# All code bases, by name.
SYSTEMS: dict[str, System] = {}


def register_system(system: System) -> None:
    """Make a code base known to the converter and its command line.

    Raises:
        ValueError: another code base has its name.
    """
    if system.name in SYSTEMS:
        raise ValueError(f"name must be new, got {system.name!r} for a second time")
    SYSTEMS[system.name] = system


# Reading a checkpoint of PyTorch


def official_weights(
    content: Mapping, entry: str = "state_dict"
) -> tuple[dict[str, Tensor], list[str]]:
    """Find the weights of a checkpoint, under their official names.

    Args:
        content: the checkpoint; without ``entry``, the state dict itself.
        entry: name of the weights in it. A prefix ``module.`` of all names is taken off.

    Returns:
        The weights, and the names of the other entries.

    Raises:
        ValueError: no weights, or others than dense tensors.
    """
    wrapped = entry in content
    state_dict = content[entry] if wrapped else content
    if not isinstance(state_dict, Mapping) or not state_dict:
        raise ValueError(f"{entry if wrapped else 'it'} holds no weights")
    if wrong := [k for k, v in state_dict.items() if not (isinstance(k, str) and _is_plain(v))]:
        raise ValueError(f"{len(wrong)} of its weights are no plain tensors: {some(wrong)}")
    if all(key.startswith("module.") for key in state_dict):
        state_dict = {key.removeprefix("module."): value for key, value in state_dict.items()}
    return dict(state_dict), [str(key) for key in content if key != entry] if wrapped else []


def _is_plain(value: object) -> bool:
    """Whether it is a dense tensor with data; quantised, sparse and meta tensors are not."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and not value.is_quantized
        and not value.is_meta
    )


def split_heads(official: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Part a detector of mmdet 2.x or a segmentor of mmseg 0.x.

    Returns:
        The backbone, without its prefix, and the heads. A state dict without ``backbone.`` is a
        backbone without heads.

    Raises:
        ValueError: tensors of unknown heads.
    """
    if not any(key.startswith("backbone.") for key in official):
        return dict(official), {}
    heads = {k: v for k, v in official.items() if not k.startswith("backbone.")}
    if unknown := [key for key in heads if not _HEAD.match(key)]:
        raise ValueError(f"{len(unknown)} tensors belong to no known head: {some(unknown)}")
    return {k.removeprefix("backbone."): v for k, v in official.items() if k not in heads}, heads


def dataset_meta(meta: object) -> dict:
    """Entry for ``Renamed.meta``: classes and colours under the names of MMEngine.

    Args:
        meta: entry of a checkpoint of MMCV 1.x, which has other names for both.
    """
    if not isinstance(meta, Mapping):
        return {}
    classes, palette = meta.get("CLASSES"), meta.get("PALETTE")
    if not isinstance(classes, (list, tuple)) or not all(isinstance(n, str) for n in classes):
        return {}
    found: dict = {"classes": tuple(classes)}
    if isinstance(palette, (list, tuple)):  # of [R, G, B]
        found["palette"] = [[int(value) for value in colour] for colour in palette]
    return {"dataset_meta": found}


# Recovering arguments from shapes


def shape_of(model: str, state_dict: Mapping[str, Tensor], key: str, dims: int) -> tuple[int, ...]:
    """Shape of an entry that every official ``model`` has.

    Raises:
        ValueError: there is no such entry, or it has not ``dims`` dimensions, none of them empty.
    """
    if key not in state_dict:
        raise ValueError(f"it is no {model}: there is no {key}")
    shape = tuple(state_dict[key].shape)
    if len(shape) != dims or 0 in shape:
        raise ValueError(f"it is no {model}: {key} must have {dims} dimensions, got {shape}")
    return shape


def square(key: str, length: int) -> int:
    """Side of the square map that ``key`` holds in rows.

    Raises:
        ValueError: ``length`` is no square number.
    """
    side = math.isqrt(length)
    if side**2 != length:
        raise ValueError(f"{key} must hold a square map, got {length} positions")
    return side


def count_blocks(model: str, state_dict: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    """Number of blocks of each stage.

    Args:
        model: name of the official model.
        state_dict: official names.
        name: official name of a block, such as ``"layers.{}.blocks.{}"`` for stage and block.

    Raises:
        ValueError: there are no blocks, or some are missing in between.
    """
    pattern = re.compile(re.escape(name).replace(r"\{\}", r"(\d+)") + r"\.")
    blocks: dict[int, set[int]] = defaultdict(set)
    for key in state_dict:
        if match := pattern.match(key):
            blocks[int(match[1])].add(int(match[2]))
    if not blocks:
        raise ValueError(f"it is no official {model}: there is no {name.format(0, 0)}")
    for i in range(max(blocks) + 1):
        for j in range(max(blocks[i], default=0) + 1):
            if j not in blocks[i]:
                raise ValueError(f"it is no whole {model}: there is no {name.format(i, j)}")
    return tuple(len(blocks[i]) for i in range(max(blocks) + 1))


def mlp_ratio_of(shapes: Sequence[tuple[int, ...]]) -> float:
    """The shortest decimal that gives the hidden channels of all MLPs, which are rounded down.

    Args:
        shapes: ``(hidden, dims)`` of each MLP.

    Raises:
        ValueError: there is none.
    """
    least = max(hidden / dims for hidden, dims in shapes)
    for digits in range(16):
        ratio = math.ceil(least * 10**digits) / 10**digits
        if all(int(dims * ratio) == hidden for hidden, dims in shapes):
            return ratio
    raise ValueError(f"no mlp_ratio gives the shapes {shapes} of (hidden, dims) in all stages")


# Checking the result


def check_renamed(official: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> None:
    """Check that no number got lost.

    Raises:
        ValueError: the state dicts do not hold as many numbers.
    """
    if sum(t.numel() for t in official.values()) != sum(t.numel() for t in ours.values()):
        raise ValueError("several of its tensors would get the same name")


def some(names: list) -> str:
    """The first three of ``names``."""
    return ", ".join(map(str, names[:3])) + (", ..." if len(names) > 3 else "")
