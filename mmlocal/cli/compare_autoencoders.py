"""Train auto-encoders that differ in their layers only, and compare their reconstructions."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.runner import Runner

from mmlocal.cli import program
from mmlocal.cli.arguments import add_override_arguments
from mmlocal.cli.data import check_data
from mmlocal.cli.runner import complete_loaders, run_config, train_and_test
from mmlocal.cli.settings import check_settings
from mmlocal.cli.tool import run_tool
from mmlocal.errors import UsageError
from mmlocal.files import write_whole
from mmlocal.libraries.config_parts import metrics_of, type_name
from mmlocal.visualization import Metric, Panel, draw_sheet, plot_metrics, style_of

CONFIGS = (
    "qna_autoencoder_conv_bilinear_shapes",
    "qna_autoencoder_conv_transposed_shapes",
    "qna_autoencoder_qna_uqna_shapes",
)
PREFIX = "reconstruction/"
METRICS = {
    "l1": Metric(f"{PREFIX}l1", "L1: mean absolute error", "lower"),
    "mse": Metric(f"{PREFIX}mse", "MSE: mean squared error", "lower"),
    "psnr": Metric(f"{PREFIX}psnr", "PSNR in dB", "higher"),
    "ssim": Metric(f"{PREFIX}ssim", "SSIM: structural similarity", "higher"),
}
PHASES = ["train", "val", "test"]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=program("compare-autoencoders"), description=__doc__)
    parser.add_argument(
        "configs",
        nargs="*",
        default=CONFIGS,
        help="config files or names of configs; default: the three configs on generated shapes",
    )
    parser.add_argument(
        "--work-dir",
        type=Path,
        default=Path("work_dirs/autoencoders"),
        help="folder for the results (default: %(default)s)",
    )
    parser.add_argument(
        "--lrs",
        type=float,
        nargs="+",
        default=(),
        help="learning rates to try for each config; the one with the lowest L1 error counts",
    )
    parser.add_argument(
        "--num-pictures", type=int, default=8, help="images in a row of pictures (default: 8)"
    )
    add_override_arguments(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line ``argv``; default: the arguments of this process."""
    run_tool(lambda: print(format_comparison(compare_autoencoders(**vars(parse_args(argv))))))


