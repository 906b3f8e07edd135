"""Measure attention among tasks: one deformable step, DeMT's global attention, and mmcv's op."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from benchmarks.contestants import available_memory
from benchmarks.report import environment, first_line, format_table, write_json
from mmlocal.analysis.measure import choose_device, peak_memory, summarise, time_interleaved
from mmlocal.errors import UsageError
from mmlocal.layers import DeformableAttention, InterTaskAttention, TaskInteraction
from mmlocal.libraries import LIBRARIES
from mmlocal.paths import config_path
from mmlocal.registry import MODELS

ITSA = "itsa_swin_t_nyud_40k"
# Configs of networks, all with Swin-T. The first and the second differ in the op alone.
NETWORKS = (ITSA, f"{ITSA}+mmcv", "demt_swin_t_nyud_40k", "multitask_swin_t_nyud_40k")
_CHANNELS, _POSITION_CHANNELS, _HEADS = 256, 24, 4


class MMCVAttention(nn.Module):
    """mmcv's ``MultiScaleDeformableAttention`` in the place of ours, on its weights.

    Positions outside a map read 0, because mmcv's op has no other border. The op takes an index of
    the first pixel of each map, and the sizes of the maps as a tensor.

    Args:
        ours: the layer to replace.
    """

    def __init__(self, ours: DeformableAttention) -> None:
        super().__init__()
        from mmcv.ops import MultiScaleDeformableAttention

        self.attention = MultiScaleDeformableAttention(
            ours.embed_dims,
            ours.num_heads,
            num_levels=ours.num_maps,
            num_points=ours.num_points,
            dropout=0.0,
            batch_first=True,
        )
        self.attention.load_state_dict(ours.state_dict())

    def forward(
        self,
        query: Tensor,
        value: Tensor,
        reference_points: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """Attend as :class:`~mmlocal.layers.DeformableAttention` does."""
        shapes = torch.tensor(spatial_shapes, device=query.device)
        sizes = shapes.prod(dim=1)
        maps = len(spatial_shapes)
        return self.attention(
            query,
            value=value,
            identity=torch.zeros_like(query),  # mmcv's module adds it
            reference_points=reference_points.expand(len(query), -1, maps, -1),
            spatial_shapes=shapes,
            level_start_index=sizes.cumsum(dim=0) - sizes,
        )


def with_mmcv(model: nn.Module) -> nn.Module:
    """Put mmcv's op into every step of deformable attention of a model.

    Args:
        model: any model; this function changes it.
    """
    for step in model.modules():
        if isinstance(step, InterTaskAttention):
            step.attention = MMCVAttention(step.attention)
    return model


def _step(kind: str, tasks: int) -> tuple[nn.Module, int]:
    """One layer that exchanges information among tasks, and its channels."""
    if kind == "demt":
        return TaskInteraction(_CHANNELS, _HEADS), _CHANNELS
    channels = _CHANNELS + _POSITION_CHANNELS
    step = InterTaskAttention(channels, tasks, num_heads=_HEADS)
    return (with_mmcv(step) if kind == "itsa_mmcv" else step), channels


STEPS = {
    "itsa": "one step of ITSA",
    "itsa_mmcv": "the same with mmcv's op, which writes every sample out on CPUs",
    "demt": "DeMT's global attention, by scaled_dot_product_attention",
}


def _network(name: str) -> nn.Module:
    config, _, op = name.partition("+")
    cfg = Config.fromfile(config_path(config))
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    return with_mmcv(model) if op else model


def _training_step(model: nn.Module, size: tuple[int, int], batch: int) -> Callable[[], object]:
    """A training step of a network: forward pass, backward pass and SGD."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    device = next(model.parameters()).device
    image = torch.randn(batch, 3, *size, device=device)
    samples = []
    for _ in range(batch):
        sample = SegDataSample()
        for task in model.decode_head.tasks:
            shape = (task.channels if task.name == "normals" else 1, *size)
            label = torch.rand(shape) + 0.5 if task.continuous else torch.randint(0, 2, shape)
            sample.set_data({task.gt_field: PixelData(data=label.to(device))})
        samples.append(sample)
    # The rate is so low that the weights do not change from round to round.
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-12, momentum=0.9)

    def step() -> None:
        losses = model(image, samples, mode="loss")
        total, _ = model.parse_losses(losses)
        total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _measure(
    calls: dict[str, Callable[[], Callable[[], object]]],
    needed: dict[str, int],
    device: torch.device,
    rounds: int,
    about: dict,
) -> list[dict]:
    """Measure contestants in turns; a contestant that does not fit into the memory is skipped."""
    rows, running = [], {}
    for name, build in calls.items():
        row = about | dict(contestant=name)
        rows.append(row)
        free = available_memory()
        if device.type == "cpu" and free is not None and needed.get(name, 0) > free:
            row["skipped"] = (
                f"needs about {needed[name] / 2**30:.0f} GiB, {free / 2**30:.0f} are free"
            )
            continue
        try:
            call = build()
            call()
            row["peak_bytes"] = peak_memory(call, device)
        except ImportError as error:
            row["skipped"] = first_line(error)
        except RuntimeError as error:
            # On CPUs, a lack of memory has no error of its own.
            if "allocate memory" not in str(error) and "out of memory" not in str(error):
                raise
            row["skipped"] = first_line(error)
        else:
            running[name] = call
    for name, samples in time_interleaved(running, device, rounds).items():
        next(row for row in rows if row["contestant"] == name).update(summarise(samples))
    return rows


