"""A hook for configs under test, imported by the training process."""

import json
from pathlib import Path

from mmengine.dist import all_reduce, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class MeanLosses(Hook):
    """Write the losses of all iterations, each the mean over the processes."""

    def before_run(self, runner):
        self.losses = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        loss = outputs["loss"].detach().clone()
        all_reduce(loss, "mean")
        self.losses.append(loss.item())

    def after_train(self, runner):
        if is_main_process():
            Path(runner.work_dir, "losses.json").write_text(json.dumps(self.losses))
