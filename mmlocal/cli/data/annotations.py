"""Do classes, annotations and heads agree? All three libraries, in one message."""

from __future__ import annotations

import os.path as osp
from collections.abc import Sequence

from mmengine.config import Config
from mmengine.registry import DefaultScope

from mmlocal.cli.building import type_name
from mmlocal.cli.data.classification import check_classification
from mmlocal.cli.data.coco import check_coco, check_evaluator
from mmlocal.cli.data.datasets import DataSet, datasets_of, is_local, read_classes
from mmlocal.cli.data.heads import compare_heads, heads_of
from mmlocal.cli.data.report import Findings, shorten
from mmlocal.cli.data.segmentation import check_segmentation
from mmlocal.cli.tool import is_first_of_machine, warn
from mmlocal.errors import UsageError


def check_annotations(cfg: Config, phases: Sequence[str]) -> None:
    """Read the annotations of some phases and compare them with the config.

    Compared are class names, ``metainfo``, annotation files, label maps, class folders and
    ``num_classes`` of the heads. Annotation files and folder lists are read whole, of images and
    label maps a sample. Data sets that are read in ways of their own are left to the libraries.
    Only the first process of each machine reads.

    Args:
        cfg: whole config, of a task whose library can be imported.
        phases: the loaders that will run, of ``"train"``, ``"val"``, ``"test"``.

    Raises:
        UsageError: one message with all that disagrees and the settings that mend it. What can
            run and is hardly meant is printed as a warning instead.
    """
    if not is_first_of_machine():
        return
    findings = Findings()
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        labels = {}
        for phase in phases:
            for dataset in datasets_of(cfg, phase):
                found = _check(cfg, dataset, findings)
                labels.setdefault(phase, found) if found else None
            _check_evaluator(cfg, phase, findings)
        if heads_of(cfg):
            _compare_phases(labels, findings)
    if findings.errors:
        lines = ["the config and its data disagree:"]
        lines += [f"    {text}" for text in (*findings.errors, *findings.warnings)]
        lines += findings.advice()
        lines.append("(--no-data-check starts without these checks)")
        raise UsageError("\n".join(lines))
    if findings.warnings:
        warn("\n         ".join([*findings.warnings, *findings.advice()]))


def _check(cfg: Config, dataset: DataSet, findings: Findings) -> list[str] | None:
    """Check one data set; the names of its labels in their order, if known."""
    faults = len(findings.errors)
    classes = read_classes(dataset, findings)
    if len(findings.errors) > faults:
        return None
    return {"mmdet": _check_mmdet, "mmseg": _check_mmseg, "mmpretrain": _check_mmpretrain}[
        cfg.default_scope
    ](cfg, dataset, classes, findings)


def _check_mmdet(
    cfg: Config, dataset: DataSet, classes: tuple[str, ...] | None, findings: Findings
) -> list[str] | None:
    from mmdet.datasets import CocoDataset, XMLDataset

    if not classes or dataset.cfg.get("return_classes"):  # labels are words there
        return None
    names = None
    if dataset.takes_from(CocoDataset) and dataset.takes_from(CocoDataset, "parse_data_info"):
        names = check_coco(dataset, classes, findings)
    elif dataset.takes_from(XMLDataset):
        names = list(classes)
    if names:
        where = f"{dataset.key} has"
        compare_heads(heads_of(cfg), len(names), where, dataset.phase == "train", findings)
    return names


def _check_mmseg(
    cfg: Config, dataset: DataSet, classes: tuple[str, ...] | None, findings: Findings
) -> list[str] | None:
    from mmseg.datasets import BaseSegDataset

    if not (isinstance(dataset.kind, type) and issubclass(dataset.kind, BaseSegDataset)):
        return None
    if not classes and dataset.phase != "train":
        _check_iou(cfg, dataset, findings)
    faults = len(findings.errors)
    check_segmentation(cfg, dataset, classes, findings)
    if classes and len(findings.errors) == faults:
        # Labels decide whether too few outputs are an error.
        compare_heads(heads_of(cfg), len(classes), f"{dataset.key} has", False, findings)
    return list(classes) if classes else None


def _check_iou(cfg: Config, dataset: DataSet, findings: Findings) -> None:
    """Mean IoU goes by class names; only predictions can be written without."""
    evaluator = cfg.get(f"{dataset.phase}_evaluator")
    for metric in evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]:
        kind = type_name(metric.get("type")) if isinstance(metric, dict) else None
        if kind == "IoUMetric" and not metric.get("format_only"):
            findings.error(f"{dataset.classes_key} is not set, and IoUMetric needs it")


def _check_mmpretrain(
    cfg: Config, dataset: DataSet, classes: tuple[str, ...] | None, findings: Findings
) -> list[str] | None:
    from mmpretrain.datasets import BaseDataset, CustomDataset, MultiLabelDataset

    heads = heads_of(cfg)
    if dataset.takes_from(CustomDataset) or dataset.kind in (BaseDataset, MultiLabelDataset):
        found = check_classification(dataset, findings)
    else:
        found = classes
    if not found:
        return None
    number = found if isinstance(found, int) else len(found)
    if not isinstance(found, int) or any(head.num_classes < number for head in heads):
        # Without names, labels that do not occur may have an output.
        compare_heads(heads, number, f"{dataset.key} has", dataset.phase == "train", findings)
    _check_topk(cfg, dataset.phase, findings)
    return None if isinstance(found, int) else list(found)


def _check_topk(cfg: Config, phase: str, findings: Findings) -> None:
    evaluator = cfg.get(f"{phase}_evaluator")
    many = isinstance(evaluator, (list, tuple))
    for index, metric in enumerate(evaluator if many else [evaluator]):
        if not isinstance(metric, dict) or type_name(metric.get("type")) != "Accuracy":
            continue
        topk = metric.get("topk", 1)
        topk = list(topk) if isinstance(topk, (list, tuple)) else [topk]
        for head in heads_of(cfg):
            if max(topk) > head.num_classes:
                key = f"{phase}_evaluator.{index}.topk" if many else f"{phase}_evaluator.topk"
                findings.error(f"{key} is {tuple(topk)}, {head.setting} is {head.num_classes}")
                findings.set(key, f"[{','.join(str(k) for k in topk if k <= head.num_classes)}]")


def _check_evaluator(cfg: Config, phase: str, findings: Findings) -> None:
    """The files of COCO metrics against those of the data sets."""
    evaluator = cfg.get(f"{phase}_evaluator")
    many = isinstance(evaluator, (list, tuple))
    files = [
        osp.join(dataset.cfg.get("data_root") or "", dataset.cfg.get("ann_file") or "")
        for dataset in datasets_of(cfg, phase)
        if is_local(dataset.cfg)
    ]
    if cfg.default_scope != "mmdet" or not files or not all(map(osp.isfile, files)):
        return
    for index, metric in enumerate(evaluator if many else [evaluator]):
        if not isinstance(metric, dict) or type_name(metric.get("type")) != "CocoMetric":
            continue
        path = metric.get("ann_file")
        if path and osp.isfile(path) and osp.abspath(path) not in map(osp.abspath, files):
            where = f"{phase}_evaluator.{index}" if many else f"{phase}_evaluator"
            check_evaluator(path, files, where, findings)


def _compare_phases(labels: dict[str, list[str]], findings: Findings) -> None:
    """Labels of training have to mean the same when the model is judged."""
    train = labels.get("train")
    for phase, names in labels.items():
        if train and names != train:
            findings.warn(
                f"{phase}_dataloader has other classes than train_dataloader: "
                f"{shorten(names)} instead of {shorten(train)}"
            )
