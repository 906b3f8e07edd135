"""Show the attention of a model in a browser: drop a photograph, choose a layer, click a pixel."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.registry import VISUALIZERS, DefaultScope

from mmlocal.cli import program
from mmlocal.cli.arguments import add_config_arguments, number_of
from mmlocal.cli.building import build_errors
from mmlocal.cli.config import innermost_test_dataset, load_config
from mmlocal.cli.data.datasets import datasets_of, read_classes
from mmlocal.cli.data.report import Findings
from mmlocal.cli.explore_server import listen, serve
from mmlocal.cli.models import build_model, load_weights, move_model
from mmlocal.cli.network_inputs import load_input, pad_to_input, run_model
from mmlocal.cli.settings import check_settings
from mmlocal.cli.tool import run_tool, warn
from mmlocal.errors import UsageError
from mmlocal.libraries import library_of
from mmlocal.libraries.config_parts import type_name
from mmlocal.visualization.explorer import Explorer, Network

# Largest photographs by default, by whether the pipeline scales them to the network's liking.
_MAX_SIDE = {True: 1333, False: 512}
_LOCAL = ("127.0.0.1", "::1", "localhost")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=program("explore"), description=__doc__)
    add_config_arguments(parser)
    parser.add_argument("checkpoint", nargs="?", help="file of weights; default: random weights")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to serve at; 0.0.0.0 opens the page to your network (default: %(default)s)",
    )
    parser.add_argument(
        "--port",
        type=_port,
        default=7860,
        help="port to serve at; 0 for any free one (default: %(default)s)",
    )
    parser.add_argument(
        "--max-side",
        type=number_of("pixels"),
        metavar="PIXELS",
        help="scale photographs down to this width and height (default: "
        f"{_MAX_SIDE[True]} if the test pipeline scales pictures, else {_MAX_SIDE[False]})",
    )
    parser.add_argument("--device", help="device for the model; default: the GPU if there is one")
    return parser.parse_intermixed_args(argv)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 65535, got {text!r}")
    return int(text)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line ``argv``; default: the arguments of this process."""
    run_tool(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> None:
    arguments = vars(parse_args(argv))
    MMLogger.get_current_instance().setLevel("ERROR")  # it logs to stdout
    try:
        with tempfile.TemporaryDirectory(prefix="mmlocal-explore-") as folder:
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # the folder goes, too
            # Gradio reads these when it is imported and when it makes a page.
            os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=folder)
            explore(**arguments, folder=Path(folder))
    except KeyboardInterrupt:  # the usual end, for which a network that still runs has to stop
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def explore(
    config: str,
    checkpoint: str | None = None,
    *,
    folder: Path,
    host: str = "127.0.0.1",
    port: int = 7860,
    max_side: int | None = None,
    device: str | None = None,
    cfg_options: dict | None = None,
) -> None:
    """Serve a page that shows the attention of a model, until the process is interrupted.

    The page sends nothing to other hosts. Gradio keeps the pictures that visitors upload in its own
    temporary folder. From Python, its environment variable ``GRADIO_TEMP_DIR`` names another one.

    Args:
        config: path of a config file, or the name of a config of mmlocal.
        checkpoint: path of the weights; ``None`` for random weights, which the page says.
        folder: folder for the pictures that visitors may save. This function leaves them there.
        host: address to serve at. ``"0.0.0.0"`` opens the page to the network.
        port: port to serve at; 0 for any free one.
        max_side: photographs are scaled down to this width and height, in pixels; ``None`` for
            1333 if the test pipeline scales pictures, else 512.
        device: device for the model; ``None`` for the GPU if there is one.
        cfg_options: settings to merge into the config, with dotted keys.

    Raises:
        KeyboardInterrupt: the process was interrupted.
        UsageError: Gradio, the config, its library, the checkpoint or the device is missing; the
            checkpoint does not fit; the model has no attention to draw; or the address or the port
            cannot be used.
    """
    try:
        from mmlocal.cli.explore_page import application, build_page
    except ImportError as error:
        if (error.name or "").startswith("mmlocal"):
            raise
        raise UsageError(
            f"the page needs Gradio ({error}): pip install 'gradio>=6.31,<7'"
        ) from error

    with listen(host, port) as listener:
        cfg = load_config(config, cfg_options)
        library_of(cfg).require()
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            network = build_network(cfg, checkpoint, device)
            scales = any("resize" in name.lower() for name in network.steps)
            page = build_page(
                Explorer(network),
                title=Path(cfg.filename).stem,
                weights=Path(checkpoint).name if checkpoint else None,
                folder=folder,
                first_example=_example_for(cfg),
                max_side=max_side or _MAX_SIDE[scales],
            )
            number = listener.getsockname()[1]
            shown = f"[{host}]" if ":" in host else host
            if host not in _LOCAL:
                warn(f"whoever reaches {host} can use this page; it has no password")
            print(f"open http://{shown}:{number} in a browser; Ctrl-C ends it", flush=True)
            serve(application(page), listener)


