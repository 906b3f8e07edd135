"""Checks of arguments and inputs. An error names the argument, its value and the expectation."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from numbers import Integral, Real
from typing import Any, NoReturn

from torch import Tensor
from torch.fx import Proxy


def is_int(value: Any) -> bool:
    """Whether ``value`` is an integer, of Python or NumPy, but not a bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_sequence(value: Any) -> bool:
    """Whether ``value`` is a sequence such as a list or a tuple, but not a string."""
    return isinstance(value, Sequence) and not isinstance(value, str)


def check_int(minimum: int = 1, **arguments: Any) -> None:
    """Check that each argument is an integer of at least ``minimum``.

    Args:
        minimum: the smallest integer that passes.
        **arguments: arguments to check, by name.

    Raises:
        TypeError: an argument is not an integer.
        ValueError: an argument is too small.
    """
    for name, value in arguments.items():
        if not is_int(value):
            raise TypeError(f"{name} must be an integer, got {value!r}")
        if value < minimum:
            raise ValueError(f"{name} must be at least {minimum}, got {value}")


def check_ints(minimum: int = 1, **arguments: Any) -> None:
    """Check that each argument is a sequence of integers of at least ``minimum``.

    Args:
        minimum: the smallest integer that passes.
        **arguments: arguments to check, by name.

    Raises:
        TypeError: an argument is not a sequence, or an entry is not an integer.
        ValueError: an argument is empty, or an entry is too small.
    """
    for name, values in arguments.items():
        if not is_sequence(values) or not all(is_int(value) for value in values):
            raise TypeError(f"{name} must be a sequence of integers, got {values!r}")
        if not values:
            raise ValueError(f"{name} must have at least one entry, got {values}")
        if min(values) < minimum:
            raise ValueError(f"{name} must be at least {minimum} in each entry, got {values}")


def check_number(**arguments: Any) -> None:
    """Check that each argument is a finite number.

    Args:
        **arguments: arguments to check, by name.

    Raises:
        TypeError: an argument is not a number.
        ValueError: an argument is infinite or NaN.
    """
    for name, value in arguments.items():
        if not isinstance(value, Real) or isinstance(value, bool):
            raise TypeError(f"{name} must be a number, got {value!r}")
        if not isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")


def check_rate(below_one: bool = False, **arguments: Any) -> None:
    """Check that each argument is a probability, such as the rate of a dropout.

    Args:
        below_one: whether 1 is out of range.
        **arguments: arguments to check, by name.

    Raises:
        TypeError: an argument is not a number.
        ValueError: an argument is out of range.
    """
    check_number(**arguments)
    for name, value in arguments.items():
        if not 0 <= value <= 1 or (below_one and value == 1):
            raise ValueError(f"{name} must be in [0, 1{')' if below_one else ']'}, got {value}")


def check_flag(**arguments: Any) -> None:
    """Check that each argument is ``True`` or ``False``.

    Args:
        **arguments: arguments to check, by name.

    Raises:
        TypeError: an argument is not a bool. 0 and 1 are not bools either.
    """
    for name, value in arguments.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True or False, got {value!r}")


def check_choice(choices: Sequence[str], **arguments: Any) -> None:
    """Check that each argument is one of ``choices``.

    Args:
        choices: the values that pass.
        **arguments: arguments to check, by name.

    Raises:
        ValueError: an argument is not one of ``choices``.
    """
    for name, value in arguments.items():
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _pair(name: str, value: Any) -> tuple[int, int]:
    pair = (value, value) if is_int(value) else value
    if not is_sequence(pair) or len(pair) != 2 or not all(is_int(side) for side in pair):
        raise TypeError(f"{name} must be an integer or a pair of integers, got {value!r}")
    return pair[0], pair[1]


def as_pair(name: str, value: Any) -> tuple[int, int]:
    """Turn one integer, or a pair of integers, into a height and a width of at least 1.

    Args:
        name: name of the argument, for the error.
        value: the argument.

    Returns:
        Height and width.

    Raises:
        TypeError: ``value`` is neither an integer nor a pair of integers.
        ValueError: a side is below 1.
    """
    pair = _pair(name, value)
    if min(pair) < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return pair


def as_side(name: str, value: Any, odd: bool = False) -> int:
    """Turn one integer, or a pair of equal integers such as ``(7, 7)``, into the side of a square.

    Args:
        name: name of the argument, for the error.
        value: the argument.
        odd: whether the side has to be odd.

    Returns:
        The side.

    Raises:
        TypeError: ``value`` is neither an integer nor a pair of integers.
        ValueError: the two sides differ, a side is below 1, or ``odd`` is set and a side is even.
    """
    height, width = _pair(name, value)
    if height != width:
        raise ValueError(f"{name} must be one number or a pair of equal ones, got {value}")
    if odd and (height < 1 or height % 2 == 0):
        raise ValueError(f"{name} must be a positive odd number, got {value}")
    check_int(**{name: height})
    return height


def check_tensor(x: Any) -> None:
    """Check that ``x`` is a tensor.

    Args:
        x: the input to check.

    Raises:
        TypeError: ``x`` is not a tensor. The error explains a proxy of ``torch.fx``.
    """
    if isinstance(x, Proxy):
        raise TypeError(
            "x must be a tensor, got a proxy of torch.fx.symbolic_trace, which cannot follow code "
            "that reads shapes; use torch.export.export or torch.compile"
        )
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got {type(x).__name__}")


def check_map(x: Tensor, embed_dims: int) -> None:
    """Check that ``x`` is a map of tokens, ``(B, H, W, embed_dims)``.

    Args:
        x: the map to check.
        embed_dims: channels that ``x`` must have.

    Raises:
        TypeError: ``x`` is not a tensor, or not floating point.
        ValueError: ``x`` has another shape, or no rows or columns.
    """
    check_tensor(x)
    if x.dim() != 4 or x.shape[3] != embed_dims:
        raise ValueError(f"x must be (B, H, W, embed_dims={embed_dims}), got {tuple(x.shape)}")
    if x.shape[1] == 0 or x.shape[2] == 0:
        raise ValueError(f"x must have at least one row and one column, got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"x must be floating point, got {x.dtype}")


class Unscripted:
    """Base of modules that TorchScript cannot compile. The error says so in one sentence."""

    def __prepare_scriptable__(self) -> NoReturn:
        """Refuse: ``torch.jit.script`` calls this on each module before it compiles anything.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(
            f"torch.jit.script cannot compile {type(self).__name__}; use torch.export.export "
            "or torch.compile, or torch.onnx.export(dynamo=True) for ONNX"
        )
