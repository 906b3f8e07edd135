"""Everything that differs between libraries, with MMEngine's own behaviour as the default."""

from __future__ import annotations

import os
import os.path as osp
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmlocal import compatibility
from mmlocal.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from mmengine.config import Config, ConfigDict
    from mmengine.visualization import Visualizer
    from torch import nn

    from mmlocal.cli.data.datasets import DataSet
    from mmlocal.cli.data.report import Findings

_PICKLES = (".pkl", ".pickle")


@dataclass(frozen=True)
class Demo:
    """A demo of a library: the config to train and the results to show.

    Args:
        name: word for the command line; the generated data set writes its files under this name.
        config: name of a config for the data in ``data/shapes``.
        metrics: name in the summary -> name in the results of the test.
        losses: names in the training log, to plot.
        curves: names in the validation log, to plot.
        scale: factor that brings the metrics to [0, 1].
        columns: pictures per row of the contact sheet.
    """

    name: str
    config: str
    metrics: dict[str, str]
    losses: tuple[str, ...]
    curves: tuple[str, ...]
    scale: float = 1.0
    columns: int = 2


class Library:
    """A library whose configs mmlocal runs; this class by itself stands for plain MMEngine.

    A subclass changes whatever its library does in its own way. Register it with
    :func:`mmlocal.libraries.register_library`.

    Args:
        name: ``default_scope`` of the configs, if it is not the one of the class.
    """

    name = "mmengine"
    """``default_scope`` of the configs, and folder of the configs that come with mmlocal."""
    packages: tuple[str, ...] = ("torch", "numpy", "mmengine")
    """Packages that must be installed, in the order in which to install them."""
    modules: tuple[str, ...] = ()
    """Modules that must import, after the packages that are not among them."""
    arguments: frozenset[str] = frozenset()
    """Arguments of the commands that this library has and others lack, such as ``out_item``."""
    heads: tuple[str, ...] = ()
    """Keys below ``model`` of the heads whose ``num_classes`` counts the classes of the data."""
    odd_heads: frozenset[str] = frozenset()
    """Types among these heads that make labels of their own, and so count something else."""
    downloads: frozenset[str] = frozenset()
    """Data sets that download themselves, unless their config has ``download=False``."""
    demo: Demo | None = None

    def __init__(self, name: str | None = None) -> None:
        self.name = name or self.name

    # ------------------------------------------------------------------------- installation

    def missing(self) -> list[compatibility.Missing]:
        """List what the library lacks here, in the order in which to mend it.

        Imports the library if everything is installed.
        """
        return compatibility.missing(self.packages, self.modules)

    def why_not(self) -> str | None:
        """Say why configs of this library cannot run here and what mends it; else ``None``."""
        found = self.missing()
        return compatibility.explain(self.name, found) if found else None

    def require(self) -> None:
        """Import the library.

        Raises:
            UsageError: configs of this library cannot run here. The message says what mends it.
        """
        if reason := self.why_not():
            raise UsageError(f"this is a config for {self.name}. {reason}")

    # ------------------------------------------------------------------------------- config

    def takes_pretrained(self, backbone: dict) -> bool:
        """Whether the library itself reads ``model.pretrained`` if the model has ``backbone``."""
        return False

    def complete_loader(self, loader: ConfigDict, training: bool) -> None:
        """Add the settings of a data loader that the library's own tools add."""

    def refuse_foreign(self, **arguments: object) -> None:
        """Refuse arguments that only other libraries have.

        Args:
            **arguments: value by name; ``None`` if the user did not give it.

        Raises:
            UsageError: names the argument and the libraries that have it.
        """
        from mmlocal.libraries import LIBRARIES

        for argument, value in arguments.items():
            if value is not None and argument not in self.arguments:
                owners = [name for name, library in LIBRARIES.items()
                          if argument in library.arguments]  # fmt: skip
                raise UsageError(
                    f"applies to {' and '.join(owners)} configs, this one is for {self.name}",
                    argument,
                )

    # ------------------------------------------------------------------------- output of tests

    def check_output(self, out: str, out_item: str | None = None) -> None:
        """Check the name of the file or folder that a test shall write.

        Args:
            out: path to write to.
            out_item: ``"pred"`` or ``"metrics"``; ``None`` for predictions.

        Raises:
            UsageError: the library does not write such a file.
        """
        if not out.endswith(_PICKLES):
            raise UsageError(f"predictions are written as .pkl or .pickle, got {out!r}", "out")

    def write_predictions(self, cfg: Config, out: str) -> None:
        """Change a config so that its test writes the predictions to ``out``."""
        add_metric(cfg, {"type": "DumpResults", "out_file_path": out})

    def show_predictions(
        self,
        cfg: Config,
        show: bool,
        show_dir: str | None,
        wait_time: float,
        interval: int | None = None,
    ) -> None:
        """Change a config so that its test draws the predictions.

        Args:
            cfg: whole config.
            show: open a window.
            show_dir: folder for the pictures.
            wait_time: seconds for each picture in the window.
            interval: draw every n-th image.

        Raises:
            UsageError: the config has no hook that draws.
        """
        raise UsageError(
            f"a config for {self.name} has to set up its visualization hook itself",
            "show" if show else "show_dir",
        )

    def default_tta(self, pipeline: list[dict]) -> tuple[dict, list[dict]]:
        """Test-time augmentation for configs that define none.

        Args:
            pipeline: transforms of the test data.

        Returns:
            The config of the model around the model, and the pipeline.

        Raises:
            UsageError: the library has no default.
        """
        raise UsageError(
            f"{self.name} configs must define tta_model and tta_pipeline themselves", "tta"
        )

    # -------------------------------------------------------------------------------- pictures

    def draw(
        self,
        visualizer: Visualizer,
        image: np.ndarray,
        sample: Any,
        rescale_factor: float | None = None,
        **where: Any,
    ) -> None:
        """Draw a sample of a data set with its annotations, in a window or into a file.

        MMEngine knows no annotations, so here it is the image alone.

        Args:
            visualizer: built from the config.
            image: (H, W, 3), RGB, uint8.
            sample: data element of the sample.
            rescale_factor: enlarge the picture by this factor.
            **where: ``name`` (title), ``show`` (whether to open a window), ``wait_time`` (seconds
                until the window goes on) and ``out_file`` (path of the picture, or ``None``).
        """
        visualizer.set_image(image)
        if where["show"]:
            visualizer.show(win_name=where["name"], wait_time=where["wait_time"])
        if where["out_file"]:
            import cv2

            os.makedirs(osp.dirname(osp.abspath(where["out_file"])), exist_ok=True)
            cv2.imwrite(where["out_file"], visualizer.get_image()[..., ::-1])

    def see_whole_image(self, model: dict) -> None:
        """Change the config of a model so that one forward pass sees the whole image."""

    # --------------------------------------------------------------------------------- FLOPs

    def default_shape(self, cfg: Config) -> tuple[int, int]:
        """Height and width in pixels of the image for which the papers state FLOPs.

        Raises:
            UsageError: nothing in the config sets a size.
        """
        dataset = (cfg.get("test_dataloader") or {}).get("dataset") or {}
        for step in reversed(dataset.get("pipeline") or []):
            size = step.get("crop_size") or step.get("scale")
            if size:
                return (size, size) if isinstance(size, int) else (size[1], size[0])
        raise UsageError("must be given: no transform of the test pipeline sets a size", "shape")

    def inference(self, model: nn.Module, cfg: Config) -> Callable[[torch.Tensor], Any]:
        """A model at test time as a function of an image (1, C, H, W), for counting FLOPs.

        Args:
            model: built from ``cfg``, in evaluation mode.
            cfg: whole config.
        """
        return lambda image: model(image, mode="tensor")

    # ---------------------------------------------------------------------------------- data

    def counts_classes(self, model: dict) -> bool:
        """Whether the heads of a model have an output for each class of the data.

        Models that compare images with a text, or learn without labels, do not.
        """
        return True

    def default_prefix(self, dataset: dict) -> dict:
        """``data_prefix`` of a data set whose config has none."""
        return {}

    def layout_of(self, dataset: dict) -> tuple[str, str] | None:
        """Name of a public data set, and the tree of its files with ``{root}`` for the folder."""
        return None

    def check_dataset(
        self, cfg: Config, dataset: DataSet, classes: tuple[str, ...] | None, findings: Findings
    ) -> list[str] | None:
        """Compare the annotations of a data set with the config.

        Args:
            cfg: whole config.
            dataset: one data set of it.
            classes: class names that the config selects, if known.
            findings: where to say what disagrees.

        Returns:
            The names of the labels in their order, or ``None`` if they are unknown.
        """
        return list(classes) if classes else None

    def check_evaluator(self, cfg: Config, phase: str, findings: Findings) -> None:
        """Compare the files of an evaluator with the data sets that it judges.

        Args:
            cfg: whole config.
            phase: ``"train"``, ``"val"`` or ``"test"``.
            findings: where to say what disagrees.
        """


