"""Write the model of a config as an ONNX file, and compare the file with the model."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from mmlocal.checkpoints import load_file
from mmlocal.checkpoints.files import meta_of
from mmlocal.cli import program
from mmlocal.cli.arguments import add_config_arguments, number_of
from mmlocal.cli.config import class_names, load_config
from mmlocal.cli.export_table import TABLE, table_lines, table_row
from mmlocal.cli.models import build_model, load_weights
from mmlocal.cli.settings import check_settings
from mmlocal.cli.tool import run_tool
from mmlocal.errors import UsageError
from mmlocal.export.onnx_file import Exported, ExportError, export_onnx, fits_windows
from mmlocal.libraries import library_of
from mmlocal.version import __version__

PARTS = ("model", "backbone", "neck")
_FITS = (
    "the model has fit_window=True, which makes windows as small as the map; for all sizes of "
    "images, set it to False by --cfg-options: model.backbone.fit_window=False for ELSA-Swin, "
    "model.backbone.mixers.fit_window=False for Swin"
)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=program("export-onnx"),
        description=__doc__,
        epilog="The input is image (B, 3, H, W), float32. A classifier returns scores, a segmentor "
        "logits in the size of the image. The file appears only if onnxruntime gets the numbers of "
        "PyTorch, for the example and for another size and batch.",
    )
    add_config_arguments(parser)
    parser.add_argument("checkpoint", nargs="?", help="file of weights; default: random weights")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the ONNX file to write")
    parser.add_argument(
        "--part",
        choices=PARTS,
        default="model",
        help="the whole model (default), its backbone, or its backbone and neck: a detector has "
        "to leave its heads out, because the shapes of its outputs depend on the data",
    )
    parser.add_argument(
        "--size",
        type=number_of("pixels"),
        nargs="+",
        metavar=("HEIGHT", "WIDTH"),
        help="size of the example, one number for a square; default: as in mmlocal flops",
    )
    parser.add_argument(
        "--batch-size",
        type=number_of("images"),
        default=2,
        help="images in the example (default: %(default)s)",
    )
    parser.add_argument("--opset", type=int, help="version of ONNX's operators; default: PyTorch's")
    parser.add_argument(
        "--static",
        action="store_true",
        help="fix batch, height and width to the example, for runtimes that need it; default: all "
        "are free, except for a model whose windows shrink to a small map, by fit_window=True: "
        "there, only the batch is free",
    )
    parser.add_argument(
        "--normalize",
        action="store_true",
        help="put mean and standard deviation into the graph, so that it takes pixels from 0 to "
        "255; default: the caller subtracts and divides, by the numbers in the file's metadata",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-4,
        help="largest error, relative to the largest value of an output (default: %(default)s)",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=10,
        help="timed runs of PyTorch and of onnxruntime, in turns (default: %(default)s); 0 for "
        "none",
    )
    parser.add_argument(
        "--table",
        action=_PrintTable,
        nargs=0,
        default=argparse.SUPPRESS,
        help="export full-size configs of all families, print a table, and exit",
    )
    args = parser.parse_args(argv)
    if args.out is None:
        parser.error("the following arguments are required: --out")
    if args.size and len(args.size) > 2:
        parser.error(f"--size takes a height and a width, got {len(args.size)} numbers")
    if args.size:
        args.size = (args.size[0], args.size[-1])
    return args


class _PrintTable(argparse.Action):
    """Print the table and exit, without a config, as ``--help`` does."""

    def __call__(self, parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
        _silence()
        run_tool(_print_table)
        parser.exit()


def _silence() -> None:
    MMLogger.get_current_instance().setLevel("ERROR")  # it logs to stdout


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line ``argv``; default: the arguments of this process."""
    run_tool(lambda: run(**vars(parse_args(argv))))


