"""Train one network with different mixers and seeds, and compare accuracy, size, time and memory.

An interrupted comparison goes on with the same command, and finished runs are not repeated.
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from torch import nn

from mmlocal.analysis import Complexity, build_to_count, count_model
from mmlocal.cli import program
from mmlocal.cli.arguments import add_override_arguments, number_of
from mmlocal.cli.building import build_errors
from mmlocal.cli.config import load_config
from mmlocal.cli.generated_data import DATA_ROOT, prepare_shapes
from mmlocal.cli.operator_costs import image_shape, measure_costs
from mmlocal.cli.operator_list import choose_operators
from mmlocal.cli.resume import find_last_checkpoint
from mmlocal.cli.runner import check_phases, train_and_test
from mmlocal.cli.settings import check_settings
from mmlocal.cli.tool import run_tool
from mmlocal.cli.training import config_for_training
from mmlocal.errors import UsageError
from mmlocal.files import write_whole
from mmlocal.libraries import library_of
from mmlocal.visualization import Contender, plot_contenders

CONFIG = "local_swin_nano_shapes"
METRIC = "accuracy/top1"
# These settings say where or how a run was started, and not what is trained.
_NO_SETTINGS = ("work_dir", "launcher", "resume", "experiment_name")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=program("compare-operators"), description=__doc__)
    parser.add_argument(
        "operators",
        nargs="*",
        help='mixers to compare, such as ELSA, "QnA(kernel_size=7)", "small=ELSA(kernel_size=3)" '
        'or, with one mixer per stage, "[ELSA, ELSA, ELSA, WindowAttention]", or labels of the '
        "operators that the config lists; default: all operators of the config",
    )
    parser.add_argument(
        "--config",
        default=CONFIG,
        help="config file or name of a config of mmlocal, with a backbone that takes mixers "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--seeds",
        type=number_of("seeds"),
        default=3,
        help="runs of each operator, with the seeds 0, 1, ... (default: %(default)s)",
    )
    parser.add_argument(
        "--work-dir",
        type=Path,
        default=Path("work_dirs/operators"),
        help="folder for runs and results (default: %(default)s)",
    )
    parser.add_argument(
        "--metric", default=METRIC, help="metric of the test to compare (default: %(default)s)"
    )
    add_override_arguments(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line ``argv``; default: the arguments of this process."""
    run_tool(lambda: _compare_and_print(vars(parse_args(argv))))


def _compare_and_print(arguments: dict) -> None:
    try:
        print(format_operators(compare_operators(**arguments)))
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