def _samples_bytes(tasks: int, size: tuple[int, int]) -> int:
    """Bytes of the samples that mmcv's form on CPUs holds at once: stacked, weighted and summed."""
    maps, queries = 3 * tasks, tasks * size[0] * size[1]
    return 3 * 4 * queries * maps * 16 * (_CHANNELS + _POSITION_CHANNELS)


def benchmark_multitask(
    out: Path,
    size: tuple[int, int] = (107, 140),
    image_size: tuple[int, int] = (213, 280),
    tasks: int = 4,
    batch_size: int = 1,
    rounds: int = 3,
    device: str | None = None,
) -> dict:
    """Measure one step of attention among tasks at inference, and training steps of networks.

    Weights and inputs are random. Writes ``out/multitask_<device>.json``.

    Args:
        out: folder for the results.
        size: height and width of the maps for the steps, in pixels. The default is the size of
            NYUD-v2's maps.
        image_size: height and width of the images for the networks, in pixels; ``(0, 0)`` leaves
            the networks out. The default is half the size of NYUD-v2's images.
        tasks: number of tasks for the steps.
        batch_size: number of images.
        rounds: number of samples of each time, as for :func:`time_interleaved`.
        device: ``"cpu"`` or ``"cuda"``; ``None`` for the GPU if there is one.

    Returns:
        The contents of the JSON file: ``hardware``, ``versions``, ``date``, ``settings`` and
        ``results``. ``results`` holds one dict per contestant, with ``mode``, and either the
        figures of :func:`summarise` and ``peak_bytes`` or the reason in ``skipped``.

    Raises:
        UsageError: a number is too small, mmseg cannot run here, or there is no GPU for ``"cuda"``.
    """
    for argument, number in dict(
        size=min(size), tasks=tasks, batch_size=batch_size, rounds=rounds
    ).items():
        if number < 1:
            raise UsageError(f"must be at least 1, got {number}", argument)
    if min(image_size) < 0:
        raise UsageError(f"must be at least 0, got {min(image_size)}", "image_size")
    target = choose_device(device)
    LIBRARIES["mmseg"].require()
    torch.manual_seed(0)

    def step(kind: str) -> Callable[[], object]:
        layer, channels = _step(kind, tasks)
        layer.eval().to(target)
        x = torch.randn(batch_size, tasks, *size, channels, device=target)

        def run() -> Tensor:
            with torch.no_grad():
                return layer(x)

        return run

    rows: list[dict] = []
    result = environment(target) | dict(
        date=datetime.date.today().isoformat(),
        settings=dict(
            size=list(size),
            image_size=list(image_size),
            tasks=tasks,
            batch_size=batch_size,
            rounds=rounds,
        ),
        results=rows,
    )
    path = out / f"multitask_{target.type}.json"
    needed = {"itsa_mmcv": batch_size * _samples_bytes(tasks, size)}
    rows += _measure(
        {kind: partial(step, kind) for kind in STEPS},
        needed,
        target,
        rounds,
        dict(mode="step, inference", size=list(size)),
    )
    write_json(result, path)  # the networks take long, and may be interrupted
    if min(image_size):
        # Training keeps the samples of three steps, and makes their gradients.
        maps = tuple(-(-side // 4) for side in image_size)
        needed = {f"{ITSA}+mmcv": 2 * batch_size * _samples_bytes(4, (maps[0], maps[1]))}

        def training(name: str) -> Callable[[], object]:
            return _training_step(_network(name).train().to(target), image_size, batch_size)

        rows += _measure(
            {name: partial(training, name) for name in NETWORKS},
            needed,
            target,
            rounds,
            dict(mode="network, training", size=list(image_size)),
        )
        write_json(result, path)
    return result


def format_multitask(result: dict) -> str:
    """Format one table for steps and one for networks, with ratios to the first contestant.

    Args:
        result: result of :func:`benchmark_multitask`.
    """
    parts = []
    for mode in dict.fromkeys(row["mode"] for row in result["results"]):
        rows = [row for row in result["results"] if row["mode"] == mode]
        table = [[mode, "ms", "ratio", "MiB"]]
        first = rows[0].get("median_ms")
        for row in rows:
            if "skipped" in row:
                table.append([f"{row['contestant']}: {row['skipped']}", "-", "-", "-"])
                continue
            table.append(
                [
                    row["contestant"],
                    f"{row['median_ms']:.1f}",
                    f"{row['median_ms'] / first:.2f}" if first else "-",
                    f"{row['peak_bytes'] / 2**20:.0f}",
                ]
            )
        parts.append(format_table(table))
    return "\n\n".join(parts)
