"""Check that the files and folders of a config exist, and show how to lay out public data sets."""

import os.path as osp
from collections.abc import Iterator, Sequence

from mmengine.config import Config

from mmlocal.cli.data.datasets import leaf_datasets
from mmlocal.errors import UsageError
from mmlocal.libraries import Library, library_of
from mmlocal.libraries.config_parts import type_name


def check_data(cfg: Config, phases: Sequence[str]) -> None:
    """Check that every local file and folder named by the data sets of some phases exists.

    The check looks through data set wrappers, and at the ``ann_file`` of the evaluators. It skips
    paths with a scheme (``s3://...``), data with non-local ``backend_args``, and data sets that
    download themselves.

    Args:
        cfg: whole config.
        phases: phases that will run, of ``"train"``, ``"val"`` and ``"test"``.

    Raises:
        UsageError: a phase has no dataloader, or paths are missing. The message lists all missing
            paths, shows the layout of a public data set, and names the demo that needs no data.
    """
    library = library_of(cfg)
    missing: dict[str, None] = {}  # a set that keeps its order
    layouts: dict[str, None] = {}
    for phase in phases:
        loader = cfg.get(f"{phase}_dataloader")
        if loader is None:
            raise UsageError(f"the config {cfg.filename} has no {phase}_dataloader")
        for _, dataset in leaf_datasets(loader.get("dataset")):
            absent = [
                path for path in _paths(dataset, library) if not osp.exists(osp.expanduser(path))
            ]
            missing.update(dict.fromkeys(absent))
            if absent:
                layouts.update(dict.fromkeys(_layout(dataset, library)))
        for path in _evaluator_files(cfg.get(f"{phase}_evaluator")):
            if not osp.exists(path):
                missing[path] = None
    if not missing:
        return
    lines = ["the data of this config is not here. Missing:"]
    lines += [f"    {path}" for path in missing]
    if not all(osp.isabs(path) for path in missing):
        lines.append(f"Relative paths start at the working directory, {osp.abspath('.')}.")
    lines += layouts or ["Put it there, or set data_root of the data sets with --cfg-options."]
    lines.append("To see training without any download, run `mmlocal demo`.")
    raise UsageError("\n".join(lines))


def _paths(dataset: dict, library: Library) -> Iterator[str]:
    """Local files and folders of a data set, joined to ``data_root`` as MMEngine joins them."""
    if (dataset.get("backend_args") or {}).get("backend", "local") != "local":
        return
    if type_name(dataset.get("type")) in library.downloads and dataset.get("download", True):
        return
    prefix = dataset.get("data_prefix") or library.default_prefix(dataset)
    if isinstance(prefix, str):
        prefix = {"img_path": prefix}
    root = dataset.get("data_root") or ""
    ann_file = dataset.get("ann_file") or ""
    names = [ann_file] if ann_file else []
    names += prefix.values()
    if not names:
        names = [""]
    for name in names:
        path = osp.join(root, name) if name else root
        if path and "://" not in path:
            yield path


def _evaluator_files(evaluator: object) -> Iterator[str]:
    for metric in evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]:
        path = metric.get("ann_file") if isinstance(metric, dict) else None
        if path and "://" not in path:
            yield path


def _layout(dataset: dict, library: Library) -> list[str]:
    """Instructions for the layout of a public data set; none for another data set."""
    layout = library.layout_of(dataset)
    if layout is None:
        return []
    root = dataset.get("data_root") or ""
    name, tree = layout
    return [f"Lay out {name} like this, or make {root} a link to it:{tree.format(root=root)}"]
