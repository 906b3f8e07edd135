"""Read a whole multi-task data set, count what is in its label maps, and draw a sample."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.registry import DATASETS, init_default_scope
from rich.console import Console
from rich.progress import track

from mmlocal.cli import program
from mmlocal.cli.arguments import add_override_arguments, number_of
from mmlocal.cli.config import load_config
from mmlocal.cli.data.datasets import leaf_datasets
from mmlocal.cli.data.label_maps import FIXED_CLASSES, Counts, count_images, read_item
from mmlocal.cli.tool import run_tool
from mmlocal.datasets.multitask import MultiTaskDataset
from mmlocal.errors import UsageError
from mmlocal.files import write_whole
from mmlocal.processes import map_in_processes, usable_cores
from mmlocal.tasks import IGNORE, TASKS
from mmlocal.visualization.multitask_maps import IGNORED_COLOUR, colour_map, tile_panels

_CHUNK = 4  # images that a process reads at a time
_FEW = 64  # images that one process reads sooner than others start
_WIDEST = 320  # pixels of a picture in the sheet


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=program("check-dataset"), description=__doc__)
    parser.add_argument(
        "config", nargs="?", help="config file or name of a config of mmlocal; else give --type"
    )
    parser.add_argument(
        "--split",
        default="train",
        help="train, val or test: the dataloader of the config; without a config, the name of the "
        "list of images (default: train)",
    )
    parser.add_argument("--type", help="class of the data set: NYUDv2 or PASCALContext")
    parser.add_argument("--data-root", help="folder of the data set; with --type")
    parser.add_argument(
        "--tasks", nargs="+", choices=TASKS, help="tasks to check; with --type (default: all)"
    )
    parser.add_argument(
        "--out-dir", help="folder to write contact_sheet.png and report.json to; default: neither"
    )
    parser.add_argument(
        "--pictures",
        type=number_of("pictures"),
        default=6,
        help="number of images in the sheet (default: 6)",
    )
    parser.add_argument(
        "--workers", type=number_of("processes"), help="processes (default: all cores)"
    )
    add_override_arguments(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line ``argv``; default: the arguments of this process."""

    def run() -> None:
        check_dataset(**vars(parse_args(argv)))

    run_tool(run)


def check_dataset(
    config: str | None = None,
    *,
    cfg_options: dict | None = None,
    split: str = "train",
    type: str | None = None,
    data_root: str | None = None,
    tasks: Sequence[str] | None = None,
    out_dir: str | None = None,
    pictures: int = 6,
    workers: int | None = None,
) -> list[dict[str, Any]]:
    """Read a whole multi-task data set, print what is in its label maps, and draw a sample.

    Args:
        config: path of a config file, or the name of a config of mmlocal; ``None`` for ``type``.
        cfg_options: settings to merge into the config, with dotted keys.
        split: phase of the config, ``"train"``, ``"val"`` or ``"test"``. Without a config, it is
            the name of the list of images.
        type: class of the data set, without a config.
        data_root: folder of the data set, without a config.
        tasks: tasks to check, without a config; ``None`` for all that have labels.
        out_dir: folder to write ``report.json`` and ``contact_sheet.png`` to; ``None`` writes none.
        pictures: number of images in the sheet.
        workers: number of processes; ``None`` for one for each core, if there are many images.

    Returns:
        The report of each data set, as in ``report.json``.

    Raises:
        UsageError: the arguments do not name a data set, the data set is incomplete, or it has
            files that cannot be used or labels that are no class, a library is missing, or the
            folder cannot be written. The report of faults comes first.
    """
    if (config is None) == (type is None):
        raise UsageError("give a config, or --type and --data-root")
    if config is not None:
        if data_root is not None or tasks is not None:
            raise UsageError("goes with --type; use --cfg-options to change a config", "data_root")
        datasets = _of_config(config, cfg_options, split)
    elif cfg_options:
        raise UsageError("goes with a config", "cfg_options")
    else:
        datasets = [_of_class(str(type), data_root, split, tasks)]
    if out_dir:
        _make_folder(Path(out_dir))
    reports, rows = [], []
    for dataset in datasets:
        classes = FIXED_CLASSES | {"semseg": len(dataset.metainfo["classes"])}
        items = [dataset.get_data_info(index) for index in range(len(dataset))]
        try:
            counts = _count(items, classes, workers)
        except ImportError as error:  # a library that only some data sets need
            raise UsageError(str(error)) from error
        report = _report(dataset, counts, classes)
        print(_text(report), flush=True)
        reports.append(report)
        rows += list(_rows(dataset, items, pictures)) if out_dir else []
    if out_dir:
        _write(Path(out_dir), reports, rows)
    number = sum(_number_of_faults(report) for report in reports)
    if number:
        raise UsageError(f"the data has {number} files with faults, which the report lists")
    return reports


