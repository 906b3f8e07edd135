"""The base class of all libraries, with the behaviour of plain MMEngine."""

from __future__ import annotations

import os
import os.path as osp
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mmlocal import compatibility
from mmlocal.errors import UsageError
from mmlocal.libraries.config_parts import add_metric
from mmlocal.libraries.demo import Demo

if TYPE_CHECKING:
    import numpy as np
    import torch
    from mmengine.config import Config, ConfigDict
    from mmengine.visualization import Visualizer
    from torch import nn

    from mmlocal.cli.data.datasets import DataSet
    from mmlocal.cli.data.report import Findings

_PICKLES = (".pkl", ".pickle")


class Library:
    """A library whose configs mmlocal runs; this class by itself stands for plain MMEngine.

    A subclass overrides the methods in which its library differs from plain MMEngine. Register it
    with :func:`mmlocal.libraries.register_library`.

    Args:
        name: ``default_scope`` of the configs; ``None`` for the ``name`` of the class.
    """

    name = "mmengine"
    """Usual ``default_scope`` of the configs, and folder of the configs that come with mmlocal."""
    packages: tuple[str, ...] = ("torch", "numpy", "mmengine")
    """Packages that must be installed, in the order in which to install them."""
    modules: tuple[str, ...] = ()
    """Modules that must import, in this order. Other ``packages`` are imported before them."""
    arguments: frozenset[str] = frozenset()
    """Arguments of the commands that not all libraries have, such as ``out_item``."""
    heads: tuple[str, ...] = ()
    """Names of heads in ``model`` that have one output for each class of the data."""
    odd_heads: frozenset[str] = frozenset()
    """Types of ``heads`` that make their own labels, so that ``num_classes`` differs."""
    downloads: frozenset[str] = frozenset()
    """Types of data sets that download themselves, unless the config has ``download=False``."""
    label_loaders: frozenset[str] = frozenset({"LoadAnnotations"})
    """Types of transforms that read labels."""
    demo: Demo | None = None
    """Demo of this library for ``mmlocal demo``, if there is one."""

    def __init__(self, name: str | None = None) -> None:
        self.name = name or self.name

    def owns(self, cfg: Config) -> bool:
        """Whether a config is for this library.

        :func:`mmlocal.libraries.library_of` asks the library first that was registered last. So a
        library built on another one can take configs with the ``default_scope`` of the other one.

        Args:
            cfg: whole config.
        """
        return cfg.get("default_scope") == self.name

    # ------------------------------------------------------------------------- installation

    def missing(self) -> list[compatibility.Missing]:
        """List the things that the library lacks here, in the order in which to mend them.

        This imports the library if everything is installed.
        """
        return compatibility.missing(self.packages, self.modules)

    def why_not(self) -> str | None:
        """Why configs of this library cannot run here, and how to mend it; ``None`` if they can."""
        found = self.missing()
        return compatibility.explain(self.name, found) if found else None

    def require(self) -> None:
        """Import the library.

        Raises:
            UsageError: configs of this library cannot run here. The message says how to mend it.
        """
        if reason := self.why_not():
            raise UsageError(f"this is a config for {self.name}. {reason}")

    # ------------------------------------------------------------------------------- config

    def takes_pretrained(self, backbone: dict) -> bool:
        """Whether the library itself reads ``model.pretrained``.

        Args:
            backbone: config of the backbone of the model.
        """
        return False

    def complete_loader(self, loader: ConfigDict, training: bool) -> None:
        """Add the settings that the library's own tools add to the config of a data loader.

        Args:
            loader: config of the data loader; this method changes it.
            training: whether the run trains.
        """

    def refuse_foreign(self, **arguments: object) -> None:
        """Refuse arguments that only other libraries have.

        Args:
            **arguments: name and value of each argument; ``None`` if the user did not give it.

        Raises:
            UsageError: the user gave an argument that this library does not have. The message names
                the libraries that have it.
        """
        from mmlocal.libraries.registry import LIBRARIES

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
        """Check the name of the file or folder for the results of a test.

        Args:
            out: path to write to.
            out_item: ``"metrics"`` to write metrics, ``"pred"`` or ``None`` to write predictions.

        Raises:
            UsageError: the library does not write such a file.
        """
        if not out.endswith(_PICKLES):
            raise UsageError(f"predictions are written as .pkl or .pickle, got {out!r}", "out")

    def write_predictions(self, cfg: Config, out: str) -> None:
        """Change a config so that its test writes the predictions.

        Args:
            cfg: whole config; this method changes it.
            out: file or folder to write to.
        """
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
            cfg: whole config; this method changes it.
            show: open a window.
            show_dir: folder for the pictures; ``None`` writes none.
            wait_time: seconds for each picture in the window.
            interval: draw every n-th image; ``None`` for the default of the library.

        Raises:
            UsageError: the config has no hook that draws predictions.
        """
        raise UsageError(
            f"a config for {self.name} has to set up its visualization hook itself",
            "show" if show else "show_dir",
        )

    def default_tta(self, pipeline: list[dict]) -> tuple[dict, list[dict]]:
        """Settings of test-time augmentation for configs that have none.

        Args:
            pipeline: transforms of the test data.

        Returns:
            ``tta_model`` and ``tta_pipeline``.

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

        Plain MMEngine has no annotations, so this class draws the image alone.

        Args:
            visualizer: visualizer of the config.
            image: image of the sample, (H, W, 3), RGB, uint8.
            sample: data element with the annotations.
            rescale_factor: factor to enlarge the picture by; ``None`` keeps its size.
            **where: ``name`` (title), ``show`` (whether to open a window), ``wait_time`` (seconds
                to show the picture) and ``out_file`` (path of the picture, or ``None``).
        """
        visualizer.set_image(image)
        if where["show"]:
            visualizer.show(win_name=where["name"], wait_time=where["wait_time"])
        if where["out_file"]:
            import cv2

            os.makedirs(osp.dirname(osp.abspath(where["out_file"])), exist_ok=True)
            cv2.imwrite(where["out_file"], visualizer.get_image()[..., ::-1])

    def draw_prediction(self, visualizer: Visualizer, image: np.ndarray, sample: Any) -> np.ndarray:
        """Draw the prediction for an image: (height, width, 3), RGB, uint8.

        Args:
            visualizer: visualizer of the config.
            image: image in the size that the pipeline loaded, (H, W, 3), RGB, uint8.
            sample: data element with the prediction, on the CPU.
        """
        visualizer.set_image(image)  # for a visualizer that draws nothing
        visualizer.add_datasample("prediction", image, sample, draw_gt=False)
        return visualizer.get_image()

    def see_whole_image(self, model: dict) -> None:
        """Change the config of a model so that one forward pass sees the whole image.

        Args:
            model: config of the model; this method changes it.
        """

    # --------------------------------------------------------------------------------- FLOPs

    def default_shape(self, cfg: Config) -> tuple[int, int]:
        """Height and width in pixels of the image for which papers publish FLOPs.

        Args:
            cfg: whole config.

        Raises:
            UsageError: no transform of the test pipeline sets a size.
        """
        dataset = (cfg.get("test_dataloader") or {}).get("dataset") or {}
        for step in reversed(dataset.get("pipeline") or []):
            size = step.get("crop_size") or step.get("scale")
            if str(step.get("type")).startswith("torchvision/") and step.get("size"):
                size = step["size"]
                size = size if isinstance(size, int) else size[::-1]  # there, the height is first
            if size:
                return (size, size) if isinstance(size, int) else (size[1], size[0])
        raise UsageError("must be given: no transform of the test pipeline sets a size", "shape")

    def inference(self, model: nn.Module, cfg: Config) -> Callable[[torch.Tensor], Any]:
        """Wrap a model in a function of an image (1, C, H, W), to count the FLOPs of inference.

        Args:
            model: model of ``cfg``, in evaluation mode.
            cfg: whole config.
        """
        return lambda image: model(image, mode="tensor")

    def predictor(self, model: nn.Module, cfg: Config) -> Callable[[torch.Tensor], Any]:
        """Wrap a model in a function of images (B, C, H, W), to export it.

        Args:
            model: model of ``cfg``, in evaluation mode.
            cfg: whole config.

        Raises:
            UsageError: the shapes of the predictions depend on the data.
        """
        return self.inference(model, cfg)

    # ---------------------------------------------------------------------------------- data

    def counts_classes(self, model: dict) -> bool:
        """Whether the heads of a model have one output for each class of the data.

        Models that compare images with text or learn without labels do not.

        Args:
            model: config of the model.
        """
        return True

    def default_prefix(self, dataset: dict) -> dict:
        """Default of ``data_prefix`` of a data set.

        Args:
            dataset: config of the data set.
        """
        return {}

    def layout_of(self, dataset: dict) -> tuple[str, str] | None:
        """The layout of the files of a public data set.

        Args:
            dataset: config of the data set.

        Returns:
            Name of the data set, and the tree of its files with ``{root}`` for its folder. ``None``
            if it is not a known data set.
        """
        return None

    def check_dataset(
        self, cfg: Config, dataset: DataSet, classes: tuple[str, ...] | None, findings: Findings
    ) -> list[str] | None:
        """Compare the annotations of a data set with the config.

        Args:
            cfg: whole config.
            dataset: one data set of the config.
            classes: class names that the config selects, if known.
            findings: collects the mistakes.

        Returns:
            The names of the labels in their order, or ``None`` if they are unknown.
        """
        return list(classes) if classes else None

    def check_evaluator(self, cfg: Config, phase: str, findings: Findings) -> None:
        """Compare the files of an evaluator with the data sets of its phase.

        Args:
            cfg: whole config.
            phase: ``"train"``, ``"val"`` or ``"test"``.
            findings: collects the mistakes.
        """
