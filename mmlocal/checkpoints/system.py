"""The interface of a converter, and functions that converters share.

A converter serves one official code base and is one file in this folder. It renames the tensors of
a checkpoint, recovers the config of the backbone from their shapes, and ends with
:func:`register_system`.
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
from mmlocal.checkpoints.matching import some

# These heads have the same names in mmdet 2.x and 3.x, and in mmseg 0.x and 1.x.
_HEAD = re.compile(r"(neck|rpn_head|roi_head|decode_head|auxiliary_head)\.")


@dataclass
class Renamed:
    """An official checkpoint under our names.

    Args:
        cfg: config of the backbone, recovered from shapes.
        backbone: state dict of the backbone.
        heads: the other tensors, under the names of a full model.
        dropped: official names of tensors that our models do not store.
        left: entries of the official checkpoint that are not carried over.
        tables: arguments to replace in ``cfg``. They may only change the sizes of tables, which are
            then interpolated.
        source: further entries of ``meta['source']``, in addition to the file.
        meta: further entries of ``meta``.
        untold: arguments of the backbone that the weights do not show. If ``cfg`` does not have an
            argument, its default is assumed.
        head_cfg: config of the head ``decode_head``, if the weights show it. ``heads`` must then
            fit this head.
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
    head_cfg: dict = field(default_factory=dict)


@dataclass(frozen=True)
class System:
    """The converter of one official code base.

    Args:
        name: name of the code base on the command line.
        model: name of the models, for messages.
        rename: function that makes a :class:`Renamed` from the result of ``load``. It takes any of
            ``options`` as keyword arguments, and raises ``ValueError`` for a wrong checkpoint.
        options: keyword arguments of ``rename``, each with arguments of
            ``ArgumentParser.add_argument`` for the command line.
        find: function that maps the user's path to the file to read.
        load: function that reads this file. It raises ``OSError`` or ``ValueError``.
        antialias: argument of :func:`~mmlocal.checkpoints.match_state_dict` for ``Renamed.tables``.
        device: device on which models are built to check the weights: ``meta`` without memory, or
            ``cpu`` for models that cannot be built there.
    """

    name: str
    model: str
    rename: Callable[..., Renamed]
    options: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    find: Callable[[Path], Path] = Path
    load: Callable[[Path], dict] = load_file
    antialias: bool = False
    device: str = "meta"


#: All registered code bases, by name.
SYSTEMS: dict[str, System] = {}


def register_system(system: System) -> None:
    """Make a code base known to the converter and its command line.

    Args:
        system: the code base.

    Raises:
        ValueError: another code base has the same name.
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
        content: the checkpoint. If it lacks ``entry``, it is the state dict itself, unless
            ``entry`` is ``state_dict_ema``.
        entry: name of the entry with the weights.

    Returns:
        The weights, and the names of the other entries. If the names of all weights begin with
        ``module.``, this prefix is removed.

    Raises:
        ValueError: there are no weights, no averaged ones, or one is not a dense tensor.
    """
    if entry == "state_dict_ema" and entry not in content:
        raise ValueError(f"it holds no moving average of the weights, {entry}")
    wrapped = entry in content
    state_dict = content[entry] if wrapped else content
    if not isinstance(state_dict, Mapping) or not state_dict:
        raise ValueError(f"{entry if wrapped else 'it'} holds no weights")
    if wrong := [k for k, v in state_dict.items() if not (isinstance(k, str) and _is_dense(v))]:
        raise ValueError(f"{len(wrong)} of its weights are not plain tensors: {some(wrong)}")
    if all(key.startswith("module.") for key in state_dict):
        state_dict = {key.removeprefix("module."): value for key, value in state_dict.items()}
    return dict(state_dict), [str(key) for key in content if key != entry] if wrapped else []


def _is_dense(value: object) -> bool:
    """Whether ``value`` is a tensor, but not quantised, sparse or on the meta device."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and not value.is_quantized
        and not value.is_meta
    )


def split_heads(official: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split a detector of mmdet 2.x or a segmentor of mmseg 0.x into backbone and heads.

    Args:
        official: state dict. If no name begins with ``backbone.``, it is a backbone without heads.

    Returns:
        The backbone, without the prefix ``backbone.``, and the heads.

    Raises:
        ValueError: a tensor belongs to an unknown head.
    """
    if not any(key.startswith("backbone.") for key in official):
        return dict(official), {}
    heads = {k: v for k, v in official.items() if not k.startswith("backbone.")}
    if unknown := [key for key in heads if not _HEAD.match(key)]:
        raise ValueError(f"{len(unknown)} tensors belong to no known head: {some(unknown)}")
    return {k.removeprefix("backbone."): v for k, v in official.items() if k not in heads}, heads


