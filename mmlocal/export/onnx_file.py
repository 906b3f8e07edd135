"""ONNX files of models, compared with their models before they appear under their names."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from mmlocal.analysis.measure import summarise, time_interleaved
from mmlocal.export.plain import prepare
from mmlocal.export.simplify import simplify

_INPUT = "image"
_AXES = {"batch": 0, "height": 2, "width": 3}
_FIX = "--static fixes all sizes"


@dataclass(frozen=True)
class Exported:
    """An ONNX file, and how it compares with its model.

    Attributes:
        path: the file.
        free: dimensions of the input that stay free.
        opset: version of ONNX's operators.
        nodes: number of nodes of the graph.
        size: size of the file in bytes.
        errors: largest difference from PyTorch, relative to the largest value of the output, by
            shape of the input.
        milliseconds: median time of a run by ``"PyTorch"`` and ``"onnxruntime"``; empty if it was
            not measured.
    """

    path: Path
    free: tuple[str, ...]
    opset: int
    nodes: int
    size: int
    errors: dict[tuple[int, ...], float]
    milliseconds: dict[str, float] = field(default_factory=dict)

    @property
    def worst(self) -> float:
        """Largest error of all inputs."""
        return max(self.errors.values())


def fits_windows(model: nn.Module) -> bool:
    """Whether windows of a model shrink to a small map, so that its graph serves one size only.

    Args:
        model: the model.
    """
    return any(getattr(module, "fit_window", False) for module in model.modules())


class ExportError(ValueError):
    """A model cannot be exported, or its file computes something else."""


def export_onnx(
    model: nn.Module,
    image: Tensor,
    path: Path,
    *,
    free: Collection[str] = tuple(_AXES),
    opset: int | None = None,
    others: Sequence[Tensor] = (),
    tolerance: float = 1e-4,
    metadata: Mapping[str, str] | None = None,
    rounds: int = 0,
) -> Exported:
    """Write a model as an ONNX file, after a comparison of both in onnxruntime on the CPU.

    Args:
        model: model of an image ``(B, C, H, W)``. It returns tensors, in any lists, tuples and
            dicts. It does not change.
        image: example of the input, on the CPU.
        path: the file. It appears only if its numbers are right. An older file then goes.
        free: which of ``"batch"``, ``"height"`` and ``"width"`` of the input are free. The others
            are fixed to the example.
        opset: version of ONNX's operators; ``None`` for the default of PyTorch.
        others: further inputs to compare with, usually of other sizes.
        tolerance: largest error of an output, relative to its largest value.
        metadata: texts to store in the file, by key.
        rounds: number of timed runs of each side; 0 to measure no times.

    Returns:
        The file, and the results of the comparison.

    Raises:
        ExportError: the model cannot take an input, PyTorch cannot export it, the file does not
            run, or the error exceeds ``tolerance``.
        OSError: the file cannot be written.
    """
    runner = _Flat(prepare(model))
    expected = {tuple(x.shape): (x, _outputs(runner, x)) for x in (image, *others)}
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        _write(runner, image, partial, free, opset, metadata or {})
        session = _session(partial)
        errors = {
            shape: _error(_infer(session, x), outputs) for shape, (x, outputs) in expected.items()
        }
        shape, worst = max(errors.items(), key=lambda item: item[1])
        if worst > tolerance:
            right = errors[tuple(image.shape)] <= tolerance
            advice = f", but they agree for the example: {_FIX}" if right else ""
            raise ExportError(
                f"the outputs of the file differ from PyTorch by {worst:.1e} of the largest value "
                f"for an input of {'x'.join(map(str, shape))}, and the limit is {tolerance:.1e}"
                f"{advice}"
            )
        times = _times(runner, session, image, rounds) if rounds else {}
        graph = onnx.load(str(partial), load_external_data=False)
        found = Exported(
            path,
            tuple(free),
            next(x.version for x in graph.opset_import if x.domain in ("", "ai.onnx")),
            len(graph.graph.node),
            partial.stat().st_size,
            errors,
            times,
        )
        partial.replace(path)
        return found
    finally:
        partial.unlink(missing_ok=True)


class _Flat(nn.Module):
    """A model with a flat tuple of named tensors as its output.

    If PyTorch's exporter cannot run a model, it tries TorchDynamo, where our ops and layers do not
    see an export to ONNX. That ends in an error about an unknown operator, which would hide the
    cause. So this module refuses TorchDynamo, and the exporter raises its first error.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.names: list[str] = []

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        if torch.compiler.is_dynamo_compiling():
            raise RuntimeError("only the first way of torch.onnx.export suits this module")
        outputs = dict(_named(self.model(image)))
        self.names = list(outputs)
        return tuple(outputs.values())