def compare_operators(
    work_dir: Path,
    operators: Sequence[str] = (),
    config: str = CONFIG,
    seeds: int = 3,
    metric: str = METRIC,
    cfg_options: dict | None = None,
) -> dict:
    """Train and test one network with several mixers, with several seeds each.

    Everything but the mixers and the seed is equal in all runs. When all runs are done, this
    process measures time and memory on this machine: in turns, and with nothing else running in it.

    Writes to ``work_dir``:

    - ``<operator>/seed_<seed>/``: the folder of a run, with ``settings.json`` and, when it is done,
      ``result.json``. A run without the latter goes on from its last checkpoint;
    - ``operators.png``: metric with error bars, time of inference and memory of training;
    - ``operators.md``: the table;
    - ``summary.json``: the returned dict.

    Generates ``data/shapes`` for a config that needs it, unless it is there.

    Args:
        work_dir: folder for runs and results.
        operators: operators, as :func:`~mmlocal.cli.operator_list.choose_operators` reads them;
            without any, all that the config lists in ``operators``.
        config: path of a config file, or the name of a config of mmlocal. The backbone must take
            ``mixers``.
        seeds: runs of each operator.
        metric: metric of the test to compare.
        cfg_options: settings to merge into the config, with dotted keys.

    Returns:
        The contents of ``summary.json``. ``operators`` holds one dict per operator, the best mean
        first: ``label``, ``mixers``, ``values`` of the metric by seed, ``mean``, ``std`` (``None``
        for one seed), ``parameters``, ``macs`` of one image, and ``inference`` and ``training``
        with ``ms`` and ``bytes`` of an image.

    Raises:
        UsageError: an operator, the config or its data is missing or wrong, ``work_dir`` holds
            runs with other settings, or the test does not give the metric.
    """
    base = load_config(config, cfg_options)
    library_of(base).require()
    mixers = choose_operators(operators, base.pop("operators", {}))
    models = {label: _on_shapes_alone(base, label, mixers[label]) for label in mixers}
    cfg = _complete(base, config, cfg_options, work_dir)
    image = image_shape(cfg)
    costs = {label: _count(model, cfg, label, image) for label, model in models.items()}

    # All operators get their first seed before any gets its second.
    runs = {
        (label, seed): _config_of_run(cfg, label, mixers[label], seed, work_dir)
        for seed in range(seeds)
        for label in mixers
    }
    for run in runs.values():
        _check_folder(run)
    values: dict[str, list[float]] = {label: [] for label in mixers}
    for number, ((label, seed), run) in enumerate(runs.items(), 1):
        title = f"[{number}/{len(runs)}] {label}, seed {seed}"
        print(title, flush=True)
        found = _finish(run)
        if metric not in found:
            raise UsageError(f"must be one of {', '.join(found)}, got {metric!r}", "metric")
        values[label].append(found[metric])
        print(f"{title}: {metric} {found[metric]:.2f}", flush=True)

    print("measuring time and memory", flush=True)
    measured = measure_costs({label: runs[label, 0] for label in mixers})
    rows = [
        dict(
            label=label,
            mixers=mixers[label],
            values=values[label],
            mean=statistics.mean(values[label]),
            std=statistics.stdev(values[label]) if seeds > 1 else None,
            parameters=costs[label].parameters,
            macs=costs[label].total_macs,
            **measured[label],
        )
        for label in mixers
    ]
    rows.sort(key=lambda row: -row["mean"])
    summary = dict(
        config=config,
        metric=metric,
        seeds=seeds,
        image=list(image),
        batch_size=cfg.train_dataloader.batch_size,
        device=get_device(),
        threads=torch.get_num_threads(),
        operators=rows,
    )
    draw_operators(summary, work_dir / "operators.png")
    write_whole(work_dir / "operators.md", format_operators(summary) + "\n")
    write_whole(work_dir / "summary.json", json.dumps(summary, indent=2, default=str) + "\n")
    return summary


def draw_operators(summary: dict, out: Path) -> None:
    """Draw metric, time and memory of each operator in one row.

    Args:
        summary: result of :func:`compare_operators`.
        out: picture to write.
    """
    rows, seeds = summary["operators"], summary["seeds"]
    contenders = [
        Contender(
            row["label"],
            row["values"],
            row["mean"],
            row["std"],
            {
                "inference,\nms per image": row["inference"]["ms"],
                "training,\nMiB per image": row["training"]["bytes"] / 2**20,
            },
        )
        for row in rows
    ]
    bars = f"mean and standard deviation of {seeds} seeds" if seeds > 1 else "one seed"
    height, width = summary["image"]
    title = f"{len(rows)} operators in one network, on images of {height}x{width} pixels"
    plot_contenders(contenders, out, f"{summary['metric']}\n({bars})", title)


