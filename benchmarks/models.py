"""Measure time and memory of our backbones and of their peers, in turns."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.backbones import build_model, list_models
from benchmarks.by_kind import KINDS, time_by_kind
from benchmarks.peak import matrix_products, peak_gflops
from benchmarks.report import environment, first_line, format_table, write_json
from mmlocal.analysis import count_macs
from mmlocal.analysis.measure import choose_device, peak_memory, summarise, time_interleaved
from mmlocal.errors import UsageError
from mmlocal.ops import OPS
from mmlocal.ops.backends import choose_backend

# A backward pass multiplies twice as many matrices as the forward pass.
_PASSES = dict(inference=1, training=3)


def _macs(model: nn.Module, size: tuple[int, int]) -> int:
    """Count the multiply-accumulates for one image, on shapes alone."""
    # The counter fails on a trainable tensor that a module gets as input, such as learned queries.
    shapes = deepcopy(model).requires_grad_(False).to("meta")
    shapes.eval()  # a separate line, because eval() of mmpretrain's backbones returns None
    return sum(count_macs(shapes, torch.zeros(1, 3, *size, device="meta")).values())


def _model_call(
    model: nn.Module, image: Tensor, mode: str, amp: bool, compiled: bool
) -> Callable[[], object]:
    """The function to time for a model. This also sets the mode of the model."""
    model.train(mode == "training")
    runner = torch.compile(model) if compiled else model
    autocast = torch.autocast(image.device.type, torch.bfloat16, enabled=amp)

    def inference(network: nn.Module = runner) -> list[Tensor]:
        with torch.no_grad(), autocast:
            return _tensors(network(image))

    if mode == "inference":
        return inference
    # The rate is so low that the weights do not change from round to round.
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-12, momentum=0.9)
    cotangents = [torch.randn_like(x) for x in inference(model)]

    def training() -> None:
        with autocast:
            outs = _tensors(runner(image))
        torch.autograd.backward(outs, cotangents)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return training


def _tensors(outs: Any) -> list[Tensor]:
    """List the tensors of a nested tuple."""
    return [outs] if isinstance(outs, Tensor) else [x for out in outs for x in _tensors(out)]


def _label(row: dict) -> str:
    return f"{row['model']}, compiled" if row["compiled"] else row["model"]


def benchmark_models(
    out: Path,
    models: Sequence[str] | None = None,
    batch_size: int = 4,
    size: tuple[int, int] = (224, 224),
    amp: bool = False,
    compiled: bool = False,
    rounds: int = 10,
    device: str | None = None,
) -> dict:
    """Measure speed and peak memory of backbones, at inference and in a training step.

    A step is a forward pass, a backward pass from random gradients of all outputs, and SGD with
    momentum. Weights and images are random. Plain matrix products take part in the same rounds.
    Writes ``out/models_<device>_<height>x<width>_b<batch_size>.json`` after each mode; the name
    ends in ``_amp`` or ``_compile`` with these settings.

    Args:
        out: folder for the results.
        models: names out of :func:`list_models`; ``None`` for all.
        batch_size: number of images in a batch.
        size: height and width of the images in pixels.
        amp: whether to run in bfloat16 by autocast.
        compiled: whether to also time each model with ``torch.compile``.
        rounds: number of samples of each time, as for :func:`time_interleaved`.
        device: ``"cpu"`` or ``"cuda"``; ``None`` for the GPU if there is one.

    Returns:
        The contents of the JSON file: ``hardware``, ``versions``, ``settings``, ``peak_gflops``
        and ``results``. ``peak_gflops`` holds GFLOP/s of the matrix products by mode and way.
        ``results`` holds one dict per model and mode (``inference``, ``training``), with
        ``parameters``, ``macs`` (of one image) and ``compiled``. If the model cannot run,
        ``skipped`` holds the reason. Otherwise the dict holds the figures of :func:`summarise`,
        ``images_per_second``, ``peak_bytes`` (without weights and momentum), ``gflops`` (GFLOP/s;
        a training step counts as three forward passes), ``share_of_peak`` (of the fastest matrix
        product) and, unless compiled, ``ms_by_kind``, the result of :func:`time_by_kind`.

    Raises:
        UsageError: a model is unknown or its library is missing, a number is below 1, or there is
            no GPU for ``"cuda"``.
    """
    for argument, number in dict(batch_size=batch_size, size=min(size), rounds=rounds).items():
        if number < 1:
            raise UsageError(f"must be at least 1, got {number}", argument)
    target = choose_device(device)
    torch.manual_seed(0)
    image = torch.randn(batch_size, 3, *size, device=target)
    names = list(list_models()) if models is None else models
    networks = {name: build_model(name, size).to(target) for name in names}
    about = {
        name: dict(
            model=name,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            macs=_macs(model, size),
        )
        for name, model in networks.items()
    }
    like = torch.empty(0, dtype=torch.bfloat16 if amp else torch.float32, device=target)
    backends = {
        op.name: choose_backend(op.name, op.backends, like, None).name for op in OPS.values()
    }
    rows: list[dict] = []
    peaks: dict[str, dict[str, float]] = {}
    result = environment(target) | dict(
        date=datetime.date.today().isoformat(),
        settings=dict(
            batch_size=batch_size,
            size=list(size),
            amp=amp,
            compile=compiled,
            rounds=rounds,
            backends=backends,
        ),
        peak_gflops=peaks,
        results=rows,
    )
    stem = f"models_{target.type}_{size[0]}x{size[1]}_b{batch_size}"
    path = out / f"{stem}{'_amp' * amp}{'_compile' * compiled}.json"
    for mode, passes in _PASSES.items():
        # PyTorch limits the number of compiled variants, and the last mode must not count.
        torch.compiler.reset()
        running = matrix_products(like)
        products = list(running)
        figures = {}
        for name, through in itertools.product(networks, (False, True)[: 1 + compiled]):
            row = about[name] | dict(mode=mode, compiled=through)
            try:
                call = _model_call(networks[name], image, mode, amp, through)
                call()
                row["peak_bytes"] = peak_memory(call, target)
                if not through:  # compiled code has no names of operators
                    row["ms_by_kind"] = time_by_kind(call, target)
            except Exception as error:
                # Memory may run out for any model. torch.compile may fail only for peers.
                is_peer = not type(networks[name]).__module__.startswith("mmlocal.")
                if not isinstance(error, torch.OutOfMemoryError) and not (through and is_peer):
                    raise
                row["skipped"] = first_line(error)
            else:
                running[_label(row)] = call
            figures[_label(row)] = row
        times = {
            label: summarise(samples)
            for label, samples in time_interleaved(running, target, rounds).items()
        }
        peaks[mode] = peak_gflops({name: times.pop(name) for name in products})
        for label, summary in times.items():
            row = figures[label]
            row |= summary
            row["images_per_second"] = 1e3 * batch_size / row["median_ms"]
            row["gflops"] = 2e-9 * passes * row["macs"] * row["images_per_second"]
            row["share_of_peak"] = row["gflops"] / max(peaks[mode].values())
        rows += figures.values()
        write_json(result, path)
    return result


def format_models(result: dict) -> str:
    """Format two tables: speed and memory, and shares of time by kind of operation.

    ``of peak`` is the speed in GFLOP/s, divided by the fastest matrix product.

    Args:
        result: result of :func:`benchmark_models`.
    """
    by_mode = {
        mode: {_label(row): row for row in result["results"] if row["mode"] == mode}
        for mode in _PASSES
    }
    titles = [f"{mode} {unit}" for mode in by_mode for unit in ("img/s", "of peak", "MiB")]
    table = [["backbone", "parameters (M)", "GMACs", *titles]]
    notes = []
    for name, row in by_mode["inference"].items():
        cells = [name, f"{row['parameters'] / 1e6:.1f}", f"{row['macs'] / 1e9:.2f}"]
        for mode, rows in by_mode.items():
            found = rows[name]
            if "skipped" in found:
                cells += ["-"] * 3
                notes.append(f"not run, {mode}: {name}: {found['skipped']}")
            else:
                cells += [
                    f"{found['images_per_second']:.2f}",
                    f"{found['share_of_peak']:.0%}",
                    f"{found['peak_bytes'] / 2**20:.0f}",
                ]
        table.append(cells)
    for mode, products in result["peak_gflops"].items():
        speeds = ", ".join(f"{speed:.0f} by {name}" for name, speed in products.items())
        notes.append(f"matrix product, {mode}: GFLOP/s {speeds}")
    shares = [["backbone", "mode", *KINDS]]
    for row in result["results"]:
        if "ms_by_kind" in row and "skipped" not in row:
            total = sum(row["ms_by_kind"].values())
            parts = [f"{row['ms_by_kind'][kind] / total:.0%}" for kind in KINDS]
            shares.append([row["model"], row["mode"], *parts])
    return "\n".join([format_table(table), *notes, "", format_table(shares)])