def dataset_meta(meta: object) -> dict:
    """Rename classes and colours to MMEngine's names.

    Args:
        meta: entry ``meta`` of a checkpoint of MMCV 1.x. Anything else has no classes.

    Returns:
        ``dataset_meta`` for ``Renamed.meta``, or an empty dict if there are no classes.
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
    """Look up the shape of an entry that every official ``model`` has.

    Args:
        model: name of the official model, for the error.
        state_dict: tensors under official names.
        key: name of the entry.
        dims: number of dimensions that the entry must have.

    Returns:
        The shape, without a 0.

    Raises:
        ValueError: the entry is missing or empty, or has another number of dimensions.
    """
    if key not in state_dict:
        raise ValueError(f"it is not an official {model}: there is no {key}")
    shape = tuple(state_dict[key].shape)
    if len(shape) != dims or 0 in shape:
        raise ValueError(
            f"it is not an official {model}: {key} must have {dims} dimensions, got {shape}"
        )
    return shape


def square(key: str, length: int) -> int:
    """Compute the side of a square map from its number of positions.

    Args:
        key: name of the tensor that holds the map, for the error.
        length: number of positions.

    Returns:
        The side.

    Raises:
        ValueError: ``length`` is not a square number.
    """
    side = math.isqrt(length)
    if side**2 != length:
        raise ValueError(f"{key} must hold a square map, got {length} positions")
    return side


def count_blocks(model: str, state_dict: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    """Count the blocks of each stage.

    Args:
        model: name of the official model, for the error.
        state_dict: tensors under official names.
        name: official name of a block, such as ``"layers.{}.blocks.{}"`` for stage and block.

    Returns:
        Number of blocks, one per stage.

    Raises:
        ValueError: there are no blocks, or a block is missing between others.
    """
    pattern = re.compile(re.escape(name).replace(r"\{\}", r"(\d+)") + r"\.")
    blocks: dict[int, set[int]] = defaultdict(set)
    for key in state_dict:
        if match := pattern.match(key):
            blocks[int(match[1])].add(int(match[2]))
    if not blocks:
        raise ValueError(f"it is not an official {model}: there is no {name.format(0, 0)}")
    for i in range(max(blocks) + 1):
        for j in range(max(blocks[i], default=0) + 1):
            if j not in blocks[i]:
                raise ValueError(f"it is not a whole {model}: there is no {name.format(i, j)}")
    return tuple(len(blocks[i]) for i in range(max(blocks) + 1))


def mlp_ratio_of(shapes: Sequence[tuple[int, ...]]) -> float:
    """Find the shortest decimal ``r`` with ``int(dims * r) == hidden`` for all MLPs.

    Args:
        shapes: ``(hidden, dims)`` of each MLP.

    Returns:
        The decimal.

    Raises:
        ValueError: no decimal fits all MLPs.
    """
    least = max(hidden / dims for hidden, dims in shapes)
    for digits in range(16):
        ratio = math.ceil(least * 10**digits) / 10**digits
        if all(int(dims * ratio) == hidden for hidden, dims in shapes):
            return ratio
    raise ValueError(f"no mlp_ratio gives the shapes {shapes} of (hidden, dims) in all stages")


# Parts of official layouts


def as_position_map(key: str, tokens: Tensor) -> Tensor:
    """Turn a position embedding that is stored as tokens into a map.

    Args:
        key: name of the tensor, for the error.
        tokens: ``(1, side**2, C)``, row by row.

    Returns:
        ``(1, C, side, side)``.

    Raises:
        ValueError: the tokens are not a square map.
    """
    side = square(key, tokens.shape[1])
    return tokens.transpose(1, 2).unflatten(2, (side, side))


def is_behind(key: str, last: int) -> bool:
    """Whether a tensor belongs to the layers behind an output, in the layout of Swin.

    Args:
        key: name of the tensor; stages are ``layers.{i}`` or ``stages.{i}``.
        last: the last stage that a backbone returns.
    """
    match = re.match(r"(?:layers|stages)\.(\d+)\.(downsample)?", key)
    return match is not None and (int(match[1]), bool(match[2])) > (last, False)


# Checking the result


def check_renamed(official: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> None:
    """Check that renaming lost no number.

    Args:
        official: tensors under official names.
        ours: the same tensors under our names.

    Raises:
        ValueError: the two hold different amounts of numbers.
    """
    if sum(t.numel() for t in official.values()) != sum(t.numel() for t in ours.values()):
        raise ValueError("several of its tensors would get the same name")