def run(config: str, out: Path, part: str = "model", **arguments: Any) -> None:
    """Call :func:`export` and print its results as a table.

    Args:
        config: path of a config file, or the name of a config of mmlocal.
        out: the file to write.
        part: ``"model"``, ``"backbone"`` or ``"neck"``.
        **arguments: other arguments of :func:`export`.

    Raises:
        UsageError: a mistake that the user can mend.
    """
    _silence()
    found = export(config, out, part=part, **arguments)
    print("\n".join(table_lines([table_row(config, part, found)])))
    for shape, error in found.errors.items():
        print(f"input {'x'.join(map(str, shape))}: largest error {error:.1e}")
    print(f"wrote {found.path}")


def export(
    config: str,
    out: Path,
    checkpoint: str | None = None,
    *,
    part: str = "model",
    size: tuple[int, int] | None = None,
    batch_size: int = 2,
    opset: int | None = None,
    static: bool = False,
    normalize: bool = False,
    tolerance: float = 1e-4,
    rounds: int = 10,
    cfg_options: dict | None = None,
) -> Exported:
    """Write the model of a config as an ONNX file, if onnxruntime gets the numbers of PyTorch.

    Args:
        config: path of a config file, or the name of a config of mmlocal.
        out: the file to write.
        checkpoint: path of the weights; ``None`` for random weights.
        part: ``"model"`` for the whole model, ``"backbone"``, or ``"neck"`` for backbone and neck.
        size: height and width of the example in pixels; ``None`` for the size of published FLOPs.
        batch_size: images in the example.
        opset: version of ONNX's operators; ``None`` for the default of PyTorch.
        static: whether batch, height and width are fixed to the example. If not, they are free,
            except that windows which shrink to a small map fix height and width. The comparison
            also covers another batch size and another size of images, if they are free.
        normalize: whether the graph subtracts the mean and divides by the standard deviation.
        tolerance: largest error, relative to the largest value of an output.
        rounds: timed runs of each side; 0 for none.
        cfg_options: settings to merge into the config, with dotted keys.

    Returns:
        The file, and the results of the comparison.

    Raises:
        UsageError: the config, its library, its checkpoint or the part is missing, the model
            cannot be exported, or the numbers differ.
    """
    if not tolerance > 0:
        raise UsageError(f"must be above 0, got {tolerance}", "tolerance")
    if rounds < 0:
        raise UsageError(f"must be at least 0, got {rounds}", "rounds")
    if out.is_dir():
        raise UsageError(f"{str(out)!r} is a folder; name a file, such as model.onnx", "out")
    cfg = load_config(config, cfg_options)
    library = library_of(cfg)
    library.require()
    check_settings(cfg, [])
    _check_folder(out)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        torch.manual_seed(0)
        model = build_model(cfg)
        load_weights(model, checkpoint)
        runner = _Part(model, part, cfg, normalize)
        free = () if static else _free(runner)
        try:
            height, width = size or library.default_shape(cfg)
        except UsageError as error:  # another command calls the argument "shape"
            raise UsageError(error.message, argument="size") from error
        image = _image(batch_size, height, width, normalize)
        others: list[Tensor] = []
        if "height" in free:  # neither a multiple of a stride, nor of a window
            other = height - height // 5 + 1 if height > 32 else height + 1  # at least a patch
            others = [_image(batch_size + 1, other, width + 3, normalize)]
        elif free:
            others = [_image(batch_size + 1, height, width, normalize)]
            print(f"note: only the batch is free, and images must have {height}x{width}: {_FITS}.")
        metadata = _metadata(cfg, model, checkpoint, part, normalize)
        try:
            return export_onnx(
                runner,
                image,
                out,
                free=free,
                opset=opset,
                others=others,
                tolerance=tolerance,
                metadata=metadata,
                rounds=rounds,
            )
        except (ExportError, OSError) as error:
            raise UsageError(str(error)) from error