def format_operators(summary: dict) -> str:
    """Format the result of :func:`compare_operators` as a Markdown table.

    Args:
        summary: result of :func:`compare_operators`.
    """
    titles = (
        "operator",
        summary["metric"],
        "lowest to highest",
        "parameters",
        "MMACs",
        "inference ms",
        "training ms",
        "inference MiB",
        "training MiB",
    )
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for row in summary["operators"]:
        spread = "" if row["std"] is None else f" ± {row['std']:.2f}"
        cells = [
            row["label"],
            f"{row['mean']:.2f}{spread}",
            f"{min(row['values']):.2f} to {max(row['values']):.2f}",
            f"{row['parameters']:,}",
            f"{row['macs'] / 1e6:.2f}",
            *(f"{row[mode]['ms']:.2f}" for mode in ("inference", "training")),
            *(f"{row[mode]['bytes'] / 2**20:.2f}" for mode in ("inference", "training")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _with_mixers(cfg: Config, mixers: Any) -> Config:
    backbone = (cfg.get("model") or {}).get("backbone")
    if not isinstance(backbone, dict):
        raise UsageError(f"{cfg.filename} has no model.backbone to take the operators", "config")
    cfg = deepcopy(cfg)
    cfg.model.backbone.mixers = mixers
    return cfg


def _on_shapes_alone(cfg: Config, label: str, mixers: Any) -> nn.Module:
    """Build the model of an operator without values, so that a mistake shows before any run."""
    cfg = _with_mixers(cfg, mixers)
    try:
        with build_errors(cfg):
            return build_to_count(cfg)
    except UsageError as error:
        raise UsageError(f"operator {label!r}: {error}") from error


def _count(model: nn.Module, cfg: Config, label: str, shape: tuple[int, int]) -> Complexity:
    try:
        return count_model(model, cfg, shape)
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"operator {label!r} cannot map an image: {error}") from error


def _complete(base: Config, config: str, cfg_options: dict | None, work_dir: Path) -> Config:
    """The config of all runs, with its data in place and checked."""
    check_settings(base, ["train", "test"])
    if Path(base.train_dataloader.dataset.get("data_root") or "") == DATA_ROOT / "cls":
        prepare_shapes(("cls",))
    cfg = config_for_training(config, cfg_options, work_dir=str(work_dir))
    cfg.pop("operators", None)
    check_phases(cfg, ["test"])
    return cfg


def _config_of_run(cfg: Config, label: str, mixers: Any, seed: int, work_dir: Path) -> Config:
    cfg = _with_mixers(cfg, mixers)
    name = re.sub(r"[^\w.+-]+", "_", label).strip("_")
    cfg.work_dir = str(work_dir / name / f"seed_{seed}")
    cfg.experiment_name = f"{name}_seed_{seed}"
    cfg.randomness = dict(cfg.get("randomness") or {}, seed=seed)
    return cfg


def _settings(cfg: Config) -> dict:
    """Gather all settings that decide the result of a run, as JSON holds them."""
    settings = {key: value for key, value in cfg.to_dict().items() if key not in _NO_SETTINGS}
    return json.loads(json.dumps(settings, default=str))


def _check_folder(cfg: Config) -> None:
    """Accept a missing or empty folder, and the folder of a run with the same settings.

    Raises:
        UsageError: the folder holds something else.
    """
    folder = Path(cfg.work_dir)
    file, settings = folder / "settings.json", _settings(cfg)
    if not file.exists():
        if folder.exists() and any(folder.iterdir()):
            raise UsageError(f"{folder} is not empty and has no settings.json", "work_dir")
        return
    old, new = (dict(_leaves(tree)) for tree in (json.loads(file.read_text()), settings))
    for key in [*old, *new]:
        if old.get(key) != new.get(key):
            raise UsageError(
                f"{folder} holds a run with other settings: {key} is {old.get(key)!r} there and "
                f"{new.get(key)!r} now; take another folder or remove this one",
                "work_dir",
            )


def _leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """All values of nested dicts and lists by their dotted keys."""
    if isinstance(node, Mapping) or (isinstance(node, list) and node):
        pairs = node.items() if isinstance(node, Mapping) else enumerate(node)
        for name, child in pairs:
            yield from _leaves(child, f"{key}.{name}" if key else str(name))
    else:
        yield key, node


def _finish(cfg: Config) -> dict[str, float]:
    """The metrics of a run: it starts, goes on, or is done already."""
    folder = Path(cfg.work_dir)
    result = folder / "result.json"
    if result.exists():
        return json.loads(result.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "settings.json", json.dumps(_settings(cfg), indent=2) + "\n")
    resume = (folder / "last_checkpoint").exists()
    if resume:
        cfg = deepcopy(cfg)
        cfg.resume, cfg.load_from = True, find_last_checkpoint(str(folder))
    _, _, metrics = train_and_test(cfg, whole=resume)
    metrics = {name: float(value) for name, value in metrics.items()}
    write_whole(result, json.dumps(metrics, indent=2) + "\n")
    return metrics
