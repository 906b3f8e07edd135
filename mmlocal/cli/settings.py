"""Check the settings of a run that MMEngine accepts silently or refuses late."""

from mmengine.config import Config

from mmlocal.errors import UsageError

# MMEngine needs all or none of the keys of a phase.
_NEEDED = {
    "train": ("train_dataloader", "train_cfg", "optim_wrapper"),
    "val": ("val_dataloader", "val_cfg", "val_evaluator"),
    "test": ("test_dataloader", "test_cfg", "test_evaluator"),
}
_OPTIONAL_LENGTHS = ("max_epochs", "max_iters", "val_interval")


def check_settings(cfg: Config, phases: list[str]) -> None:
    """Check that a config has all parts of some phases, and check their numbers.

    Args:
        cfg: whole config.
        phases: phases that will run, of ``"train"``, ``"val"`` and ``"test"``.

    Raises:
        UsageError: a key is missing or has a wrong value. The message names the key.
    """
    for key in ["model", *(key for phase in phases for key in _NEEDED[phase])]:
        if cfg.get(key) is None:
            raise UsageError(f"the config {cfg.filename} has no {key}")
        if not key.endswith("_evaluator") and not isinstance(cfg[key], dict):
            raise UsageError(f"{key} must be a dict, got {cfg[key]!r}")
    if not isinstance(cfg.get("load_from"), (str, type(None))):
        raise UsageError(f"load_from must be the path of a checkpoint, got {cfg.load_from!r}")
    if "train" in phases:
        for name in _OPTIONAL_LENGTHS:
            _check_number(cfg.train_cfg, "train_cfg", name, at_least=1)
    for phase in phases:
        loader, key = cfg[f"{phase}_dataloader"], f"{phase}_dataloader"
        _check_number(loader, key, "batch_size", at_least=1)
        _check_number(loader, key, "num_workers", at_least=0)


def _check_number(part: dict, key: str, name: str, at_least: int) -> None:
    value = part.get(name)
    whole = isinstance(value, (int, float)) and not isinstance(value, bool) and value % 1 == 0
    if value is not None and not (whole and value >= at_least):
        raise UsageError(
            f"{key}.{name} must be a whole number of at least {at_least}, got {value!r}"
        )
