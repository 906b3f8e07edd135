"""Measure classifiers, and write the table and the picture of ``docs/choosing.md``."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from mmengine.logging import MMLogger

from benchmarks.choosing_plot import plot_choices
from benchmarks.report import environment, format_table, write_json
from mmlocal.analysis import model_complexity
from mmlocal.analysis.measure import choose_device, peak_memory, summarise, time_interleaved
from mmlocal.errors import UsageError
from mmlocal.files import write_whole
from mmlocal.libraries import LIBRARIES
from mmlocal.ops import OPS
from mmlocal.ops.backends import choose_backend

ROOT = Path(__file__).resolve().parents[1]
PAGE = Path("docs/choosing.md")
PICTURE = Path("docs/images/choosing.svg")
MEASURED = Path("docs/benchmarks/choosing_cpu.json")
# The script replaces the lines between these two.
BEGIN = "<!-- written by tools/benchmark_choosing.py: begin -->"
END = "<!-- written by tools/benchmark_choosing.py: end -->"
BATCH_SIZE = 4


@dataclass(frozen=True)
class Ours:
    """A model of mmlocal. Its published figures are in the metafiles.

    Args:
        label: name for readers.
        family: name of the family, which gives the colour in the picture.
        classifier: name of the config for ImageNet.
        detector: name of the config of Cascade Mask R-CNN, if the article has one.
        segmentor: name of the config of UPerNet, if the article has one.
    """

    label: str
    family: str
    classifier: str
    detector: str | None = None
    segmentor: str | None = None


@dataclass(frozen=True)
class Peer:
    """A model of MMPreTrain, with the published figures of MMPreTrain, MMDetection and MMSeg.

    Args:
        label: name for readers.
        classifier: name of the config in MMPreTrain.
        top1: top-1 accuracy on ImageNet in per cent.
        detector: name in MMDetection of Cascade Mask R-CNN, trained for 36 epochs; ``None`` if the
            figure comes from the README of the official code.
        box_ap: its box AP on COCO.
        segmentor: name in MMSegmentation of UPerNet, trained for 160,000 iterations.
        miou: its mIoU on ADE20K, with one scale, and with several scales and mirror images.
    """

    label: str
    classifier: str
    top1: float
    detector: str | None
    box_ap: float
    segmentor: str
    miou: tuple[float, float]
    family: str = "others"


def _ours(family: str, label: str, stem: str, dense: bool = False) -> Ours:
    detector, segmentor = (f"{stem}_cascade_maskrcnn_3x", f"{stem}_upernet_160k")
    return Ours(label, family, f"{stem}_in1k_300e", *((detector, segmentor) if dense else ()))


CHOICES: tuple[Ours | Peer, ...] = (
    _ours("ELSA-Swin", "ELSA-Swin-T", "elsa_swin_t", dense=True),
    _ours("ELSA-Swin", "ELSA-Swin-S", "elsa_swin_s", dense=True),
    _ours("ELSA-Swin", "ELSA-Swin-B", "elsa_swin_b"),
    _ours("QnA-ViT", "QnA-ViT-T", "qna_vit_t"),
    _ours("QnA-ViT", "QnA-ViT-T 7x7", "qna_vit_t_7x7"),
    _ours("QnA-ViT", "QnA-ViT-S", "qna_vit_s"),
    _ours("QnA-ViT", "QnA-ViT-B", "qna_vit_b"),
    _ours("DWNet", "DWNet-T", "dwnet_t", dense=True),
    _ours("DWNet", "dynamic DWNet-T", "dwnet_t_dynamic", dense=True),
    _ours("DWNet", "DWNet-B", "dwnet_b", dense=True),
    _ours("VOLO", "VOLO-D1", "volo_d1"),
    _ours("VOLO", "ELSA-VOLO-D1", "elsa_volo_d1"),
    _ours("VOLO", "VOLO-D2", "volo_d2"),
    Peer(
        "Swin-T",
        "swin-tiny_16xb64_in1k",
        81.18,
        None,
        50.4,
        "swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512",
        (44.41, 45.79),
    ),
    Peer(
        "ConvNeXt-T",
        "convnext-tiny_32xb128_in1k",
        82.14,
        "cascade-mask-rcnn_convnext-t-p4-w7_fpn_4conv1fc-giou_amp-ms-crop-3x_coco",
        50.3,
        "convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512",
        (46.11, 46.62),
    ),
    Peer(
        "ResNet-50",
        "resnet50_8xb256-rsb-a2-300e_in1k",
        79.55,
        "cascade-mask-rcnn_r50_fpn_mstrain_3x_coco",
        44.3,
        "upernet_r50_4xb4-160k_ade20k-512x512",
        (42.05, 42.78),
    ),
)


def measure(
    models: Sequence[str] | None = None,
    size: int = 224,
    rounds: int = 9,
    device: str | None = None,
) -> dict:
    """Measure speed and memory of whole classifiers at inference, in float32 and uncompiled.

    Args:
        models: names of configs of mmlocal or MMPreTrain; ``None`` for all of ``CHOICES``.
        size: side of the images in pixels. A batch has ``BATCH_SIZE`` images.
        rounds: number of samples of each time, as for :func:`time_interleaved`.
        device: ``"cpu"`` or ``"cuda"``; ``None`` for the GPU if there is one.

    Returns:
        ``hardware``, ``versions``, ``date``, ``settings`` and ``results``: one dict per model, with
        ``parameters``, ``macs`` of one image, the figures of :func:`summarise`,
        ``images_per_second`` and ``peak_bytes``, the memory beside weights and images.

    Raises:
        UsageError: MMPreTrain cannot run here, a number is below 1, or there is no GPU.
    """
    LIBRARIES["mmpretrain"].require()
    MMLogger.get_current_instance().setLevel("ERROR")  # it would log the start of every weight
    for argument, number in dict(size=size, rounds=rounds).items():
        if number < 1:
            raise UsageError(f"must be at least 1, got {number}", argument)
    target = choose_device(device)
    torch.manual_seed(0)
    images = torch.randn(BATCH_SIZE, 3, size, size, device=target)
    names = models or [choice.classifier for choice in CHOICES]
    calls, rows = {}, {}
    for name in names:
        calls[name], rows[name] = _load(name, images)
        calls[name]()
        rows[name]["peak_bytes"] = peak_memory(calls[name], target)
    for name, samples in time_interleaved(calls, target, rounds).items():
        rows[name] |= summarise(samples)
        rows[name]["images_per_second"] = 1e3 * BATCH_SIZE / rows[name]["median_ms"]
    like = torch.empty(0, device=target)
    backends = {op.name: choose_backend(op.name, op.backends, like, None).name
                for op in OPS.values()}  # fmt: skip
    settings = dict(batch_size=BATCH_SIZE, size=size, rounds=rounds, backends=backends)
    return environment(target) | dict(
        date=datetime.date.today().isoformat(), settings=settings, results=list(rows.values())
    )


def _load(name: str, images: torch.Tensor) -> tuple[Callable[[], object], dict]:
    """Build a classifier with random weights: a function that runs it, and its size."""
    from mmpretrain import ModelHub, get_model

    model = get_model(name)
    model.init_weights()
    model.to(images.device)
    found = model_complexity(ModelHub.get(name).config, tuple(images.shape[2:]))

    def call() -> object:
        with torch.no_grad():
            return model(images, mode="tensor")

    return call, dict(model=name, parameters=found.parameters, macs=found.total_macs)


@cache
def published() -> dict[str, dict]:
    """Read the entries of our metafiles, by name of the config."""
    import yaml

    entries = {}
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the former is fast, and may be missing
    for path in sorted(ROOT.glob("configs/*/metafile.yml")):
        for model in yaml.load(path.read_text(), loader)["Models"]:
            entries[model["Name"]] = model
    return entries


def figures(name: str | None, metric: str) -> list[float]:
    """Look up published figures of a config of mmlocal, the official README's first.

    Args:
        name: name of the config; ``None`` gives no figures.
        metric: name of the metric in the metafile, without its source.
    """
    results = published()[name]["Results"] if name in published() else []
    found = {}
    for result in results:
        for title, value in result["Metrics"].items():
            kind, _, source = title.rstrip(")").rpartition(" (")
            if kind == metric:
                found[source] = value
    return [found[source] for source in sorted(found, key=lambda key: key != "official README")]


def top1_of(choice: Ours | Peer) -> float:
    """Published top-1 accuracy of a classifier in per cent."""
    if isinstance(choice, Peer):
        return choice.top1
    return figures(choice.classifier, "Top 1 Accuracy")[0]


def format_choices(measured: dict | None) -> str:
    """Format the table of the page.

    Args:
        measured: result of :func:`measure`; ``None`` leaves the columns of figures that we count
            and measure empty.
    """
    rows = {row["model"]: row for row in (measured or {}).get("results", [])}
    table = [
        ["model", "parameters (M)", "GFLOPs", "top-1", "box AP", "mIoU", "mIoU, several scales",
         "images/s", "MiB", "config", "official weights"]
    ]  # fmt: skip
    for choice in CHOICES:
        row = rows.get(choice.classifier, {})
        parameters = row.get("parameters")
        if isinstance(choice, Ours):
            entry = published()[choice.classifier]
            parameters = entry["Metadata"]["Parameters"]
            box_ap = figures(choice.detector, "box AP")
            miou = [figures(choice.segmentor, kind) for kind in ("mIoU", "mIoU ms+flip")]
            page = entry.get("Official Weights", {}).get("Page")
            weights = f"[page]({page})" if page else "none"
        else:
            box_ap, miou = [choice.box_ap], [[value] for value in choice.miou]
            weights = "MMPreTrain"
        table.append(
            [
                f"**{choice.label}**" if isinstance(choice, Ours) else choice.label,
                _cell(parameters, "{:.1f}", 1e6),
                _cell(row.get("macs"), "{:.2f}", 1e9),
                _cell(top1_of(choice)),
                _cell(*box_ap[:1]),
                *(_cell(*values[:1]) for values in miou),
                _cell(row.get("images_per_second"), "{:.1f}"),
                _cell(row.get("peak_bytes"), "{:.0f}", 2**20),
                f"`{choice.classifier}`",
                weights,
            ]
        )
    return format_table(table)


def _cell(value: float | None = None, text: str = "{}", unit: float | None = None) -> str:
    if value is None:
        return "-"
    return text.format(value if unit is None else value / unit)


def page_with(text: str, measured: dict | None) -> str:
    """Replace the generated part of the page.

    Args:
        text: the page.
        measured: result of :func:`measure`, if there is one.

    Raises:
        ValueError: the page lacks the two lines that enclose this part.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE} must hold the lines {BEGIN} and {END}")
    parts = [BEGIN, "", format_choices(measured), ""]
    if measured:
        picture = PICTURE.relative_to(PAGE.parent)
        parts += [f"![Top-1 accuracy against images per second]({picture})", ""]
        parts += [_about(measured), ""]
    return before + "\n".join([*parts, END]) + after


