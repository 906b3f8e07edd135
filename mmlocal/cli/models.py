"""The model of a config, ready to run on an image."""

from copy import deepcopy

from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import nn

from mmlocal.checkpoints import load_file, match_state_dict
from mmlocal.checkpoints.files import weights_of
from mmlocal.cli.building import build_errors
from mmlocal.errors import UsageError
from mmlocal.libraries import library_of


def build_model(cfg: Config) -> BaseModel:
    """Build the model of a config in evaluation mode, so that a forward pass sees the whole image.

    Args:
        cfg: whole config, of a library that is imported.

    Raises:
        UsageError: the model cannot be built. The message names the key at fault.
    """
    model = deepcopy(cfg.model)
    if cfg.get("data_preprocessor"):  # as MMEngine's runner does
        model.setdefault("data_preprocessor", cfg.data_preprocessor)
    library_of(cfg).see_whole_image(model)
    with build_errors(cfg):
        return MODELS.build(model).eval()


def load_weights(model: BaseModel, checkpoint: str | None) -> None:
    """Load all weights of a model from a checkpoint.

    Args:
        model: model to load into.
        checkpoint: path of the checkpoint; ``None`` for random weights, with a printed note.

    Raises:
        UsageError: the checkpoint cannot be read, or does not fit the model.
    """
    if checkpoint is None:
        print("note: no checkpoint is given; the weights are random")
        model.init_weights()
        return
    try:
        source = weights_of(load_file(checkpoint), checkpoint)
    except (FileNotFoundError, ImportError, ValueError) as error:
        raise UsageError(str(error)) from error
    _, report = match_state_dict(source, model.state_dict())
    if report.missing or report.mismatched:
        raise UsageError(
            f"checkpoint {checkpoint!r} does not fit the model of the config: {report}"
        )
    model.load_state_dict(source, strict=False)  # the backbone resizes tables as it loads them


def move_model(model: nn.Module, device: str) -> None:
    """Move a model to a device.

    Args:
        model: model to move.
        device: name of the device, as for PyTorch.

    Raises:
        UsageError: the device is unknown or not here.
    """
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:  # an unknown device, or one that is not here
        reason = str(error).splitlines()[0]
        raise UsageError(f"{device!r} cannot be used: {reason}", argument="device") from error
