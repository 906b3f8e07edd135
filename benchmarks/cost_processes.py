"""Count the gradients that two processes exchange, and compare them with one process."""

# Without annotations as strings: DDP compares the types of its hooks with its own.
import datetime
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from benchmarks.cost_series import build_backbone, list_tensors

PROCESSES = 2
_TIMEOUT = datetime.timedelta(seconds=120)
Build = Callable[[str], nn.Module]


def counting_hook(
    sizes: list[int], bucket: distributed.GradBucket
) -> torch.futures.Future[torch.Tensor]:
    """Note the bytes of a bucket of gradients, and average it over all processes.

    It is a hook for ``DistributedDataParallel.register_comm_hook``.

    Args:
        sizes: list that gets the number of bytes.
        bucket: gradients of some parameters.
    """
    sizes.append(bucket.buffer().nbytes)
    return default_hooks.allreduce_hook(distributed.group.WORLD, bucket)


def _problem(build: Build, name: str, side: int) -> tuple[nn.Module, Tensor]:
    """The same weights and images in each process."""
    torch.manual_seed(0)
    # Otherwise each process would drop other branches, and normalise by its own images.
    model = build(name)
    model.eval()  # a separate line, because eval() of mmpretrain's backbones returns None
    return model, torch.randn(2 * PROCESSES, 3, side, side)


def _loss(model: nn.Module, images: Tensor) -> Tensor:
    """A mean over images, as the losses of classifiers are."""
    outs = list_tensors(model(images))
    return torch.stack([x.square().flatten(1).mean(1) for x in outs]).sum(0).mean()


def _received() -> int | None:
    """Bytes that came in through the loopback so far; ``None`` if the system does not say."""
    try:
        lines = Path("/proc/net/dev").read_text().splitlines()
        (counters,) = [line.split(":")[1] for line in lines if line.strip().startswith("lo:")]
    except (OSError, ValueError):
        return None
    return int(counters.split()[0])


def _work(rank: int, folder: str, build: Build, name: str, side: int) -> None:
    torch.set_num_threads(1)
    store = distributed.FileStore(f"{folder}/store", PROCESSES)
    distributed.init_process_group(
        "gloo", store=store, rank=rank, world_size=PROCESSES, timeout=_TIMEOUT
    )
    model, images = _problem(build, name, side)
    found: dict[str, Any] = {}
    hooks = dict(float32=counting_hook, float16=default_hooks.fp16_compress_wrapper(counting_hook))
    for dtype, hook in hooks.items():
        sizes: list[int] = []
        parallel = DistributedDataParallel(model)
        parallel.register_comm_hook(sizes, hook)
        for _ in range(2):  # DDP makes its buckets anew after the first step
            sizes.clear()
            model.zero_grad(set_to_none=True)
            distributed.barrier()
            before = _received()
            _loss(parallel, images[rank::PROCESSES]).backward()
            distributed.barrier()
            after = _received()
        traffic = None if before is None or after is None else after - before
        grads = {key: x.grad.clone() for key, x in model.named_parameters() if x.grad is not None}
        found[dtype] = dict(sizes=sizes, traffic=traffic, grads=grads)
    if rank == 0:
        torch.save(found, f"{folder}/found.pth")
    distributed.barrier()
    distributed.destroy_process_group()


def check_processes(name: str, side: int = 64, build: Build = build_backbone) -> dict:
    """Run training steps in two processes with gloo on the CPU.

    Args:
        name: name of the model for ``build``.
        side: height and width of the images in pixels. The gradients do not depend on it.
        build: makes the model. It must be a function that other processes can import.

    Returns:
        ``name``, ``parameters`` (with gradients), ``processes``, ``buckets``, ``reduced_bytes`` and
        ``reduced_bytes_float16`` (gradients that a process gave to all-reduce in a step),
        ``loopback_bytes`` (all traffic of the loopback in a step; ``None`` if the system does not
        count it), and ``gradient_error``: the largest difference between gradients of two processes
        with half of the images and of one process with all, divided by the largest gradient.
    """
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_work, (folder, build, name, side), nprocs=PROCESSES)
        found = torch.load(f"{folder}/found.pth")
    model, images = _problem(build, name, side)
    _loss(model, images).backward()
    grads = {key: x.grad for key, x in model.named_parameters() if x.grad is not None}
    together = found["float32"]["grads"]
    assert together.keys() == grads.keys()
    scale = max(float(x.abs().max()) for x in grads.values())
    return dict(
        name=name,
        parameters=sum(x.numel() for x in grads.values()),
        processes=PROCESSES,
        buckets=len(found["float32"]["sizes"]),
        reduced_bytes=sum(found["float32"]["sizes"]),
        reduced_bytes_float16=sum(found["float16"]["sizes"]),
        loopback_bytes=found["float32"]["traffic"],
        gradient_error=max(float((together[key] - grads[key]).abs().max()) for key in grads)
        / scale,
    )