def _about(measured: dict) -> str:
    """One sentence on the machine and the settings."""
    hardware, versions, settings = (measured[k] for k in ("hardware", "versions", "settings"))
    machine = hardware["gpu"] or f"{hardware['cpu']} with {hardware['threads']} threads"
    return (
        f"Measured on {measured['date']}: {machine}, torch {versions['torch'].partition('+')[0]}, "
        f"float32,\nnot compiled, {settings['batch_size']} images of {settings['size']} pixels, "
        f"the median of {settings['rounds']} rounds."
    )


def read_measured(root: Path = ROOT) -> dict | None:
    """Read the measured figures, if there are any.

    Args:
        root: root of the clone.
    """
    path = root / MEASURED
    return json.loads(path.read_text()) if path.is_file() else None


def write_choices(measured: dict | None, root: Path = ROOT) -> list[Path]:
    """Write the table into the page, and the picture and the measured figures beside it.

    Args:
        measured: result of :func:`measure`, if there is one.
        root: root of the clone.

    Returns:
        The files that were written.
    """
    page = root / PAGE
    write_whole(page, page_with(page.read_text(), measured))
    if measured is None:
        return [page]
    write_json(measured, root / MEASURED)
    speeds = {row["model"]: row["images_per_second"] for row in measured["results"]}
    points = [
        (choice.label, choice.family, speeds[choice.classifier], top1_of(choice))
        for choice in CHOICES
        if choice.classifier in speeds
    ]
    plot_choices(points, root / PICTURE)
    return [page, root / MEASURED, root / PICTURE]