def build_network(cfg: Config, checkpoint: str | None, device: str | None) -> Network:
    """Build the model of a config, with the ways of its library to handle pictures.

    Args:
        cfg: whole config, of a library that is imported. Its scope is the default scope.
        checkpoint: path of the weights; ``None`` for random weights.
        device: device for the model; ``None`` for the GPU if there is one.

    Raises:
        UsageError: the config lacks a part, the checkpoint or the device is missing, or the
            checkpoint does not fit.
    """
    check_settings(cfg, [])
    if not isinstance(cfg.get("test_dataloader"), dict):
        raise UsageError(
            f"config {cfg.filename} has no test_dataloader, whose pipeline prepares the pictures"
        )
    library = library_of(cfg)
    model = build_model(cfg)
    load_weights(model, checkpoint)
    move_model(model, device or get_device())
    with build_errors(cfg):
        settings = cfg.get("visualizer") or {"type": "Visualizer"}
        visualizer = VISUALIZERS.build(
            {**settings, "name": f"explore-{id(model)}", "vis_backends": None}
        )
    visualizer.dataset_meta = _metainfo(cfg)

    def draw(image: np.ndarray, sample: Any) -> np.ndarray:
        return library.draw_prediction(visualizer, image, sample.cpu())

    def pad(item: dict, image: np.ndarray) -> np.ndarray:
        return pad_to_input(model, item, image)

    def run(item: dict, name: str, records: Any) -> Any:
        return run_model(model, item, name, records)

    return Network(
        model,
        lambda path: load_input(cfg, path),
        pad,
        run,
        draw,
        steps=_steps(cfg),
        tasks=_tasks(cfg),
    )


def _metainfo(cfg: Config) -> dict:
    """Classes and colours of the test data, which need not be on this machine."""
    dataset, *_ = datasets_of(cfg, "test")
    built = dataset.build()
    if built is not None:
        return built.metainfo
    known = {
        **(getattr(dataset.kind, "METAINFO", None) or {}),
        **(dataset.cfg.get("metainfo") or {}),
    }
    return {**known, "classes": read_classes(dataset, Findings())}


def _steps(cfg: Config) -> list[str]:
    """Names of the steps of the test pipeline, without loading and packing."""
    names = [type_name(step["type"]) for step in innermost_test_dataset(cfg).pipeline]
    return [name for name in names if not name.startswith(("Load", "Pack", "MarkIgnored"))]


def _tasks(cfg: Config) -> list[str]:
    """Names of the tasks of a multi-task network, in the order of its head."""
    head = cfg.model.get("decode_head")
    tasks = head.get("tasks") if isinstance(head, dict) else None
    return list(tasks or ())


def _example_for(cfg: Config) -> str:
    """Name of the example that is like the data of a config."""
    dataset = innermost_test_dataset(cfg)
    if "shapes" not in str(dataset.get("data_root")):
        return "cat"
    demo = library_of(cfg).demo
    task = demo.tasks[0] if demo else ""
    return {"cls": "one shape", "multitask": "room"}.get(task, "shapes")