def type_name(kind: object) -> str:
    """Name without scope or module of a ``type`` in a config: a string or a class."""
    return str(getattr(kind, "__name__", kind)).rsplit(".", 1)[-1]


def metrics_of(cfg: Config, phase: str) -> dict[str, dict]:
    """Configs of the metrics of a phase by their keys in the config."""
    key = f"{phase}_evaluator"
    evaluator = cfg.get(key)
    if isinstance(evaluator, dict) and "metrics" in evaluator:
        key, evaluator = f"{key}.metrics", evaluator["metrics"]
    if isinstance(evaluator, (list, tuple)):
        metrics = {f"{key}.{index}": metric for index, metric in enumerate(evaluator)}
    else:
        metrics = {key: evaluator}
    return {key: metric for key, metric in metrics.items() if isinstance(metric, dict)}


def add_metric(cfg: Config, metric: dict) -> None:
    """Add a metric to those of the test."""
    owner, key = cfg, "test_evaluator"
    if isinstance(cfg[key], dict) and "metrics" in cfg[key]:
        owner, key = cfg[key], "metrics"
    metrics = owner[key]
    owner[key] = [*(metrics if isinstance(metrics, (list, tuple)) else [metrics]), metric]


def visualization_hook(cfg: Config) -> ConfigDict:
    """The config of the hook that draws predictions.

    Raises:
        UsageError: there is none.
    """
    hook = (cfg.get("default_hooks") or {}).get("visualization")
    if hook is None:
        raise UsageError("--show and --show-dir need default_hooks.visualization in the config")
    return hook


def with_flips(pipeline: list[dict], pack: dict) -> list[dict]:
    """A pipeline of test-time augmentation that takes each image and its mirror image.

    Args:
        pipeline: the steps before packing.
        pack: the step that packs a sample.
    """
    flips = [{"type": "RandomFlip", "prob": 1.0}, {"type": "RandomFlip", "prob": 0.0}]
    return [*deepcopy(pipeline), {"type": "TestTimeAug", "transforms": [flips, [pack]]}]
