"""The layers that mix space, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn

MIXERS: dict[str, type[nn.Module]] = {}

_Mixer = TypeVar("_Mixer", bound=type[nn.Module])


def register_mixer(name: str) -> Callable[[_Mixer], _Mixer]:
    """Make a decorator that adds a class to :data:`MIXERS`.

    ``MIXERS[name](embed_dims, num_heads)`` has to build a layer that maps ``(B, H, W, embed_dims)``
    to the same shape, for any H and W of at least 1. Its other arguments have defaults.

    Args:
        name: key in :data:`MIXERS`.

    Returns:
        A decorator that returns the class as it is.

    Raises:
        ValueError: another class has the name.
    """

    def register(mixer: _Mixer) -> _Mixer:
        if name in MIXERS:
            raise ValueError(f"name must be new in MIXERS, got {name!r} of {MIXERS[name]}")
        MIXERS[name] = mixer
        return mixer

    return register
