"""The images that are drawn, and the pictures of each, for the command that draws attention."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.model import BaseModel

from mmlocal.cli.config import class_names
from mmlocal.errors import UsageError
from mmlocal.visualization.attention import LayerAttention
from mmlocal.visualization.attention_figures import draw_layer, draw_overview, representatives
from mmlocal.visualization.class_maps import class_maps, draw_class_maps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Pictures over the photograph are JPEG files, the others PNG files.
KINDS = {
    "overview": ".jpg",
    "received": ".jpg",
    "kernels": ".png",
    "ghost": ".png",
    "tiles": ".png",
    "class": ".jpg",
}
_OF_LAYERS = ("received", "kernels", "ghost", "tiles")
_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
_MOST_ROWS = 12  # of an overview


def split_paths(paths: list[str]) -> tuple[str | None, list[str]]:
    """Tell the checkpoint from the images: the first of several paths, unless it is an image.

    Args:
        paths: the paths of a command line.

    Returns:
        Path of the checkpoint or ``None``, and paths of images and folders.
    """
    if len(paths) < 2 or _is_image(paths[0]) or Path(paths[0]).is_dir():
        return None, paths
    return paths[0], paths[1:]


def _is_image(path: str) -> bool:
    return path.lower().endswith(_SUFFIXES)


def find_images(paths: Sequence[str]) -> list[str]:
    """Replace folders by the images in them, in the order of their names.

    Args:
        paths: paths of images and folders.

    Raises:
        UsageError: a folder has no image.
    """
    files = []
    for path in paths:
        found = [path]
        if Path(path).is_dir():
            found = sorted(str(file) for file in Path(path).iterdir() if _is_image(file.name))
        if not found:
            raise UsageError(f"folder {path!r} has no image ({', '.join(_SUFFIXES)})")
        files += found
    return files


def stems_of(files: Sequence[str]) -> list[str]:
    """Make a name for the pictures of each file, so that no two are the same.

    Args:
        files: paths of images.
    """
    stems = [Path(file).stem for file in files]
    if len({*stems}) == len(stems):
        return stems
    stems = [Path(file).name.replace(".", "_") for file in files]
    counts = Counter(stems)
    return [
        f"{stem}_{number}" if counts[stem] > 1 else stem for number, stem in enumerate(stems, 1)
    ]


def overview(
    attention: Mapping[str, LayerAttention],
    choose: bool,
    title: str,
    image: np.ndarray,
    input_size: tuple[int, int],
    heads: int,
    mean: bool,
) -> Iterator[tuple[str, Figure]]:
    """Draw the overview of an image.

    Args:
        attention: attention by the names of layers.
        choose: whether to draw one layer of each run of like layers.
        title: config, weights and image.
        image: ``(h, w, 3)`` uint8 in RGB.
        input_size: height and width of the network's input, in pixels.
        heads: largest number of heads to draw.
        mean: whether to divide by the sum that even attention would give.

    Yields:
        ``"overview"`` and the figure, if a layer did run.
    """
    notes = representatives(attention) if choose else dict.fromkeys(attention, "")
    rows = {name: attention[name] for name in list(notes)[:_MOST_ROWS]}
    if len(rows) < len(notes):
        print(f"note: the overview shows {len(rows)} of {len(notes)} layers; choose with --layers")
    if rows:
        title = f"Attention that each position receives: {title}"
        yield "overview", draw_overview(rows, notes, title, image, input_size, heads, mean)


def pictures_of_layers(
    attention: Mapping[str, LayerAttention],
    kinds: Sequence[str],
    heads: int,
    image: np.ndarray,
    input_size: tuple[int, int],
    center: tuple[int, int] | None,
    mean: bool,
    note: str,
) -> Iterator[tuple[str, Figure]]:
    """Draw the pictures of each layer, one at a time, because figures are large.

    Args:
        attention: attention by the names of layers.
        kinds: kinds of pictures. Pictures of whole images are left out.
        heads: largest number of heads to draw.
        image: ``(h, w, 3)`` uint8 in RGB.
        input_size: height and width of the network's input, in pixels.
        center: y and x of the centre of the enlarged region, or ``None``.
        mean: whether to divide by the sum that even attention would give.
        note: config, weights and image.

    Yields:
        Name of the layer with the kind, such as ``"backbone.stages.0.blocks.0.attn_kernels"``, and
        the figure.
    """
    for name, layer in attention.items():
        for kind in _OF_LAYERS:
            drawn = draw_layer(name, layer, [kind] if kind in kinds else [], heads, image,
                               input_size, center, mean, note)  # fmt: skip
            for figure in drawn.values():
                yield f"{name}_{kind}", figure


def class_picture(
    model: BaseModel,
    cfg: Config,
    item: dict,
    title: str,
    image: np.ndarray,
    input_size: tuple[int, int],
) -> Iterator[tuple[str, Figure]]:
    """Draw the positions that speak for the best classes.

    Args:
        model: the model, in evaluation mode.
        cfg: whole config.
        item: item of :func:`~mmlocal.cli.network_inputs.load_input`.
        title: config, weights and image.
        image: ``(h, w, 3)`` uint8 in RGB.
        input_size: height and width of the network's input, in pixels.

    Yields:
        ``"class"`` and the figure.

    Raises:
        UsageError: the model is no classifier or segmentor.
    """
    inputs = model.data_preprocessor(pseudo_collate([item]), False)["inputs"]
    try:
        maps = class_maps(model, inputs)
    except ValueError as error:
        raise UsageError(str(error), argument="kinds") from error
    title = f"Positions that speak for a class: {title}"
    yield "class", draw_class_maps(maps, class_names(cfg), title, image, input_size)
