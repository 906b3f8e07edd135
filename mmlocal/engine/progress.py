"""A hook that tells another process how far a run is."""

import json
import time
from pathlib import Path
from typing import Any

from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner

from mmlocal.files import write_whole
from mmlocal.registry import HOOKS

# Training losses to average, as MMEngine's log does.
_WINDOW = 50


@HOOKS.register_module()
class ProgressHook(Hook):
    """Write to a file, about once a second, how far training, validation or test is.

    The file holds one JSON object: ``phase`` (``"train"``, ``"val"`` or ``"test"``), ``done`` and
    ``total`` (iterations of the training, or images), ``seconds_left``, and for a training
    ``loss``, ``epoch`` and ``epochs``. Epochs count from 1, and are 0 for a run by iteration. A
    reader never sees half an object.

    Args:
        path: file to write. Its folder must exist.
        interval: seconds between two writes.
    """

    # It reads the values that other hooks put into the message hub.
    priority = "LOW"

    def __init__(self, path: str, interval: float = 1.0) -> None:
        self.path = Path(path)
        self.interval = interval
        self._written = 0.0
        self._start = (0.0, 0)  # time and iteration when the phase began
        self._training: dict[str, Any] = {}

    def before_train(self, runner: Runner) -> None:
        """Start the clock. A resumed run begins at a later iteration."""
        self._start = (time.monotonic(), runner.iter)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Write the state of the training."""
        start, first = self._start
        done, total = runner.iter + 1, runner.max_iters
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        losses = runner.message_hub.log_scalars.get("train/loss")
        self._training = dict(
            epoch=runner.epoch + 1 if by_epoch else 0,
            epochs=runner.max_epochs if by_epoch else 0,
            loss=float(losses.mean(_WINDOW)) if losses else None,
        )
        left = (time.monotonic() - start) / max(done - first, 1) * (total - done)
        self._write("train", done, total, left, self._training)

    def before_val_epoch(self, runner: Runner) -> None:
        """Show at once that a validation begins."""
        self._written = 0.0

    def before_test_epoch(self, runner: Runner) -> None:
        """Start the clock."""
        self._start = (time.monotonic(), 0)

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Write the state of the validation."""
        self._write_images("val", runner.val_dataloader, batch_idx, None)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Write the state of the test."""
        batches = batch_idx + 1
        left = (time.monotonic() - self._start[0]) / batches
        left *= len(runner.test_dataloader) - batches
        self._write_images("test", runner.test_dataloader, batch_idx, left)

    def _write_images(self, phase: str, loader: Any, batch_idx: int, left: float | None) -> None:
        total = len(loader.dataset)
        done = min(total, round((batch_idx + 1) / len(loader) * total))
        self._write(phase, done, total, left, self._training if phase == "val" else {})

    @master_only
    def _write(
        self, phase: str, done: int, total: int, left: float | None, more: dict[str, Any]
    ) -> None:
        now = time.monotonic()
        if done < total and now - self._written < self.interval:
            return
        self._written = now
        state = dict(phase=phase, done=done, total=total, seconds_left=left, **more)
        write_whole(self.path, json.dumps(state))
