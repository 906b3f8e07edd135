"""Show or write the images of a config's data set with their annotations.

mmpretrain's own tool has two more modes, concat and pipeline. It is in .mim/tools/visualization of
that package and needs an older Matplotlib than the tested one.
"""

import argparse
import os.path as osp
from collections.abc import Sequence
from copy import deepcopy
from typing import Literal

import numpy as np
from mmengine.registry import DATASETS, VISUALIZERS, init_default_scope
from mmengine.utils import track_iter_progress

from mmlocal.cli import program
from mmlocal.cli.arguments import add_config_arguments
from mmlocal.cli.building import build_errors
from mmlocal.cli.config import load_config
from mmlocal.cli.data import check_data
from mmlocal.cli.tool import run_tool
from mmlocal.errors import UsageError
from mmlocal.libraries import library_of
from mmlocal.libraries.config_parts import type_name


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=program("browse"), description=__doc__)
    add_config_arguments(parser)
    parser.add_argument("--output-dir", "-o", help="folder to write the pictures to")
    parser.add_argument("--not-show", action="store_true", help="open no window")
    parser.add_argument(
        "--phase",
        "-p",
        choices=["train", "val", "test"],
        default="train",
        help="show the data set of this phase (default: train)",
    )
    parser.add_argument(
        "--show-number", "-n", type=int, help="number of images to show (default: all)"
    )
    parser.add_argument(
        "--show-interval", "-i", type=float, default=2, help="seconds to show each picture"
    )
    parser.add_argument(
        "--mode",
        "-m",
        choices=["original", "transformed"],
        default="transformed",
        help="show images as on disk (original), or as the pipeline returns them (default)",
    )
    parser.add_argument(
        "--channel-order",
        "-c",
        choices=["BGR", "RGB"],
        default="BGR",
        help="order of the channels in the output of the pipeline (default: BGR)",
    )
    parser.add_argument(
        "--rescale-factor", "-r", type=float, help="mmpretrain: enlarge the pictures by this factor"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line ``argv``; default: the arguments of this process."""
    run_tool(lambda: browse(**vars(parse_args(argv))))


def browse(
    config: str,
    *,
    cfg_options: dict | None = None,
    output_dir: str | None = None,
    not_show: bool = False,
    phase: Literal["train", "val", "test"] = "train",
    show_number: int | None = None,
    show_interval: float = 2,
    mode: Literal["original", "transformed"] = "transformed",
    channel_order: Literal["BGR", "RGB"] = "BGR",
    rescale_factor: float | None = None,
) -> None:
    """Show or write images of one data set of a config, with their annotations.

    The files are named ``<index>_<name of the image>``, because images in different folders may
    have the same name.

    Args:
        config: path of a config file, or the name of a config of mmlocal.
        cfg_options: settings to merge into the config, with dotted keys.
        output_dir: folder to write the pictures to; ``None`` writes none.
        not_show: open no window.
        phase: phase that uses the data set: ``"train"``, ``"val"`` or ``"test"``.
        show_number: number of images to show, from the first; ``None`` for all.
        show_interval: seconds that a window shows each picture.
        mode: ``"original"`` shows images as on disk, ``"transformed"`` shows the output of the
            pipeline.
        channel_order: order of the channels in the output of the pipeline.
        rescale_factor: factor to enlarge the pictures by; only mmpretrain has it.

    Raises:
        UsageError: the config, its library or the data is missing; there is neither a window nor
            ``output_dir``; ``show_number`` is below 1; or the library has no ``rescale_factor``.
    """
    if not_show and not output_dir:
        raise UsageError("must be given if no window opens", argument="output_dir")
    if show_number is not None and show_number < 1:
        raise UsageError(f"must be at least 1, got {show_number}", argument="show_number")
    cfg = load_config(config, cfg_options)
    library = library_of(cfg)
    library.require()
    library.refuse_foreign(rescale_factor=rescale_factor)
    check_data(cfg, [phase])
    init_default_scope(cfg.default_scope)

    dataset_cfg = cfg[f"{phase}_dataloader"].dataset
    if mode == "original":
        dataset_cfg = _without_augmentation(dataset_cfg)
    with build_errors(cfg):
        dataset = DATASETS.build(deepcopy(dataset_cfg))
        settings = cfg.get("visualizer") or {"type": "Visualizer"}
        visualizer = VISUALIZERS.build({"name": "browse", **settings, "vis_backends": None})
    visualizer.dataset_meta = dataset.metainfo
    number = min(show_number or len(dataset), len(dataset))
    for index in track_iter_progress(range(number)):
        item = dataset[index]
        image = item["inputs"].permute(1, 2, 0).numpy()
        if channel_order == "BGR":  # visualizers expect RGB
            image = image[..., ::-1]
        sample = item["data_samples"]
        name = f"{index:06d}_{osp.basename(sample.get('img_path') or 'image.png')}"
        library.draw(
            visualizer,
            np.ascontiguousarray(image),
            sample,
            rescale_factor=rescale_factor,
            name=name,
            show=not not_show,
            wait_time=show_interval,
            out_file=osp.join(output_dir, name) if output_dir else None,
        )


def _without_augmentation(dataset: dict) -> dict:
    """A copy of a data set config whose pipelines only load and pack, in wrapped data sets too."""
    dataset = deepcopy(dataset)
    if "pipeline" in dataset:
        dataset["pipeline"] = [
            step
            for step in dataset["pipeline"]
            if type_name(step["type"]).startswith(("Load", "Pack"))
        ]
    if "dataset" in dataset:
        dataset["dataset"] = _without_augmentation(dataset["dataset"])
    if "datasets" in dataset:
        dataset["datasets"] = [_without_augmentation(child) for child in dataset["datasets"]]
    return dataset
