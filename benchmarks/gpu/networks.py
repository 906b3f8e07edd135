"""Time layers and whole models, at inference and in a training step."""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.contestants import CannotRunError
from benchmarks.gpu.isolated import Item
from benchmarks.gpu.kernel_times import kernel_times
from mmlocal.analysis.measure import peak_memory, summarise, time_interleaved
from mmlocal.layers import MIXERS

_MODES = ("training", "inference")
_BATCHES = (64, 32, 16, 8)
_ROUNDS = 10
# Kernels that a row lists.
_KERNELS = 15


def _ours(name: str, **settings: object) -> nn.Module:
    return _library("mmlocal.models.backbones", name)("tiny", **settings)


def _timm_swin() -> nn.Module:
    create = _library("timm", "create_model")
    return create("swin_tiny_patch4_window7_224", features_only=True, drop_path_rate=0.1)


def _torchvision_swin() -> nn.Module:
    return _library("torchvision.models", "swin_t")()


def _flex_swin() -> nn.Module:
    mixer = _library("benchmarks.gpu.flex", "FlexNeighborhood")
    return _ours("LocalSwin", mixers=dict(type=mixer))


def _library(module: str, name: str) -> Callable[..., nn.Module]:
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise CannotRunError(f"does not import: {error}") from error


# Models by name, on images of 224x224. The published peers have no other attention than windows.
MODELS: dict[str, Callable[[], nn.Module]] = {
    "elsa_swin_tiny": partial(_ours, "ELSASwin"),
    "qna_vit_tiny": partial(_ours, "QnAViT"),
    "local_swin_tiny": partial(_ours, "LocalSwin"),  # Swin-T, by scaled_dot_product_attention
    "timm_swin_tiny": _timm_swin,  # the same
    "torchvision_swin_tiny": _torchvision_swin,  # by matrix products and a softmax
}
# Layers by name, with channels and heads, on the maps of stage 1. They need PyTorch alone.
LAYERS = {"ELSA": (96, 3), "QnA": (64, 8), "WindowAttention": (96, 3)}


def network_items(device: str, tiny: bool) -> list[Item]:
    """List each model and layer at inference and in training.

    Args:
        device: device of the tensors.
        tiny: whether to take the sizes for Triton's interpreter.
    """
    names = ["elsa_swin_tiny", "WindowAttention"] if tiny else [*MODELS, *LAYERS]
    return [
        Item(f"{name}, {mode}", partial(measure, name, mode, device, tiny, False), seconds=120)
        for name in names
        for mode in _MODES
    ]


def compiled_items(device: str, tiny: bool) -> list[Item]:
    """List what takes long to compile: models with ``torch.compile`` and FlexAttention.

    Args:
        device: device of the tensors.
        tiny: whether this is a rehearsal, which compiles nothing.
    """
    runs = [("swin_tiny_flex", False), ("elsa_swin_tiny", True), ("timm_swin_tiny", True)]
    return [] if tiny else [
        Item(
            f"{name}, {mode}{', compiled' * compiled}",
            partial(measure, name, mode, device, tiny, compiled),
            seconds=180,
        )
        for name, compiled in runs
        for mode in _MODES
    ]  # fmt: skip


def first_step_items(device: str, tiny: bool) -> list[Item]:
    """List first training steps in new processes: nothing compiled yet, then all compiled.

    Args:
        device: device of the tensors.
        tiny: whether to take the sizes for Triton's interpreter.
    """
    names = ["elsa_swin_tiny", "qna_vit_tiny"]
    if importlib.util.find_spec("mmengine") is None:
        names = ["ELSA", "QnA"]
    if tiny:
        names = ["WindowAttention"]
    return [
        Item(
            f"{name}, {cache} cache",
            partial(measure_first_step, name, device, tiny, cache),
            seconds=180,
            fresh=True,
        )
        for name in names
        for cache in ("empty", "full")
    ]