def compare_autoencoders(
    work_dir: Path,
    configs: Sequence[str] = CONFIGS,
    lrs: Sequence[float] = (),
    cfg_options: dict | None = None,
    num_pictures: int = 8,
) -> dict:
    """Train and test several auto-encoders, one after another.

    Writes to ``work_dir``:

    - a folder for each run;
    - ``reconstructions.jpg``: the first row shows images of the test set. Each other row shows the
      reconstructions of one config, with its best learning rate;
    - ``curves.png``: L1, MSE, PSNR and SSIM on the validation images during the training, with the
      best run of each config in each plot;
    - ``summary.json``: the returned dict.

    Args:
        work_dir: folder for the results.
        configs: paths of config files, or names of configs of mmlocal.
        lrs: learning rates to try for each config, as the paper does. Without any, each config
            keeps the learning rate that it sets.
        cfg_options: settings to merge into every config, with dotted keys.
        num_pictures: images in a row of pictures.

    Returns:
        The contents of ``summary.json``. ``runs`` holds one dict for each run, with ``config``,
        ``lr``, ``parameters``, ``iterations``, ``seconds`` and the metrics. ``best`` maps each
        config to the index in ``runs`` of its run with the lowest L1 error.

    Raises:
        UsageError: a config, its library or its data is missing, or ``num_pictures`` is below 1.
    """
    if num_pictures < 1:
        raise UsageError(f"must be at least 1, got {num_pictures}", argument="num_pictures")
    work_dir.mkdir(parents=True, exist_ok=True)
    runs: list[dict] = []
    best: dict[str, int] = {}  # config -> index in runs
    scalars: list[Path] = []
    for config in configs:
        for lr in lrs or (None,):
            options = dict(cfg_options or {})
            if lr is not None:
                options["optim_wrapper.optimizer.lr"] = lr
            folder = work_dir / f"{len(runs):02d}"
            run, runner = _run(config, options, folder)
            runs.append(run)
            scalars.append(Path(runner.log_dir) / "vis_data" / "scalars.json")
            _draw(runner, folder, num_pictures)
            if config not in best or run["l1"] < runs[best[config]]["l1"]:
                best[config] = len(runs) - 1

    names = _names({config: runs[index]["decoder"] for config, index in best.items()})
    folders = {config: work_dir / f"{index:02d}" for config, index in best.items()}
    rows = [("image", _panels(next(iter(folders.values())), "image", num_pictures))]
    rows += [
        (style_of(names[config]).words, _panels(folder, "pred", num_pictures))
        for config, folder in folders.items()
    ]
    draw_sheet(rows, work_dir / "reconstructions.jpg", width=1000)
    curves = {names[config]: [scalars[index]] for config, index in best.items()}
    title = "Auto-encoders on validation images, by the upsampling of their decoder"
    plot_metrics(curves, work_dir / "curves.png", list(METRICS.values()), title)
    summary = dict(runs=runs, best=best)
    write_whole(work_dir / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def format_comparison(summary: dict) -> str:
    """A table for the terminal; the best run of each config is marked."""
    lines = [
        f"{'config':<40} {'lr':>8} {'params':>9} {'L1':>7} {'MSE':>7} {'PSNR':>6} {'SSIM':>6} s"
    ]
    for index, run in enumerate(summary["runs"]):
        name = run["config"] + ("*" if index in summary["best"].values() else "")
        lines.append(
            f"{name:<40} {run['lr']:8.1e} {run['parameters']:9,d} {run['l1']:7.4f} "
            f"{run['mse']:7.4f} {run['psnr']:6.2f} {run['ssim']:6.3f} {run['seconds']:.0f}"
        )
    return "\n".join(lines)


def _run(config: str, options: dict, folder: Path) -> tuple[dict, Runner]:
    cfg = run_config(config, options, str(folder))
    complete_loaders(cfg, training=True)
    check_settings(cfg, PHASES)
    kinds = {type_name(metric.get("type")) for metric in metrics_of(cfg, "test").values()}
    if "ReconstructionMetric" not in kinds:
        raise UsageError(f"config {config!r} has no ReconstructionMetric in its test_evaluator")
    check_data(cfg, PHASES)
    runner, seconds, results = train_and_test(cfg)
    run = dict(
        config=config,
        decoder=cfg.model.get("decoder"),
        lr=cfg.optim_wrapper.optimizer.lr,
        parameters=sum(parameter.numel() for parameter in runner.model.parameters()),
        iterations=runner.iter,
        seconds=round(seconds, 1),
    )
    return run | {name: results[PREFIX + name] for name in METRICS}, runner


def _draw(runner: Runner, folder: Path, number: int) -> None:
    """Write the first test images and their reconstructions."""
    dataset = runner.test_loop.dataloader.dataset
    items = [dataset[index] for index in range(min(number, len(dataset)))]
    batch = {key: [item[key] for item in items] for key in items[0]}
    with torch.no_grad():
        samples = runner.model.test_step(batch)
    for index, sample in enumerate(samples):
        for name in ("image", "pred"):
            image = sample.gt_image if name == "image" else sample.pred_image
            pixels = image.permute(1, 2, 0).mul(255).round().byte().cpu().numpy()
            path = folder / f"{name}_{index:02d}.png"
            cv2.imwrite(str(path), np.ascontiguousarray(pixels[..., ::-1]))


def _names(decoders: dict[str, str | None]) -> dict[str, str]:
    """Name each config by its decoder, or by itself if its decoder is not the only one."""
    found = list(decoders.values())
    return {
        config: decoder if decoder and found.count(decoder) == 1 else config
        for config, decoder in decoders.items()
    }


def _panels(folder: Path, name: str, number: int) -> list[Panel]:
    paths = sorted(folder.glob(f"{name}_*.png"))[:number]
    found = [cv2.imread(str(path)) for path in paths]
    return [
        Panel(np.ascontiguousarray(pixels[..., ::-1])) for pixels in found if pixels is not None
    ]
