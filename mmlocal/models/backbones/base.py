"""What all backbones share: freezing, and pretrained weights that must fit."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.fileio import get_local_path
from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.model.weight_init import update_init_info
from torch import nn

from mmlocal.checkpoints import load_file, match_state_dict


class LocalBackbone(BaseModule):
    """Base of the backbones.

    ``init_cfg=dict(type='Pretrained', checkpoint=..., prefix=...)`` raises unless the checkpoint
    holds every parameter of the backbone with the right shape; only the output norms
    ``norm{i}``, which a classification model lacks, may be missing. MMEngine by itself would log
    a warning and train from a partly random start.
    """

    # Names that a checkpoint need not hold, as a regular expression.
    _optional_keys = r"norm\d+\."
    # Of the interpolation of tables whose size differs.
    _antialias = False

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
        not isinstance(out_indices, Sequence)
        or not out_indices
        or not all(first <= i < num_stages for i in out_indices)
    ):
        raise ValueError(
            f"out_indices must name stages out of {first} to {num_stages - 1}, got {out_indices}"
        )
    if len({i % num_stages for i in out_indices}) < len(out_indices):
        raise ValueError(f"out_indices must name no stage twice, got {out_indices}")
    if not -1 <= frozen_stages <= num_stages:
        raise ValueError(f"frozen_stages must be -1 to {num_stages}, got {frozen_stages}")


def check_positive(**arguments: int | Sequence[int]) -> None:
    """Raise ``ValueError`` unless each argument is a positive integer, or consists of such."""
    for name, value in arguments.items():
        numbers = value if isinstance(value, Sequence) else [value]
        if not numbers or not all(isinstance(n, int) and n > 0 for n in numbers):
            raise ValueError(f"{name} must be a positive integer (or several), got {value!r}")


def check_drop_path(drop_path_rate: float) -> None:
    """Raise ``ValueError`` unless the rate of the last block is in [0, 1)."""
    if not 0 <= drop_path_rate < 1:
        raise ValueError(f"drop_path_rate must be in [0, 1), got {drop_path_rate}")


def freeze(module: nn.Module) -> None:
    """Put ``module`` in eval mode and take its parameters out of training."""
    module.eval()
    for parameter in module.parameters():
        parameter.requires_grad = False
