"""The registry of ops. ``info``, FLOPs, benchmarks and tests read it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from torch import Tensor

from mmlocal.ops.backends import Backend


@dataclass(frozen=True)
class Op:
    """One op, with everything that the rest of the package needs to know about it.

    Args:
        name: short and unique, such as ``"elsa"``.
        function: the public function.
        backends: its implementations, fastest first.
        analysis: dotted path of a module with the FLOPs formulas and the benchmark cases, such as
            ``mmlocal.ops.elsa.analysis``. It is imported when it is needed.
        variants: further public functions of the op, for other inputs.
        tables: names of the tensors that may have four dimensions but no batch, as for
            :class:`mmlocal.ops.operator.Operator`.
    """

    name: str
    function: Callable[..., Tensor]
    backends: tuple[Backend, ...]
    analysis: str
    variants: tuple[Callable[..., Tensor], ...] = ()
    tables: tuple[str, ...] = ()

    def load_analysis(self) -> ModuleType:
        """Import the module that ``analysis`` names."""
        return importlib.import_module(self.analysis)


#: All ops by name. The ops of this package come first.
OPS: dict[str, Op] = {}


def register_op(op: Op) -> None:
    """Add an op to ``OPS``. Other packages may call this function too.

    Raises:
        ValueError: another op has this name.
    """
    if op.name in OPS:
        raise ValueError(f"name must be new, got {op.name!r}, which {OPS[op.name].function} has")
    OPS[op.name] = op
