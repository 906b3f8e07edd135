"""Reading a config, by path or by the name of a config of mmlocal."""

import ast
import importlib.util
import os.path as osp
import traceback
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS

from mmlocal import config_path
from mmlocal.cli.building import root_registries
from mmlocal.errors import UsageError
from mmlocal.libraries import LIBRARIES, Library, library_of


def load_config(config: str, cfg_options: dict | None = None) -> Config:
    """Read a config, merge settings into it, and set its ``default_scope`` if it has none.

    Args:
        config: path of a config file, or the name of a config of mmlocal, such as
            ``elsa_swin_t_maskrcnn_1x``.
        cfg_options: settings to merge into the config, with dotted keys.

    Raises:
        UsageError: the config does not exist or cannot be read, its ``default_scope`` is unknown,
            or the options do not fit the config.
    """
    path = _path_of(config)
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # a config is a program: it can fail in any way
        reason = f"{_where(error, path)}{_why(error)}"
        if "does not support to load mmlocal" in reason:  # MMEngine has a fixed list of libraries
            reason += '; write _base_ = __import__("mmlocal").config_path("NAME") instead'
        raise UsageError(f"config {config!r} cannot be read: {reason}") from error
    try:
        cfg.merge_from_dict(cfg_options or {})
    except (KeyError, TypeError, AttributeError, AssertionError) as error:
        raise UsageError(f"does not fit the config: {error}", "cfg_options") from error
    if cfg.get("default_scope") is None:
        cfg.default_scope = _scope_of_classes(cfg)
    if not _is_known(cfg.default_scope):
        raise UsageError(
            f"config {config!r} has default_scope={cfg.default_scope!r}, and no package or "
            f"registry of this name is here; mmlocal knows {', '.join(LIBRARIES)}"
        )
    _accept_pretrained(cfg)
    return cfg


def innermost_test_dataset(cfg: Config) -> Any:
    """The config of the test data set, without the wrappers around it.

    Args:
        cfg: whole config.
    """
    dataset = cfg.test_dataloader.dataset
    while "dataset" in dataset:
        dataset = dataset.dataset
    return dataset


def class_names(cfg: Config) -> list[str] | None:
    """Names of the classes of the test data, from the config or from the class of the data set.

    Args:
        cfg: whole config, of a library that is imported. Its scope is the default scope.

    Returns:
        The names; ``None`` if the config has no test data, or neither place names the classes.
    """
    if not cfg.get("test_dataloader"):
        return None
    dataset = innermost_test_dataset(cfg)
    names = (dataset.get("metainfo") or {}).get("classes")
    if not names:
        kind = dataset.get("type")
        if isinstance(kind, str):
            with DATASETS.switch_scope_and_registry(None) as registry:  # of the default scope
                kind = registry.get(kind)
        names = (getattr(kind, "METAINFO", None) or {}).get("classes")
    return list(names) if names else None


def _path_of(config: str) -> str:
    if osp.isfile(config):
        return config
    name = osp.splitext(osp.basename(config))[0]
    try:
        path = config_path(name)
    except ValueError as error:
        raise UsageError(f"config {config!r} does not exist; {error}") from error
    if name != config:
        raise UsageError(f"config {config!r} does not exist; did you mean `{name}`, at {path}?")
    return path


def _where(error: Exception, path: str) -> str:
    """File and line of an error in a config or one of its bases, if known."""
    frames = list(traceback.walk_tb(error.__traceback__))
    modules = [frame.f_code.co_filename for frame, _ in frames
               if frame.f_code.co_name == "<module>" and frame.f_code.co_filename]  # fmt: skip
    if modules:
        # A config runs after its bases, so the outermost module is the one at fault.
        line = [line for frame, line in frames if frame.f_code.co_filename == modules[0]][-1]
        return f"{modules[0]}, line {line}: "
    return _where_syntax_fails(path) if isinstance(error, SyntaxError) else ""


def _where_syntax_fails(path: str) -> str:
    """File and line of the first syntax error in a config or one of its bases, if known."""
    try:
        body = ast.parse(Path(path).read_text(encoding="utf-8")).body
    except (OSError, ValueError):  # a base in another package, or not a text
        return ""
    except SyntaxError as error:
        return f"{path}, line {error.lineno}: "
    for node in body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_base_":
            texts = (part.value for part in ast.walk(node.value) if isinstance(part, ast.Constant))
            names = (text for text in texts if isinstance(text, str) and text.endswith(".py"))
            bases = (osp.join(osp.dirname(path), name) for name in names)
            return next(filter(None, map(_where_syntax_fails, bases)), "")
    return ""


def _why(error: BaseException) -> str:
    """Type and first line of the first cause of an error."""
    while isinstance(error, ImportError) and (cause := error.__cause__ or error.__context__):
        error = cause
    quoted = isinstance(error, (KeyError, SyntaxError)) and error.args
    reason = str(error.args[0] if quoted else error).partition("\n")[0]
    return f"{type(error).__name__}: {reason}"


def _scope_of_classes(cfg: Config) -> str:
    """The scope for a config without one: the library of its model's class, else MMEngine."""
    model = cfg.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    package = str(getattr(kind, "__module__", "")).partition(".")[0]
    return package if package in LIBRARIES else Library.name


def _is_known(scope: object) -> bool:
    """Whether a library, a registry or a package has this name."""
    if not isinstance(scope, str):
        return False
    if scope in LIBRARIES or any(scope in registry.children for registry in root_registries()):
        return True
    return scope.isidentifier() and importlib.util.find_spec(scope) is not None


def _accept_pretrained(cfg: Config) -> None:
    """Turn ``model.pretrained``, which older configs set, into ``model.backbone.init_cfg``.

    mmdet no longer has this argument. mmseg hands it to the backbone, which may not have it.

    Raises:
        UsageError: the value is not a path, or the backbone has an ``init_cfg`` already.
    """
    model: Any = cfg.get("model")
    backbone: Any = model.get("backbone") if isinstance(model, dict) else None
    if not isinstance(backbone, dict) or "pretrained" not in model:
        return
    if library_of(cfg).takes_pretrained(backbone):
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
    backbone["init_cfg"] = ConfigDict(type="Pretrained", checkpoint=checkpoint)