def measure(name: str, mode: str, device: str, tiny: bool, compiled: bool) -> Iterator[dict]:
    """Measure one network in bfloat16 by autocast, with the largest batch that fits.

    Args:
        name: name of a model or layer.
        mode: ``"inference"`` or ``"training"``.
        device: device of the network.
        tiny: whether to take the sizes for Triton's interpreter.
        compiled: whether ``torch.compile`` compiles the network.

    Yields:
        One row: the figures of :func:`summarise`, ``batch``, ``images_per_second``,
        ``peak_bytes``, ``kernel_ms`` and ``kernels``, the sum and the longest of the times of
        kernels; or ``skipped``.
    """
    about = dict(network=name, mode=mode, compiled=compiled)
    try:
        network = build(name).to(device)
    except CannotRunError as error:
        yield about | dict(skipped=str(error))
        return
    target = torch.device(device)
    for batch in (1,) if tiny else _BATCHES:
        try:
            call = step(network, make_input(name, batch, device, tiny), mode, compiled)
            call()
            peak = peak_memory(call, target)
        except torch.OutOfMemoryError:
            continue
        kernels = kernel_times(call)
        times = summarise(time_interleaved({name: call}, target, 1 if tiny else _ROUNDS)[name])
        yield (
            about
            | times
            | dict(
                batch=batch,
                images_per_second=1e3 * batch / times["median_ms"],
                peak_bytes=peak,
                kernel_ms=sum(kernels.values()),
                kernels=dict(list(kernels.items())[:_KERNELS]),
            )
        )
        return
    yield about | dict(skipped=f"the memory is too small for {_BATCHES[-1]} images")


def measure_first_step(name: str, device: str, tiny: bool, cache: str) -> Iterator[dict]:
    """Measure the first training steps of a process.

    Args:
        name: name of a model or layer.
        device: device of the network.
        tiny: whether to take the sizes for Triton's interpreter.
        cache: state of Triton's cache, which the row repeats.

    Yields:
        One row: ``seconds`` of the first and of the second step.
    """
    network = build(name).to(device)
    call = step(network, make_input(name, _BATCHES[1], device, tiny), "training", False)
    seconds = []
    for _ in range(2):
        begin = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    yield dict(network=name, cache=cache, seconds=seconds)


def build(name: str) -> nn.Module:
    """Build a network with random weights.

    Args:
        name: name of a model or layer.

    Raises:
        CannotRunError: a library is missing.
    """
    torch.manual_seed(0)
    if name in LAYERS:
        return MIXERS[name](*LAYERS[name])
    return _flex_swin() if name == "swin_tiny_flex" else MODELS[name]()


def make_input(name: str, batch: int, device: str, tiny: bool) -> Tensor:
    """Make random images, channels-last, or maps for a layer.

    Args:
        name: name of a model or layer.
        batch: number of images.
        device: device of the tensor.
        tiny: whether to take the sizes for Triton's interpreter.
    """
    if name in LAYERS:
        size = (1, 2, 3) if tiny else (batch, 56, 56)
        return torch.randn(*size, LAYERS[name][0], device=device)
    images = torch.randn(batch, 3, 224, 224, device=device)
    return images.contiguous(memory_format=torch.channels_last)


def step(network: nn.Module, x: Tensor, mode: str, compiled: bool) -> Callable[[], object]:
    """Return the function to time, in bfloat16 by autocast. This also sets the network's mode.

    Args:
        network: a model or layer.
        x: its input.
        mode: ``"inference"``, or ``"training"`` for a step with random gradients of all outputs.
        compiled: whether ``torch.compile`` compiles the network.
    """
    network.train(mode == "training")
    if compiled:
        torch.compiler.reset()
    runner = torch.compile(network) if compiled else network
    autocast = torch.autocast(x.device.type, torch.bfloat16)

    def inference() -> list[Tensor]:
        with torch.no_grad(), autocast:
            return _tensors(runner(x))

    # The rate is so low that the weights do not change from round to round.
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-12, momentum=0.9)

    def training() -> None:
        with autocast:
            outs = _tensors(runner(x))
        torch.autograd.backward(outs, [torch.ones_like(out) for out in outs])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return training if mode == "training" else inference


def _tensors(outs: Tensor | list | tuple) -> list[Tensor]:
    return [outs] if isinstance(outs, Tensor) else [x for out in outs for x in _tensors(out)]
