"""Settings of a run that MMEngine would take without a word, or refuse late."""

from typing import Any

from mmengine.config import Config, ConfigDict

from mmlocal.errors import UsageError

# Keys that belong together: MMEngine wants all or none of them.
_NEEDED = {
    "train": ("train_dataloader", "train_cfg", "optim_wrapper"),
    "val": ("val_dataloader", "val_cfg", "val_evaluator"),
    "test": ("test_dataloader", "test_cfg", "test_evaluator"),
}
_OPTIONAL_LENGTHS = ("max_epochs", "max_iters", "val_interval")


def check_settings(cfg: Config, phases: list[str]) -> None:
    """Check that the parts of some phases are there, and their numbers of epochs and samples.

    Args:
        cfg: whole config.
        phases: the loaders that will run, of ``"train"``, ``"val"``, ``"test"``.

    Raises:
        UsageError: names the key.
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


def accept_pretrained(cfg: Config) -> None:
    """Take ``model.pretrained``, as older configs have it, for the weights of the backbone.

    mmdet has no such argument any more, and mmseg hands it to backbones that may have none. In
    mmpretrain it means the whole model, and stays.

    Raises:
        UsageError: the value is no path, or the backbone has an ``init_cfg`` already.
    """
    model: Any = cfg.get("model")
    if cfg.get("default_scope") == "mmpretrain" or not isinstance(model, dict):
        return
    backbone = model.get("backbone")
    if "pretrained" not in model or not isinstance(backbone, dict):
        return
    of_mmlocal = "mmlocal" in str(backbone.get("type"))
    if cfg.default_scope == "mmseg" and not of_mmlocal:
        return
    checkpoint = model.pop("pretrained")
    if not checkpoint:
        return
    if not isinstance(checkpoint, str):
        raise UsageError(
            f"model.pretrained must be the path or URL of a checkpoint, got {checkpoint!r}"
        )
    if backbone.get("init_cfg"):
        raise UsageError(
            f"model.pretrained={checkpoint} and model.backbone.init_cfg both say where the "
            "weights of the backbone come from; keep one of them"
        )
    backbone.init_cfg = ConfigDict(type="Pretrained", checkpoint=checkpoint)


def infer_scope(cfg: Config, tasks: tuple[str, ...]) -> None:
    """Set ``default_scope`` of a config that names classes instead of strings and has none."""
    model = cfg.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    task = str(getattr(kind, "__module__", "")).partition(".")[0]
    if cfg.get("default_scope") is None and task in tasks:
        cfg.default_scope = task
