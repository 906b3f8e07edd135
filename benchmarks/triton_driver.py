"""A driver for Triton that compiles every launch for a GPU that is not there, and records it.

Nothing runs. The tensors of a launch may be on the device ``"meta"``, which holds no numbers, so
maps can be as large as in use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime.cache import get_cache_manager

# The most shared memory of a program in bytes, by compute capability.
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}


@dataclass(frozen=True)
class Launch:
    """A kernel that was compiled, and how it was called.

    Args:
        kernel: name of the kernel, with its module below ``mmlocal.ops``.
        capability: 80 for an A100, 90 for an H100 or H200, 100 for a B200.
        constants: values of the constants that it was compiled for.
        warps: warps of a program.
        shared: shared memory of a program in bytes.
        programs: how many programs the call starts.
        traffic: bytes of all tensors among its arguments.
        cubin: the machine code.
        ptx: the code from which it was made.
        parameters: its arguments as ``ptx`` counts them; ``None`` for what is no whole number.
    """

    kernel: str
    capability: int
    constants: dict[str, Any]
    warps: int
    shared: int
    programs: int
    traffic: int
    cubin: bytes
    ptx: str
    parameters: tuple[int | None, ...]


def _ptx(metadata: Any) -> str:
    files = get_cache_manager(metadata.hash).get_group(f"{metadata.name}.json") or {}
    return Path(files[f"{metadata.name}.ptx"]).read_text()


def _parameters(kinds: Iterable[Any], arguments: Iterable[Any]) -> Iterator[int | None]:
    """Yield the arguments that are no constants. A tuple counts as its items."""
    for kind, argument in zip(kinds, arguments, strict=True):
        if isinstance(kind, tuple):
            yield from _parameters(kind, argument)
        elif kind != "constexpr":
            yield argument if isinstance(argument, int) else None


class RecordingDriver(DriverBase):
    """Stands for the driver of a GPU.

    Args:
        capability: a key of ``SHARED_MEMORY``.
    """

    def __init__(self, capability: int) -> None:
        super().__init__()
        self.capability = capability
        self.launches: list[Launch] = []
        # A compiled program is known by its machine code.
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": SHARED_MEMORY[device]},
            load_binary=lambda name, cubin, shared, device: (None, cubin, 0, 0, 1024),
        )

    @classmethod
    def is_active(cls) -> bool:
        return False

    def map_python_to_cpp_type(self, ty: str) -> str:
        raise NotImplementedError(f"nothing is launched, so {ty} needs no type in C++")

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")

    def get_current_device(self) -> int:
        return self.capability  # Triton keeps compiled kernels by device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_benchmarker(self) -> Callable[..., Sequence[float]]:
        """Return a function that calls each configuration once and prefers none."""

        def benchmark(call: Callable[[], Any], *, quantiles: Sequence[float]) -> list[float]:
            call()
            return [1.0] * len(quantiles)

        return benchmark

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        """Return the function that Triton calls to launch a program."""
        kernel = source.fn
        names = kernel.arg_names

        def record(x: int, y: int, z: int, stream: int, cubin: bytes, *others: Any) -> None:
            arguments = dict(zip(names, others[-len(names) :], strict=True))
            active = triton.runtime.driver.active  # a program outlives the driver it was made with
            active.launches.append(
                Launch(
                    kernel=f"{kernel.__module__.removeprefix('mmlocal.ops.')}.{kernel.__name__}",
                    capability=metadata.target.arch,
                    constants={n: a for n, a in arguments.items() if n.isupper()},
                    warps=metadata.num_warps,
                    shared=metadata.shared,
                    programs=prod((x, y, z)),
                    traffic=sum(
                        a.numel() * a.element_size()
                        for a in arguments.values()
                        if isinstance(a, Tensor)
                    ),
                    cubin=cubin,
                    ptx=_ptx(metadata),
                    parameters=tuple(_parameters(source.signature.values(), arguments.values())),
                )
            )

        return record


@contextmanager
def recording(capability: int) -> Iterator[list[Launch]]:
    """Compile all launches inside for ``capability``. The list that it yields fills with them."""
    driver = RecordingDriver(capability)
    triton.runtime.driver.set_active(driver)
    try:
        yield driver.launches
    finally:
        triton.runtime.driver.set_active(None)
