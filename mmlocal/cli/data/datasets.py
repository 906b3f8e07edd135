"""The data sets of a config: behind which key they are, and what their classes are."""

import logging
import os.path as osp
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.fileio import list_from_file
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS

from mmlocal.cli.data.report import Findings


@dataclass
class DataSet:
    """One data set of a config, without the wrappers around it.

    Args:
        phase: ``"train"``, ``"val"`` or ``"test"``.
        key: where it is in the config, such as ``train_dataloader.dataset.datasets.0``.
        cfg: its part of the config.
        kind: its class, ``None`` if unknown.
    """

    phase: str
    key: str
    cfg: dict
    kind: type | None = None

    @property
    def classes_key(self) -> str:
        """The setting that names the classes."""
        return f"{self.key}.classes" if "classes" in self.cfg else f"{self.key}.metainfo.classes"

    def build(self) -> BaseDataset | None:
        """The data set with its settings resolved and nothing loaded, without transforms.

        ``None`` if that fails. Building it for the run then fails too, and tells the reason.
        """
        logger = MMLogger.get_current_instance()
        level = logger.level
        logger.setLevel(logging.ERROR)  # the same notes come when the run builds it
        try:
            return DATASETS.build({**self.cfg, "pipeline": [], "lazy_init": True})
        except Exception:
            return None
        finally:
            logger.setLevel(level)

    def takes_from(self, base: type, method: str = "load_data_list") -> bool:
        """Whether the data is read as ``base`` reads it."""
        return (
            isinstance(self.kind, type)
            and issubclass(self.kind, base)
            and getattr(self.kind, method) is getattr(base, method)
        )


def leaf_datasets(dataset: object, key: str = "") -> Iterator[tuple[str, dict]]:
    """Data set configs inside wrappers such as ``RepeatDataset``, each with its key."""
    if not isinstance(dataset, dict):  # already built, or absent
        return
    if "dataset" in dataset:
        yield from leaf_datasets(dataset["dataset"], f"{key}.dataset")
    elif "datasets" in dataset:
        for index, child in enumerate(dataset["datasets"]):
            yield from leaf_datasets(child, f"{key}.datasets.{index}")
    else:
        yield key, dataset


def datasets_of(cfg: Config, phase: str) -> list[DataSet]:
    """All data sets of a phase; needs the default scope to be set."""
    loader = cfg.get(f"{phase}_dataloader") or {}
    found = []
    for key, part in leaf_datasets(loader.get("dataset"), f"{phase}_dataloader.dataset"):
        kind = part.get("type")
        if isinstance(kind, str):
            try:
                with DATASETS.switch_scope_and_registry(None) as registry:
                    kind = registry.get(kind)
            except Exception:  # a scope that is no library; building tells
                kind = None
        found.append(DataSet(phase, key, part, kind))
    return found


def is_local(cfg: dict) -> bool:
    """Whether a data set is read from this machine's file system."""
    backend = (cfg.get("backend_args") or {}).get("backend", "local")
    root = str(cfg.get("data_root") or "")
    return backend in ("local", "LocalBackend") and "://" not in root


def read_classes(dataset: DataSet, findings: Findings) -> tuple[str, ...] | None:
    """The class names that the libraries will use; ``None`` if they come from elsewhere.

    One string instead of a sequence of names is an error, as the libraries take its characters for
    names.
    """
    own = (dataset.cfg.get("metainfo") or {}).get("classes", dataset.cfg.get("classes"))
    names: Any = (
        own if own is not None else (getattr(dataset.kind, "METAINFO", None) or {}).get("classes")
    )
    if isinstance(names, str):
        if osp.isfile(names):
            return tuple(list_from_file(names))
        findings.error(
            f"{dataset.classes_key} is one string, {names!r}, and no file of names; "
            f"names are a sequence, with a comma after a single one: classes=({names!r},)"
        )
        findings.set_names(dataset.classes_key, [names])
        return None
    if names is None:
        return None
    if not isinstance(names, (list, tuple)) or not names:
        findings.error(f"{dataset.classes_key} must be a sequence of names, got {names!r}")
        return None
    return tuple(names)
