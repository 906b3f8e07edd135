"""The cost of an operator in a network: time and memory per image."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from mmlocal.analysis.measure import peak_memory, summarise, time_interleaved
from mmlocal.cli.building import build_errors
from mmlocal.cli.models import build_model

ROUNDS = 10


def image_shape(cfg: Config) -> tuple[int, int]:
    """Height and width of the first test image, in pixels, as the model gets it.

    Args:
        cfg: whole config.
    """
    loader = _loader(cfg.test_dataloader)
    with DefaultScope.overwrite_default_scope(cfg.default_scope), build_errors(cfg):
        item = Runner.build_dataloader(loader).dataset[0]
    height, width = item["inputs"].shape[-2:]
    return height, width


def measure_costs(configs: Mapping[str, Config]) -> dict[str, dict]:
    """Measure time and memory of several models with a batch of the training data.

    The models take turns, so that all of them see the same state of the machine. The weights are
    random.

    Args:
        configs: whole configs by label, with the same data.

    Returns:
        Label -> ``inference`` and ``training``, each with ``ms`` and ``bytes`` of an image: its
        time, and the most memory that a step held at once, without weights and optimizer.
    """
    device = torch.device(get_device())
    cfg = next(iter(configs.values()))
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        batch = next(iter(Runner.build_dataloader(_loader(cfg.train_dataloader), seed=0)))
        models = {label: build_model(cfg).to(device) for label, cfg in configs.items()}
        optimizers = {}
        for label, model in models.items():
            wrapper = dict(type="OptimWrapper") | configs[label].optim_wrapper
            optimizers[label] = build_optim_wrapper(model, wrapper)

        def infer(model: Any) -> Any:
            with torch.no_grad():
                return model.eval().test_step(batch)

        def train(model: Any, optimizer: Any) -> Any:
            return model.train().train_step(batch, optimizer)

        calls: dict[str, dict[str, Callable[[], object]]] = dict(
            inference={label: partial(infer, model) for label, model in models.items()},
            training={label: partial(train, m, optimizers[label]) for label, m in models.items()},
        )
        images = len(batch["inputs"])
        measured: dict[str, dict] = {label: {} for label in configs}
        for mode, by_label in calls.items():
            for label, call in by_label.items():
                call()
                measured[label][mode] = dict(bytes=peak_memory(call, device) / images)
            for label, samples in time_interleaved(by_label, device, ROUNDS).items():
                measured[label][mode]["ms"] = summarise(samples)["median_ms"] / images
    return measured


def _loader(loader: dict) -> dict:
    """The config of a loader without worker processes."""
    return deepcopy(loader) | dict(num_workers=0, persistent_workers=False)
