"""Refuse a checkpoint that does not fit the model. MMEngine only logs that."""

from copy import copy

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, MMDistributedDataParallel, is_model_wrapper
from mmengine.runner import Runner, find_latest_checkpoint
from torch import nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from mmlocal.checkpoints import match_state_dict
from mmlocal.checkpoints.files import weights_of
from mmlocal.errors import UsageError
from mmlocal.registry import HOOKS


@HOOKS.register_module()
class CheckWeightsHook(Hook):
    """Refuse the checkpoint of another model, on every process, before the run uses it.

    Tests and resumed runs need every tensor of the model. A run that only starts from a checkpoint
    (``load_from``) may have other heads, so one tensor that fits is enough. The checkpoint may hold
    more tensors than the model; MMEngine logs them.

    Args:
        whole: whether the checkpoint has to hold the whole model.

    Raises:
        UsageError: the checkpoint does not fit the model. Or a run resumes from a file that holds
            only weights, or from tables of other windows, so that the state of the optimizer does
            not fit.
    """

    # Other hooks load weights too, such as MMEngine's EMAHook, so this hook comes before them.
    priority = "VERY_HIGH"

    def __init__(self, whole: bool) -> None:
        self.whole = whole

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check the checkpoint. MMEngine has read the file and not yet changed the model."""
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
        if is_model_wrapper(model):  # this wrapper spreads the parameters over the processes
            return
        try:
            # copy() keeps the versions of the modules, which dict() would drop.
            state_dict = copy(weights_of(checkpoint, path))
        except ValueError as error:
            raise UsageError(str(error)) from error
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
        except ValueError as error:  # a backbone refuses a tensor of another shape
            fits, reason = False, error
        if self.whole and fits:
            return
        if self.whole or reason or not report.loaded:
            raise UsageError(
                f"checkpoint {path!r} does not fit the model of the config: {reason or report}"
            )


def _loads(model: nn.Module, state_dict: dict) -> bool:
    """Load the tensors that fit, and say whether the model got all. Modules may resize them."""
    try:
        missing, _ = model.load_state_dict(state_dict, strict=False)
    except RuntimeError:  # other shapes
        return False
    return all(key.endswith("num_batches_tracked") for key in missing)
