"""Does a checkpoint fit the model? If not, MMEngine only logs it and goes on."""

from copy import copy

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, MMDistributedDataParallel, is_model_wrapper
from mmengine.runner import Runner, find_latest_checkpoint
from torch import nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from mmlocal.checkpoints import match_state_dict
from mmlocal.errors import UsageError
from mmlocal.registry import HOOKS


@HOOKS.register_module()
class CheckWeightsHook(Hook):
    """Refuse a checkpoint of another model, on every process, before any of it is used.

    Tests and resumed runs need every tensor of the model. A run that only starts from a checkpoint
    (``load_from``) may have other heads, so there one tensor that fits is enough. What only the
    checkpoint has is left to MMEngine's log.

    Args:
        whole: whether the checkpoint has to hold the whole model.

    Raises:
        UsageError: names the checkpoint and what does not fit; or ``--resume`` with a file that has
            weights only, or with tables of other windows, whose optimizer state does not fit.
    """

    # Before hooks that load weights themselves, as the hook of averaged weights does.
    priority = "VERY_HIGH"

    def __init__(self, whole: bool) -> None:
        self.whole = whole

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """The file is read, the model untouched."""
        path = runner.cfg.get("load_from") or find_latest_checkpoint(runner.work_dir)
        resumes = runner.cfg.get("resume")
        if resumes and not {"meta", "message_hub"} <= {*checkpoint}:
            raise UsageError(
                f"checkpoint {path!r} has no state of a training run to resume; to start from its "
                f"weights, use --cfg-options load_from={path}"
            )
        model = runner.model
        while isinstance(model, (MMDistributedDataParallel, BaseTTAModel)):
            model = model.module
        if is_model_wrapper(model):  # one that spreads its parameters over the processes
            return
        state_dict = copy(checkpoint.get("state_dict", checkpoint))  # with its versions of modules
        consume_prefix_in_state_dict_if_present(state_dict, "module.")
        _, report = match_state_dict(state_dict, model.state_dict())
        if resumes and report.resized:
            raise UsageError(
                f"checkpoint {path!r} cannot be resumed, as the state of the optimizer does not "
                f"fit the model of the config: {report}; to start from its weights, use "
                f"--cfg-options load_from={path}"
            )
        reason = None
        try:
            fits = _loads(model, state_dict)
        except ValueError as error:  # of a backbone, which takes no tensor of another shape
            fits, reason = False, error
        if self.whole and fits:
            return
        if self.whole or reason or not report.loaded:
            raise UsageError(
                f"checkpoint {path!r} does not fit the model of the config: {reason or report}"
            )


def _loads(model: nn.Module, state_dict: dict) -> bool:
    """Load what fits; whether that was everything. Modules may rename or resize as they load."""
    try:
        missing, _ = model.load_state_dict(state_dict, strict=False)
    except RuntimeError:  # other shapes
        return False
    return all(key.endswith("num_batches_tracked") for key in missing)
