"""Loading of pretrained weights, which must fit, and resizing of tables in every load."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from mmengine.fileio import get_local_path
from mmengine.logging import MMLogger, print_log
from torch import Tensor, nn

from mmlocal.checkpoints import load_file, match_state_dict
from mmlocal.checkpoints.files import weights_of


def initialize_quietly(init_weights: Callable[[], None]) -> None:
    """Initialise a backbone without MMEngine's list of all parameters on the screen.

    MMEngine writes the list to the log file. Without such a file, as outside a training, it prints
    the list.

    Args:
        init_weights: the method of MMEngine's module.
    """
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(max(level, logging.WARNING))
    try:
        init_weights()
    finally:
        logger.setLevel(level)


def load_pretrained(
    module: nn.Module,
    checkpoint: str,
    prefix: str | None = None,
    map_location: str = "cpu",
    *,
    optional: str,
    antialias: bool,
    check_names: Callable[[Collection[str]], None],
) -> None:
    """Load a checkpoint into ``module``, or raise and leave the module as it is.

    Args:
        module: the module that takes the weights.
        checkpoint: path or URL of a file.
        prefix: name of ``module`` in the saved model; ``None`` if it was the whole model.
        map_location: device for the tensors, as :func:`torch.load` takes it.
        optional: regular expression of names that the checkpoint may lack.
        antialias: argument of :func:`mmlocal.checkpoints.match_state_dict`.
        check_names: function that raises ``ValueError`` for the names of another model.

    Raises:
        FileNotFoundError: the checkpoint does not exist.
        ValueError: the checkpoint is damaged or unsafe, or belongs to another architecture.
    """
    # MMEngine's CheckpointLoader would run the code that an unsafe file holds.
    with get_local_path(checkpoint) as path:
        content = load_file(path, map_location)
    state_dict = weights_of(content, checkpoint)
    if prefix:
        state_dict = _part(state_dict, prefix.rstrip(".") + ".")
    check_names(state_dict.keys())
    selected, report = match_state_dict(state_dict, module.state_dict(), optional, antialias)
    name = type(module).__name__
    if report.missing or report.mismatched:
        raise ValueError(
            f"init_cfg: checkpoint={checkpoint!r} with prefix={prefix!r} does not fit this "
            f"{name}: {report}. Check arch and prefix (full models need prefix='backbone.'); "
            "official checkpoints: mmlocal convert"
        )
    module.load_state_dict(selected, strict=False)
    print_log(f"{name}: {checkpoint}: {report}", logger="current")


def check_names_on_load(module: nn.Module) -> None:
    """Make every way of loading call ``module.check_names`` first, with names without a prefix.

    Args:
        module: a backbone.
    """
    module.register_load_state_dict_pre_hook(_check_names)


def _check_names(module: Any, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
    module.check_names(_part(state_dict, prefix).keys())


def resize_tables_on_load(module: nn.Module, antialias: bool) -> None:
    """Make every way of loading resize the tables that :func:`load_pretrained` resizes.

    MMEngine's ``load_from`` would only log a table of another size, and leave it random.

    Args:
        module: owner of the tables. They are resized when it, or a model around it, loads a state
            dict.
        antialias: argument of :func:`mmlocal.checkpoints.match_state_dict`.
    """
    module.register_load_state_dict_pre_hook(partial(_resize_tables, antialias=antialias))


def _resize_tables(
    module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *args: Any, antialias: bool
) -> None:
    selected, report = match_state_dict(
        _part(state_dict, prefix), dict(module.named_parameters()), antialias=antialias
    )
    name = type(module).__name__
    if report.mismatched:
        raise ValueError(
            f"{name} cannot take the checkpoint: {report}. Check the arguments of the model, or "
            "remove these tensors from the checkpoint to train them from scratch"
        )
    if report.resized:
        state_dict.update({prefix + key: value for key, value in selected.items()})
        print_log(f"{name}: resized to the model: {'; '.join(report.resized)}", logger="current")


def refuse_other_names_on_load(module: nn.Module) -> None:
    """Make every way of loading refuse a checkpoint whose blocks have other layers.

    Either all blocks have other names in the checkpoint, or a layer of a block has. MMEngine's
    ``load_from`` would leave the layers random, and log it.

    Args:
        module: a backbone, whose blocks are under ``stages``.
    """
    module.register_load_state_dict_pre_hook(_refuse_other_names)


def _refuse_other_names(
    module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *args: Any
) -> None:
    names = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
    theirs = _part(state_dict, prefix)
    unexpected = [name for name in theirs if name not in names]
    if unexpected and not any(name.startswith("stages.") for name in names.intersection(theirs)):
        raise ValueError(
            f"{type(module).__name__} cannot take the checkpoint: it holds no tensor of "
            f"{prefix}stages under the names of this model, but {len(unexpected)} others "
            f"({', '.join(unexpected[:3])}, ...). It may be of another model or of an older "
            "version; official checkpoints: mmlocal convert; to load the rest only, take these "
            "tensors out of the checkpoint"
        )
    # A block of another mixer has the names of the MLP and the norms, and others in the mixer.
    missing = sorted(module.state_dict().keys() - theirs.keys())
    for part in sorted(_layers_of(missing) & _layers_of(unexpected)):
        theirs_only, ours_only = (
            prefix + next(name for name in names if name.startswith(part))
            for names in (unexpected, missing)
        )
        raise ValueError(
            f"{type(module).__name__} cannot take the checkpoint: {prefix}{part[:-1]} is another "
            f"layer there, with {theirs_only} but without {ours_only}. Check the arguments of "
            "the model; to load the rest only, take these tensors out of the checkpoint"
        )


def _layers_of(names: Collection[str]) -> set[str]:
    """Find the layers that own the names, such as ``stages.0.blocks.1.attn.``."""
    layer = re.compile(r"(patch_embed|stages\.\d+\.(downsample|blocks\.\d+\.\w+))\.")
    found = (layer.match(name) for name in names)
    return {match[0] for match in found if match}


def _part(state_dict: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Select the entries whose names begin with ``prefix``, and remove it from the names."""
    return {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
