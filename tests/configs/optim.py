"""What a config trains, and how fast."""

import torch
from mmengine import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import (
    PARAM_SCHEDULERS,
)
from torch import nn


def split_by_decay(cfg: Config, model: nn.Module) -> tuple[set[str], set[str]]:
    """Names of the parameters with the config's weight decay, and of those without any."""
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    rates = {
        id(parameter): group["weight_decay"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    decay = cfg.optim_wrapper.optimizer.weight_decay
    rates = {name: rates[id(parameter)] for name, parameter in model.named_parameters()}
    assert set(rates.values()) == {0.0, decay}
    return {n for n, r in rates.items() if r}, {n for n, r in rates.items() if not r}


def learning_rates(cfg: Config, steps: int) -> list[float]:
    """Learning rate in each step; all schedulers of the config have the same unit."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=cfg.optim_wrapper.optimizer.lr)
    schedulers = [
        PARAM_SCHEDULERS.build(scheduler, default_args=dict(optimizer=optimizer))
        for scheduler in cfg.param_scheduler
    ]
    assert len({scheduler.by_epoch for scheduler in schedulers}) == 1
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return rates