def _of_config(config: str, cfg_options: dict | None, phase: str) -> list[MultiTaskDataset]:
    cfg = load_config(config, cfg_options)
    loader = cfg.get(f"{phase}_dataloader")
    if loader is None:
        raise UsageError(f"the config {cfg.filename} has no {phase}_dataloader", "split")
    init_default_scope(cfg.default_scope)
    return [
        _build(deepcopy(part), key)
        for key, part in leaf_datasets(loader.get("dataset"), f"{phase}_dataloader.dataset")
    ]


def _of_class(
    name: str, data_root: str | None, split: str, tasks: Sequence[str] | None
) -> MultiTaskDataset:
    if data_root is None:
        raise UsageError("must be given with --type", "data_root")
    kind = name if "." in name else f"mmlocal.{name}"
    cfg = {"type": kind, "data_root": data_root, "split": split}
    lazy = _build({**cfg, "lazy_init": True}, "type")
    tasks = tasks or lazy.tasks_with_labels() or lazy.tasks
    return _build({**cfg, "tasks": tuple(tasks)}, "type")


def _build(cfg: dict, key: str) -> MultiTaskDataset:
    kind = cfg.get("type")
    found = DATASETS.get(kind) if isinstance(kind, str) else kind
    if not (isinstance(found, type) and issubclass(found, MultiTaskDataset)):
        raise UsageError(
            f"{key} is {kind!r}, which is no multi-task data set; this command reads "
            "mmlocal.NYUDv2, mmlocal.PASCALContext and classes that inherit from their base"
        )
    try:
        # Only the tasks, without the label map that a crop for training needs.
        return DATASETS.build({**cfg, "type": found, "pipeline": [], "test_mode": True})
    except (FileNotFoundError, ValueError, TypeError) as error:
        raise UsageError(str(error)) from error


def _count(items: list[dict], classes: dict[str, int], workers: int | None) -> Counts:
    """Read the images, in several processes if there are many."""
    chunks = [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]
    if workers is None:
        workers = usable_cores() if len(items) > _FEW else 1
    found = Counts()
    with closing(map_in_processes(partial(count_images, classes=classes), chunks, workers)) as pool:
        for counts in track(pool, "reading", len(chunks), console=Console(stderr=True)):
            found.add(counts)
    return found


def _report(dataset: MultiTaskDataset, counts: Counts, classes: dict[str, int]) -> dict[str, Any]:
    names = dataset.metainfo["classes"]
    tasks: dict[str, dict[str, Any]] = {}
    for task, found in counts.tasks.items():
        pixels = max(1, found.valid + found.ignored)
        entry: dict[str, Any] = {
            "images": found.images,
            "images_without_labels": found.empty,
            "valid_pixels": found.valid,
            "ignored_pixels": found.ignored,
            "ignored_share": found.ignored / pixels,
        }
        if task == "depth":
            known = found.valid > 0
            entry["nearest"] = found.nearest if known else None
            entry["furthest"] = found.furthest if known else None
            entry["median"] = found.median_depth() if known else None
            entry["images_with_holes"] = found.with_holes
        elif task == "normals":
            entry["not_of_length_1"] = found.not_unit
        else:
            seen = [label for label in range(IGNORE) if found.labels[label]]
            entry["pixels_of_labels"] = {str(label): int(found.labels[label]) for label in seen}
            entry["classes"] = classes[task]
            entry["classes_seen"] = sum(label < classes[task] for label in seen)
            if task == "semseg":
                entry["classes_never_seen"] = [
                    name for label, name in enumerate(names) if not found.labels[label]
                ]
            entry["images_with_labels_that_are_no_class"] = found.beyond_number
            entry["examples"] = found.beyond
        tasks[task] = entry
    return {
        "data_set": f"{type(dataset).__name__} in {dataset.root}",
        "split": dataset.split,
        "images": len(dataset),
        "sizes": {f"{h}x{w}": number for (h, w), number in counts.sizes.most_common()},
        "tasks": tasks,
        "unusable_files": counts.unusable,
    }