def _check_folder(out: Path) -> None:
    """Make the folder of a file, and raise unless it takes files, before minutes of work."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise UsageError(f"{str(out)!r} cannot be written: {error.strerror}", "out") from error


def _free(runner: nn.Module) -> tuple[str, ...]:
    """Names of the dimensions of the input that can be free."""
    return ("batch",) if fits_windows(runner) else ("batch", "height", "width")


def _image(batch: int, height: int, width: int, raw: bool) -> Tensor:
    """Make images of random numbers, as the network gets them, or as pixels from 0 to 255."""
    image = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))
    return (image * 50 + 120).clamp(0, 255) if raw else image


class _Part(nn.Module):
    """A model, or a part of it, as a function of images.

    Args:
        model: the model of ``cfg``.
        part: see :func:`export`.
        cfg: whole config.
        normalize: whether to normalise the images first.
    """

    def __init__(self, model: nn.Module, part: str, cfg: Config, normalize: bool) -> None:
        super().__init__()
        if part == "model":
            library_of(cfg).predictor(model, cfg)  # refuses what depends on data
        elif getattr(model, part, None) is None:
            raise UsageError(f"the model of this config has no {part}", "part")
        self.model = model
        self.part = part
        self.cfg = cfg
        self.normalize = normalize and _numbers(model) is not None
        if normalize and not self.normalize:
            raise UsageError("the data preprocessor of this config has no mean", "normalize")

    def forward(self, image: Tensor) -> Any:
        if self.normalize:
            preprocessor: Any = self.model.data_preprocessor
            image = (image - preprocessor.mean) / preprocessor.std
        if self.part == "model":
            return library_of(self.cfg).predictor(self.model, self.cfg)(image)
        model: Any = self.model
        features = model.backbone(image)
        return features if self.part == "backbone" else model.neck(features)


def _numbers(model: nn.Module) -> dict[str, list[float]] | None:
    """Mean and standard deviation of each channel of the images, if the model has them."""
    preprocessor = getattr(model, "data_preprocessor", None)
    numbers = {}
    for name in ("mean", "std"):
        found = getattr(preprocessor, name, None)
        if not isinstance(found, Tensor):
            return None
        numbers[name] = [round(number, 6) for number in found.flatten().tolist()]
    return numbers


def _metadata(
    cfg: Config, model: nn.Module, checkpoint: str | None, part: str, normalize: bool
) -> dict[str, str]:
    """Texts for the file: where it comes from, how to make its input, and what its output is."""
    preprocessor = cfg.model.get("data_preprocessor") or cfg.get("data_preprocessor") or {}
    to_rgb = preprocessor.get("bgr_to_rgb") or preprocessor.get("to_rgb")
    texts = {
        "mmlocal.version": __version__,
        "mmlocal.config": Path(cfg.filename or "").stem,
        "mmlocal.checkpoint": Path(checkpoint).name if checkpoint else "random weights",
        "mmlocal.part": part,
        "mmlocal.channels": "RGB" if to_rgb else "BGR",
        "mmlocal.normalized_in_graph": json.dumps(normalize),
    }
    for name, numbers in (_numbers(model) or {}).items():
        texts[f"mmlocal.{name}"] = json.dumps(numbers)
    if classes := _classes(cfg, checkpoint):
        texts["mmlocal.classes"] = json.dumps(list(classes))
    return texts


def _classes(cfg: Config, checkpoint: str | None) -> Iterable[str] | None:
    """Names of the classes, from the checkpoint, the config or the class of the data set."""
    found = meta_of(load_file(checkpoint)).get("dataset_meta") if checkpoint else None
    names = found.get("classes") if isinstance(found, dict) else None
    return names if isinstance(names, (list, tuple, set)) else class_names(cfg)


def _print_table() -> None:
    """Export the configs of :data:`TABLE`, and print their rows as they come.

    Raises:
        UsageError: a config cannot be exported. The others are, first.
    """
    print("\n".join(table_lines([])), flush=True)
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "model.onnx")
        for config, part, size in TABLE:
            try:
                with contextlib.redirect_stdout(io.StringIO()):  # a note about random weights
                    found = export(config, out, part=part, size=size, batch_size=1, static=True)
            except UsageError as error:
                failures.append(f"{config}: {error.message}")
                continue
            print(table_lines([table_row(config, part, found)])[-1], flush=True)
    if failures:
        raise UsageError("; ".join(failures))
