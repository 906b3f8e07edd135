"""Check that classes, annotations and heads agree, and report everything in one message."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.config import Config
from mmengine.registry import DefaultScope

from mmlocal.cli.data.datasets import DataSet, datasets_of, read_classes
from mmlocal.cli.data.heads import heads_of
from mmlocal.cli.data.report import Findings, shorten
from mmlocal.cli.tool import is_first_of_machine, warn
from mmlocal.errors import UsageError
from mmlocal.libraries import library_of


def check_annotations(cfg: Config, phases: Sequence[str]) -> None:
    """Read the annotations of some phases and compare them with the config.

    The check covers class names, ``metainfo``, annotation files, label maps, class folders and
    ``num_classes`` of the heads. It reads whole annotation files and folder lists, but only a
    sample of images and label maps. It skips data sets that override how their library reads data.
    Only the first process of each machine does the check.

    A disagreement that a run survives is printed as a warning.

    Args:
        cfg: whole config; its library must be importable.
        phases: phases that will run, of ``"train"``, ``"val"`` and ``"test"``.

    Raises:
        UsageError: a run would fail. The message lists everything that disagrees, and the settings
            that mend it.
    """
    if not is_first_of_machine():
        return
    findings = Findings()
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        labels: dict[str, list[str]] = {}
        for phase in phases:
            for dataset in datasets_of(cfg, phase):
                found = _check(cfg, dataset, findings)
                labels.setdefault(phase, found) if found else None
            library_of(cfg).check_evaluator(cfg, phase, findings)
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
    """Check one data set, and return the names of its labels in their order, if known."""
    faults = len(findings.errors)
    classes = read_classes(dataset, findings)
    if len(findings.errors) > faults:
        return None
    return library_of(cfg).check_dataset(cfg, dataset, classes, findings)


def _compare_phases(labels: dict[str, list[str]], findings: Findings) -> None:
    """Check that each label means the same in training and in evaluation."""
    train = labels.get("train")
    for phase, names in labels.items():
        if train and names != train:
            findings.warn(
                f"{phase}_dataloader has other classes than train_dataloader: "
                f"{shorten(names)} instead of {shorten(train)}"
            )
