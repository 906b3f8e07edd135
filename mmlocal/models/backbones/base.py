"""Shared parts of all backbones: freezing, and pretrained weights that must fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from mmengine.fileio import get_local_path
from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.model.weight_init import update_init_info
from torch import Tensor, nn

from mmlocal.checkpoints import load_file, match_state_dict
from mmlocal.layers.checks import Unscripted, is_int, is_sequence


class LocalBackbone(Unscripted, BaseModule):
    """Base of the backbones.

    ``init_cfg=dict(type='Pretrained', checkpoint=..., prefix=...)`` raises unless the checkpoint
    holds every parameter of the backbone with the right shape; only the output norms
    ``norm{i}``, which a classification model lacks, may be missing. MMEngine by itself would log
    a warning and train from a partly random start.

    However a checkpoint is loaded, position tables of other windows or images are resized, and a
    tensor of another shape that is no such table raises.
    """

    # Names that a checkpoint need not hold, as a regular expression.
    _optional_keys = r"norm\d+\."
    # Of the interpolation of tables whose size differs.
    _antialias = False

    def __init__(self, init_cfg: dict | list[dict] | None = None) -> None:
        super().__init__(init_cfg=init_cfg)
        resize_tables_on_load(self, self._antialias)

    def init_weights(self) -> None:
        """Initialise by ``init_cfg``.

        Raises:
            FileNotFoundError: the checkpoint does not exist.
            ValueError: the checkpoint is damaged, unsafe, or of another architecture.
        """
        configs = [self.init_cfg] if isinstance(self.init_cfg, dict) else self.init_cfg or []
        pretrained = [cfg for cfg in configs if cfg["type"] == "Pretrained"]
        if self.is_init or not pretrained:
            super().init_weights()
            return
        self._load_pretrained(**{k: v for k, v in pretrained[-1].items() if k != "type"})
        self.is_init = True

    def _load_pretrained(
        self, checkpoint: str, prefix: str | None = None, map_location: str = "cpu"
    ) -> None:
        # Not by MMEngine's CheckpointLoader, which ends up running what an unsafe file holds.
        with get_local_path(checkpoint) as path:
            content = load_file(path, map_location)
        state_dict = content.get("state_dict", content)
        if prefix:
            prefix = prefix.rstrip(".") + "."
            state_dict = {
                key[len(prefix) :]: value
                for key, value in state_dict.items()
                if key.startswith(prefix)
            }
        selected, report = match_state_dict(
            state_dict, self.state_dict(), self._optional_keys, self._antialias
        )
        if report.missing or report.mismatched:
            raise ValueError(
                f"init_cfg: checkpoint={checkpoint!r} with prefix={prefix!r} does not fit this "
                f"{type(self).__name__}: {report}. Check arch and prefix (full models need "
                "prefix='backbone.'); official checkpoints: mmlocal convert"
            )
        self.load_state_dict(selected, strict=False)
        if hasattr(self, "_params_init_info"):
            update_init_info(self, init_info=f"PretrainedInit: load from {checkpoint}")
        print_log(f"{type(self).__name__}: {checkpoint}: {report}", logger="current")


def resize_tables_on_load(module: nn.Module, antialias: bool) -> None:
    """Make every way of loading resize what ``init_cfg=dict(type='Pretrained')`` resizes.

    MMEngine's ``load_from`` would leave a table of another size random, and log it.

    Args:
        module: whose tables to resize, when it or a model around it loads a state dict.
        antialias: of :func:`mmlocal.checkpoints.match_state_dict`.
    """
    module.register_load_state_dict_pre_hook(partial(_resize_tables, antialias=antialias))


def _resize_tables(
    module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *args: Any, antialias: bool
) -> None:
    theirs = {
        key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)
    }
    selected, report = match_state_dict(
        theirs, dict(module.named_parameters()), antialias=antialias
    )
    name = type(module).__name__
    if report.mismatched:
        raise ValueError(
            f"{name} cannot take the checkpoint: {report}. Check the arguments of the model; leave "
            "out of the checkpoint what shall start anew"
        )
    if report.resized:
        state_dict.update({prefix + key: value for key, value in selected.items()})
        print_log(f"{name}: resized to the model: {'; '.join(report.resized)}", logger="current")


def resolve_arch(
    arch: str | Mapping[str, Any],
    zoo: Mapping[str, dict],
    required: set[str],
    optional: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Look up ``arch`` by name, or check the keys of one that is written out.

    Args:
        arch: name or dict.
        zoo: architectures by name.
        required: keys that a dict must have.
        optional: keys that it may have, with their defaults.

    Raises:
        ValueError: unknown name; keys that lack or are too many.
        TypeError: neither name nor dict.
    """
    optional = optional or {}
    if isinstance(arch, str):
        if arch not in zoo:
            raise ValueError(f"arch must be one of {sorted(zoo)}, got {arch!r}")
        arch = zoo[arch]
    if not isinstance(arch, Mapping):
        raise TypeError(f"arch must be a name or a dict, got {arch!r}")
    if not required <= set(arch) <= required | set(optional):
        raise ValueError(
            f"arch must have the keys {sorted(required)} and may have {sorted(optional)}, "
            f"got {sorted(arch)}"
        )
    return {**optional, **arch}


def check_stages(
    out_indices: Sequence[int], frozen_stages: int, num_stages: int, negative: bool = False
) -> None:
    """Check what names stages (or, in a plain transformer, layers).

    Args:
        out_indices: stages to return.
        frozen_stages: number of frozen ones, or -1.
        num_stages: how many there are.
        negative: whether ``out_indices`` may count from the last one.

    Raises:
        ValueError: ``out_indices`` or ``frozen_stages`` is out of range, or a stage named twice.
    """
    first = -num_stages if negative else 0
    if (
        not is_sequence(out_indices)
        or not out_indices
        or not all(is_int(i) and first <= i < num_stages for i in out_indices)
    ):
        raise ValueError(
            f"out_indices must name stages out of {first} to {num_stages - 1}, got {out_indices!r}"
        )
    if len({i % num_stages for i in out_indices}) < len(out_indices):
        raise ValueError(f"out_indices must name no stage twice, got {out_indices}")
    if not is_int(frozen_stages) or not -1 <= frozen_stages <= num_stages:
        raise ValueError(f"frozen_stages must be -1 to {num_stages}, got {frozen_stages!r}")


def freeze(module: nn.Module) -> None:
    """Put ``module`` in eval mode and take its parameters out of training."""
    module.eval()
    for parameter in module.parameters():
        parameter.requires_grad = False