def _named(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Go through the tensors of an output, with a name for each of them."""
    if isinstance(value, Tensor):
        yield name or "output", value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _named(part, f"{name}_{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for index, part in enumerate(value):
            yield from _named(part, f"{name or 'output'}_{index}")
    else:
        raise ExportError(
            f"the model must return tensors, got {type(value).__name__} in its output"
        )


@torch.no_grad()
def _run(model: nn.Module, image: Tensor) -> list[Tensor]:
    return list(model(image))


def _outputs(model: nn.Module, image: Tensor) -> list[Tensor]:
    """Run the model for the first time on an image, which may be too small for it."""
    try:
        return _run(model, image)
    except ExportError:
        raise
    except (ValueError, RuntimeError) as error:
        size = "x".join(map(str, image.shape))
        raise ExportError(f"the model cannot run on an input of {size}: {error}") from error


def _write(
    runner: _Flat,
    image: Tensor,
    path: Path,
    free: Collection[str],
    opset: int | None,
    metadata: Mapping[str, str],
) -> None:
    axes = {axis: name for name, axis in _AXES.items() if name in free}
    if "batch" in free and len(image) == 1:  # PyTorch would take one image for a fixed number
        image = image.repeat(2, 1, 1, 1)
    try:
        with quiet(), torch.no_grad():
            program: Any = torch.onnx.export(
                runner,
                (image,),
                dynamo=True,
                input_names=[_INPUT],
                output_names=runner.names,
                dynamic_shapes=(axes,) if axes else None,
                opset_version=opset,
                optimize=False,
                verbose=False,
            )
    except Exception as error:  # PyTorch's exporter can fail in any way
        names = f" with free {', '.join(free)} ({_FIX})" if free else ""
        raise ExportError(f"PyTorch cannot export the model{names}: {reason_of(error)}") from error
    simplify(program.model)
    program.model.metadata_props.update(metadata)
    program.save(str(path), external_data=False)


def reason_of(error: BaseException) -> str:
    """Find the first error of a chain, and say it in one line.

    Args:
        error: error that PyTorch's exporter raised.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence PyTorch's exporter, which prints and warns about its own steps."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has its own classes
        raise ExportError(f"onnxruntime cannot load the file: {reason_of(error)}") from error


def _infer(session: onnxruntime.InferenceSession, image: Tensor) -> list[Tensor]:
    try:
        return [torch.from_numpy(x) for x in session.run(None, {_INPUT: image.numpy()})]
    except Exception as error:  # onnxruntime has its own classes
        size = "x".join(map(str, image.shape))
        raise ExportError(
            f"onnxruntime cannot run the file on an input of {size}: {reason_of(error)}"
        ) from error


def _error(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest error of all outputs, relative to the largest value of each."""
    worst = 0.0
    for ours, right in zip(outputs, expected, strict=True):
        if ours.shape != right.shape:
            raise ExportError(
                f"an output of the file has the shape {tuple(ours.shape)}, and PyTorch's has "
                f"{tuple(right.shape)}"
            )
        if right.numel() == 0:
            continue
        scale = right.double().abs().max().clamp_min(1e-12)
        error = float((ours.double() - right.double()).abs().max() / scale)
        worst = max(worst, math.inf if math.isnan(error) else error)
    return worst


def _times(
    runner: nn.Module, session: onnxruntime.InferenceSession, image: Tensor, rounds: int
) -> dict[str, float]:
    """Return the median times of both sides in milliseconds, measured in turns."""
    calls: dict[str, Callable[[], object]] = {
        "PyTorch": lambda: _run(runner, image),
        "onnxruntime": lambda: _infer(session, image),
    }
    samples = time_interleaved(calls, torch.device("cpu"), rounds)
    return {name: summarise(times)["median_ms"] for name, times in samples.items()}
