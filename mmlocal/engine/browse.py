"""Pictures of a data set with its annotations, as training sees them."""

import argparse
import os.path as osp
from copy import deepcopy

import numpy as np
from mmengine.registry import DATASETS, VISUALIZERS, init_default_scope
from mmengine.utils import track_iter_progress
from mmengine.visualization import Visualizer

from mmlocal.cli.building import build_errors, type_name
from mmlocal.cli.config import load_config
from mmlocal.cli.data import check_data
from mmlocal.errors import UsageError
from mmlocal.libraries import library_of


def browse(args: argparse.Namespace) -> None:
    """Show or write images of one data set of a config; each library draws its own annotations.

    Files are named ``<index>_<name of the image>``, as images of different folders may share names.

    Raises:
        UsageError: missing config, library or data, neither window nor ``--output-dir``, a
            ``--show-number`` below one, or a flag of another task.
    """
    if args.not_show and not args.output_dir:
        raise UsageError("--not-show without --output-dir leaves nothing to do")
    if args.show_number is not None and args.show_number < 1:
        raise UsageError(f"--show-number must be at least 1, got {args.show_number}")
    cfg = load_config(args.config, args.cfg_options)
    library_of(cfg).require()
    if args.rescale_factor is not None and cfg.default_scope != "mmpretrain":
        raise UsageError(
            f"--rescale-factor applies to mmpretrain configs, this one is for {cfg.default_scope}"
        )
    check_data(cfg, [args.phase])
    init_default_scope(cfg.default_scope)

    dataset_cfg = cfg[f"{args.phase}_dataloader"].dataset
    if args.mode == "original":
        dataset_cfg = _without_augmentation(dataset_cfg)
    with build_errors(cfg):
        dataset = DATASETS.build(deepcopy(dataset_cfg))
        visualizer = VISUALIZERS.build({"name": "browse", **cfg.visualizer, "vis_backends": None})
    visualizer.dataset_meta = dataset.metainfo
    number = min(args.show_number or len(dataset), len(dataset))
    for index in track_iter_progress(range(number)):
        item = dataset[index]
        image = item["inputs"].permute(1, 2, 0).numpy()
        if args.channel_order == "BGR":  # the order of the arrays; visualizers want RGB
            image = image[..., ::-1]
        sample = item["data_samples"]
        name = f"{index:06d}_{osp.basename(sample.get('img_path') or 'image.png')}"
        _draw(
            visualizer,
            cfg.default_scope,
            np.ascontiguousarray(image),
            sample,
            rescale_factor=args.rescale_factor,
            name=name,
            show=not args.not_show,
            wait_time=args.show_interval,
            out_file=osp.join(args.output_dir, name) if args.output_dir else None,
        )


def _draw(
    visualizer: Visualizer,
    task: str,
    image: np.ndarray,
    sample,
    rescale_factor: float | None,
    **where,
) -> None:
    if task == "mmpretrain":
        visualizer.visualize_cls(
            image, sample, draw_pred=False, rescale_factor=rescale_factor, **where
        )
        return
    sample = sample.numpy()
    if task == "mmdet":
        from mmdet.models.utils import mask2ndarray
        from mmdet.structures.bbox import BaseBoxes

        instances = sample.gt_instances  # the visualizer wants arrays, pipelines make structures
        if isinstance(instances.get("bboxes"), BaseBoxes):
            instances.bboxes = instances.bboxes.tensor
        if "masks" in instances:
            instances.masks = mask2ndarray(instances.masks).astype(bool)
    visualizer.add_datasample(image=image, data_sample=sample, draw_pred=False, **where)


def _without_augmentation(dataset: dict) -> dict:
    """The data set, and those it wraps, with only the loading and packing steps of pipelines."""
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
