"""The demo of a library, for ``mmlocal demo``."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Demo:
    """A demo of a library: the config to train and the results to show.

    Args:
        name: argument of ``mmlocal demo``.
        title: the model, for the help of ``mmlocal demo``.
        tasks: tasks of the generated data set that the config needs.
        config: name of the config to train, on the data in ``data/shapes``.
        metrics: name in the summary -> name in the results of the test.
        losses: names in the training log of the values to plot -> words for the legend.
        curves: names in the validation log of the values to plot -> words for the legend.
        scale: factor that brings the metrics to [0, 1].
        size: argument of the generator with the size of the pictures in pixels: a number for a
            square, or height and width.
        sheets: whether :class:`mmlocal.engine.sheets.SheetHook` knows the samples. If not,
            ``predictions.jpg`` shows pictures of the config's visualizer, one below the other.
        references: name in the summary -> keys that lead to the figure of a trivial predictor, in
            the manifest of the generated data.
    """

    name: str
    title: str
    tasks: tuple[str, ...]
    config: str
    metrics: dict[str, str]
    losses: dict[str, str]
    curves: dict[str, str]
    scale: float = 1.0
    size: str = "image_size"
    sheets: bool = True
    references: dict[str, tuple[str, ...]] = field(default_factory=dict)
