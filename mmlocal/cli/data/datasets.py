"""Find the data sets of a config, with their keys and their classes."""

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
        key: key of the data set in the config, such as ``train_dataloader.dataset.datasets.0``.
        cfg: config of the data set.
        kind: class of the data set; ``None`` if it is unknown.
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
        """Build the data set without its transforms, and without loading annotations.

        Returns:
            The data set, or ``None`` if that fails. Then it fails in the run too, with the reason.
        """
        logger = MMLogger.get_current_instance()
        level = logger.level
        logger.setLevel(logging.ERROR)  # the run logs the same when it builds the data set
        try:
            return DATASETS.build({**self.cfg, "pipeline": [], "lazy_init": True})
        except Exception:
            return None
        finally:
            logger.setLevel(level)

    def takes_from(self, base: type, method: str = "load_data_list") -> bool:
        """Whether the class of the data set inherits a method from a base class unchanged.

        Args:
            base: class that defines the method.
            method: name of the method.
        """
        return (
            isinstance(self.kind, type)
            and issubclass(self.kind, base)
            and getattr(self.kind, method) is getattr(base, method)
        )


def leaf_datasets(dataset: object, key: str = "") -> Iterator[tuple[str, dict]]:
    """Yield the data set configs inside wrappers such as ``RepeatDataset``, each with its key.

    Args:
        dataset: config of a data set or of a wrapper.
        key: key of ``dataset`` in the config.
    """
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
            except Exception:  # an unknown scope; the builders report it
                kind = None
        found.append(DataSet(phase, key, part, kind))
    return found


def is_local(cfg: dict) -> bool:
    """Whether the config of a data set or of a loading step reads from this machine's disk."""
    backend = (cfg.get("backend_args") or {}).get("backend", "local")
    root = str(cfg.get("data_root") or "")
    return backend in ("local", "LocalBackend") and "://" not in root


def read_classes(dataset: DataSet, findings: Findings) -> tuple[str, ...] | None:
    """Read the class names that the libraries will use.

    A string instead of a sequence of names is a mistake, because the libraries take its characters
    for names.

    Args:
        dataset: data set of a config.
        findings: collects the mistakes.

    Returns:
        The names, or ``None`` if neither the config nor the class of the data set has them.
    """
    own = (dataset.cfg.get("metainfo") or {}).get("classes", dataset.cfg.get("classes"))
    names: Any = (
        own if own is not None else (getattr(dataset.kind, "METAINFO", None) or {}).get("classes")
    )
    if isinstance(names, str):
        if osp.isfile(names):
            return tuple(list_from_file(names))
        findings.error(
            f"{dataset.classes_key} is one string, {names!r}, and not a file of names; "
            f"give a sequence of names, with a comma after a single name: classes=({names!r},)"
        )
        findings.set_names(dataset.classes_key, [names])
        return None
    if names is None:
        return None
    if not isinstance(names, (list, tuple)) or not names:
        findings.error(f"{dataset.classes_key} must be a sequence of names, got {names!r}")
        return None
    return tuple(names)
