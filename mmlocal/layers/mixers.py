"""The registry of mixers: layers that mix tokens of a map."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn

MIXERS: dict[str, type[nn.Module]] = {}

_Mixer = TypeVar("_Mixer", bound=type[nn.Module])


def register_mixer(name: str) -> Callable[[_Mixer], _Mixer]:
    """Make a decorator that adds a class to :data:`MIXERS`.

    ``MIXERS[name](embed_dims, num_heads)`` must build a layer that maps ``(B, H, W, embed_dims)``
    to the same shape, for any H and W of at least 1. All other arguments must have defaults.

    Args:
        name: key in :data:`MIXERS`.

    Returns:
        A decorator that registers a class and returns it unchanged.

    Raises:
        ValueError: the decorator finds another class under the name.
    """

    def register(mixer: _Mixer) -> _Mixer:
        if name in MIXERS:
            raise ValueError(f"name must be new in MIXERS, got {name!r} of {MIXERS[name]}")
        MIXERS[name] = mixer
        return mixer

    return register
