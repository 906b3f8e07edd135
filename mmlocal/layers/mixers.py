"""The registry of mixers: layers that mix tokens of a map."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import nn

#: All mixers by the name of their class.
MIXERS: dict[str, type[nn.Module]] = {}

_Mixer = TypeVar("_Mixer", bound=type[nn.Module])


def register_mixer(mixer: _Mixer) -> _Mixer:
    """Add a class to :data:`MIXERS` under its own name, as a decorator.

    ``MIXERS[name](embed_dims, num_heads)`` must build a layer that maps ``(B, H, W, embed_dims)``
    to the same shape, for any H and W of at least 1. All other arguments must have defaults. A
    mixer with an argument ``shift`` can differ from block to block, see :func:`build_mixer`.

    Args:
        mixer: the class.

    Returns:
        The class, unchanged.

    Raises:
        ValueError: another class has the same name.
    """
    name = mixer.__name__
    if name in MIXERS:
        raise ValueError(f"name must be new in MIXERS, got {name!r} of {MIXERS[name]}")
    MIXERS[name] = mixer
    return mixer


def build_mixer(
    cfg: Mapping[str, Any], embed_dims: int, num_heads: int, index: int = 0
) -> nn.Module:
    """Build the mixer of one block.

    Args:
        cfg: ``type`` is a name in :data:`MIXERS`, or a class. The other keys are arguments of the
            class. A key ``num_heads`` replaces the argument of this function.
        embed_dims: channels of the block.
        num_heads: heads of the block.
        index: number of the block in its stage. If the class has an argument ``shift`` that ``cfg``
            does not give, it is true in every second block, as in Swin Transformer.

    Returns:
        The mixer.

    Raises:
        ValueError: ``type`` is missing or unknown, or the class refuses a value.
        TypeError: ``cfg`` is no dict, or the class lacks one of the arguments.
    """
    mixer = find_mixer(cfg)
    arguments = {"num_heads": num_heads, **cfg}
    del arguments["type"]
    signature = inspect.signature(mixer)
    if index % 2 and "shift" in signature.parameters:
        arguments.setdefault("shift", True)
    try:
        signature.bind(embed_dims, **arguments)
    except TypeError as error:
        raise TypeError(f"mixer {dict(cfg)} does not fit {mixer.__name__}: {error}") from None
    return mixer(embed_dims, **arguments)


def find_mixer(cfg: Mapping[str, Any]) -> Callable[..., nn.Module]:
    """Look up the class of a mixer.

    Args:
        cfg: config of a mixer, as in :func:`build_mixer`.

    Returns:
        The class.

    Raises:
        ValueError: ``type`` is missing or unknown.
        TypeError: ``cfg`` is no dict, or ``type`` is neither a name nor a class.
    """
    if not isinstance(cfg, Mapping):
        raise TypeError(f"a mixer must be a dict with the key 'type', got {cfg!r}")
    if "type" not in cfg:
        raise ValueError(f"a mixer must have the key 'type', got {dict(cfg)}")
    kind = cfg["type"]
    if isinstance(kind, str):
        if kind not in MIXERS:
            near = difflib.get_close_matches(kind, MIXERS)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise ValueError(f"unknown mixer {kind!r}: {hint}there are {', '.join(sorted(MIXERS))}")
        return MIXERS[kind]
    if not callable(kind):
        raise TypeError(f"type of a mixer must be a name or a class, got {kind!r}")
    return kind