def _text(report: dict[str, Any]) -> str:
    sizes = list(report["sizes"])
    size = f"most of {sizes[0]} pixels, {len(sizes)} sizes" if len(sizes) > 1 else "".join(sizes)
    lines = [f"{report['data_set']}, split {report['split']}: {report['images']} images, {size}"]
    for task, found in report["tasks"].items():
        facts = [f"{found['images']} maps", f"{100 * found['ignored_share']:.1f} % ignored"]
        if task == "depth" and found["median"] is not None:
            facts.append(f"{found['nearest']:.2f} to {found['furthest']:.2f} m")
            facts.append(f"median {found['median']:.2f} m")
            facts.append(f"{found['images_with_holes']} maps with holes")
        elif task == "normals":
            facts.append(
                f"{100 * found['not_of_length_1'] / max(1, found['valid_pixels']):.1f} % not of "
                "length 1"
            )
        elif task in ("edge", "sal"):
            share = found["pixels_of_labels"].get("1", 0) / max(1, found["valid_pixels"])
            facts.append(f"{100 * share:.1f} % {'boundary' if task == 'edge' else 'salient'}")
        elif task != "depth":
            facts.append(f"{found['classes_seen']} of {found['classes']} classes")
        if found["images_without_labels"]:
            facts.append(f"{found['images_without_labels']} maps without any label")
        lines.append(f"  {task:12} {', '.join(facts)}")
        if found.get("images_with_labels_that_are_no_class"):
            lines.append(
                f"    {found['images_with_labels_that_are_no_class']} maps have labels that are no "
                f"class, such as {'; '.join(found['examples'])}"
            )
    if report["unusable_files"]:
        lines.append(f"  {len(report['unusable_files'])} files cannot be used:")
        lines += [f"    {path}: {why}" for path, why in sorted(report["unusable_files"].items())]
    return "\n".join(lines)


def _number_of_faults(report: dict[str, Any]) -> int:
    return len(report["unusable_files"]) + sum(
        task.get("images_with_labels_that_are_no_class", 0) for task in report["tasks"].values()
    )


def _rows(
    dataset: MultiTaskDataset, items: list[dict], number: int
) -> Iterator[list[tuple[str, np.ndarray | None]]]:
    """Images from all over the split, each with its coloured label maps."""
    chosen = np.unique(np.linspace(0, len(items) - 1, min(number, len(items))).round().astype(int))
    for item in (items[index] for index in chosen):
        results, _ = read_item(item)
        row: list[tuple[str, np.ndarray | None]] = [
            (item["sample_id"], results["img"][..., ::-1] if "img" in results else None)
        ]
        for task in dataset.tasks:
            labels = results.get(TASKS[task].gt_key)
            if labels is None:
                row.append((f"{task}: unusable", None))
                continue
            palette = dataset.metainfo["palette"] if task == "semseg" else None
            labels = np.moveaxis(labels, -1, 0) if labels.ndim == 3 else labels
            row.append((task, colour_map(task, labels, palette)))
        yield row


def _make_folder(folder: Path) -> None:
    """Make the folder of the results before the work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot be written: {error}", "out_dir") from error


def _write(
    out_dir: Path,
    reports: list[dict[str, Any]],
    rows: list[list[tuple[str, np.ndarray | None]]],
) -> None:
    try:
        write_whole(out_dir / "report.json", json.dumps(reports, indent=1) + "\n")
        shapes = [image.shape[:2] for row in rows for _, image in row if image is not None]
        if not shapes:
            return
        longest = max(len(row) for row in rows)
        height, width = (max(sides) for sides in zip(*shapes, strict=True))
        factor = min(1.0, _WIDEST / width)
        cell = (max(1, round(height * factor)), max(1, round(width * factor)))
        sheet = tile_panels(
            [
                [(title, _fit(image, cell, factor)) for title, image in row]
                + [("", None)] * (longest - len(row))
                for row in rows
            ]
        )
        png = cv2.imencode(".png", sheet[..., ::-1])[1].tobytes()
        write_whole(out_dir / "contact_sheet.png", png)
    except OSError as error:
        raise UsageError(f"cannot be written: {error}", "out_dir") from error


def _fit(image: np.ndarray | None, cell: tuple[int, int], factor: float) -> np.ndarray | None:
    """Put an image into the corner of a cell, scaled by ``factor``."""
    if image is None:
        return None
    height, width = (max(1, round(side * factor)) for side in image.shape[:2])
    panel = np.full((*cell, 3), IGNORED_COLOUR, np.uint8)
    scaled = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=cv2.INTER_AREA)
    panel[:height, :width] = scaled[: cell[0], : cell[1]]
    return panel
