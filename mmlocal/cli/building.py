"""Turn an error from MMEngine's builders into one line that names the config key at fault."""

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from mmengine import registry as registry_module
from mmengine.config import Config
from mmengine.registry import Registry, build_from_cfg, build_scheduler_from_cfg
from mmengine.runner import BaseLoop, Runner

from mmlocal.errors import UsageError
from mmlocal.libraries.config_parts import type_name

# MMEngine does not report which part of a config it is building, so this module reads the
# traceback. It looks only for functions, methods and arguments that MMEngine documents.

# Method of the runner that builds a part -> the key of this part.
_PARTS = {
    "build_model": "model",
    "wrap_model": "model_wrapper_cfg",
    "build_train_loop": "train_cfg",
    "build_val_loop": "val_cfg",
    "build_test_loop": "test_cfg",
    "build_optim_wrapper": "optim_wrapper",
    "build_param_scheduler": "param_scheduler",
    "build_visualizer": "visualizer",
    "build_log_processor": "log_processor",
    "register_default_hooks": "default_hooks",
    "register_custom_hooks": "custom_hooks",
    "setup_env": "env_cfg",
    "set_randomness": "randomness",
    "scale_lr": "auto_scale_lr",
}
# Method of a loop that builds a part -> the end of the key of this part.
_PARTS_OF_LOOPS = {"build_dataloader": "dataloader", "build_evaluator": "evaluator"}
_BUILDERS = {build_from_cfg.__code__, build_scheduler_from_cfg.__code__}
_LONGEST = 300  # characters of an error that the message repeats


def root_registries() -> list[Registry]:
    """The registries of MMEngine. They are the parents of the registries of all libraries."""
    return [value for value in vars(registry_module).values() if isinstance(value, Registry)]


@contextmanager
def build_errors(cfg: Config) -> Iterator[None]:
    """Turn errors of building into a :class:`UsageError` that names the config key at fault.

    Errors of a loop that already runs pass unchanged, because they are not mistakes of the config.

    Args:
        cfg: whole config.

    Raises:
        UsageError: a part of the config cannot be built. The message is one line.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        if any(_is_running_loop(frame) for frame, _ in traceback.walk_tb(error.__traceback__)):
            raise
        raise UsageError(describe_build_error(error, cfg)) from error


def describe_build_error(error: Exception, cfg: Config) -> str:
    """Say in one line which key was being built, what its value is, and why that failed.

    Args:
        error: the error that a builder raised, with its traceback.
        cfg: whole config.
    """
    reason = _reason(error)
    path = _path_of(error, cfg)
    # Some builders go on with None if they do not find a class.
    if re.search(r"\bNone\b", reason) and path and (unknown := _unknown_type(cfg, path)):
        path, reason = unknown, f"no class of the name {_at(cfg, unknown)['type']!r} is known"
    else:
        path = _refine(cfg, path, reason)
    advice = "--traceback shows where this was raised"
    if not path:
        return f"what the config describes cannot be built: {reason} ({advice})"
    value = re.sub(r"\s+", " ", repr(_at(cfg, path)))
    shown = f" = {value}" if len(value) <= 100 else ""
    return f"config key {'.'.join(path)}{shown}: {reason} ({advice})"


def _is_running_loop(frame: FrameType) -> bool:
    return frame.f_code.co_name == "run" and isinstance(frame.f_locals.get("self"), BaseLoop)


def _path_of(error: Exception, cfg: Config) -> list[str]:
    """Path in the config of the innermost part that was being built."""
    path: list[str] = []
    phase = "train"
    for frame, _ in traceback.walk_tb(error.__traceback__):
        name, owner = frame.f_code.co_name, frame.f_locals.get("self")
        if frame.f_code in _BUILDERS:
            path = _find(cfg, path, frame.f_locals["cfg"]) or path
        elif isinstance(owner, Runner) and name in _PARTS:
            path = [_PARTS[name]]
            phase = path[0].partition("_")[0]
        elif name in _PARTS_OF_LOOPS and path and path[0] == f"{phase}_cfg":
            path = [f"{phase}_{_PARTS_OF_LOOPS[name]}"]
    return path if path and _at(cfg, path) is not None else []


def _at(node: Any, path: list[str]) -> Any:
    """Value at a path, or ``None`` if nothing is there."""
    for key in path:
        if isinstance(node, (list, tuple)):
            node = node[int(key)] if int(key) < len(node) else None
        else:
            node = node.get(key) if hasattr(node, "get") else None
    return node


def _walk(node: Any, path: list[str]) -> Iterator[tuple[list[str], Any]]:
    """``node`` and all values below it, each with its path."""
    yield path, node
    if isinstance(node, (dict, Config)):
        children = node.items()
    else:
        children = enumerate(node) if isinstance(node, (list, tuple)) else ()
    for key, child in children:
        yield from _walk(child, [*path, str(key)])


def _find(cfg: Config, below: list[str], part: dict) -> list[str] | None:
    """Path of the dict in the config, below a path, that ``part`` was made from.

    Libraries add to a part before they build it. So the search takes the dict of the same type
    that has the most values in common with ``part``.
    """
    best, most = None, -1
    for path, node in _walk(_at(cfg, below), below):
        if not isinstance(node, dict) or node.get("type") != part.get("type"):
            continue
        alike = sum(_equal(part.get(key), value) for key, value in node.items())
        if alike > most:
            best, most = path, alike
    return best if best is not None and most > 0 else None


def _equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except Exception:  # arrays and the like
        return False


def _refine(cfg: Config, path: list[str], reason: str) -> list[str]:
    """Path of the argument, type or value that the reason names, else ``path``."""
    nodes = [(where, node) for where, node in _walk(_at(cfg, path), path) if where != path]
    nodes.sort(key=lambda item: len(item[0]))
    if match := re.search(r"unexpected keyword argument '(\w+)'", reason):
        found = [where for where, _ in nodes if where[-1] == match[1]]
        if found and (path or len(found) == 1):
            return found[0]
    if match := re.match(r"(\S+) is not in the .* registry", reason):
        # A head of a model may build a part that stands elsewhere, such as `train_cfg`.
        for where, node in [*nodes, *_walk(cfg, [])]:
            if isinstance(node, dict) and node.get("type") == match[1]:
                return where
    for where, node in nodes if path else []:
        kind = node.get("type") if isinstance(node, dict) else None
        if kind and _names(reason.partition("(")[0], type_name(kind)):
            return where
    for where, node in nodes:
        speaks = isinstance(node, str) and len(node) > 3
        if speaks and where[-1] not in ("type", "default_scope") and _names(reason, node):
            return where
    return path


def _unknown_type(cfg: Config, path: list[str]) -> list[str] | None:
    """Path of the first part below ``path`` with a type that no registry knows."""
    roots = root_registries()
    for where, node in _walk(_at(cfg, path), path):
        kind = node.get("type") if isinstance(node, dict) else None
        if isinstance(kind, str) and not any(_knows(root, kind) for root in roots):
            return where
    return None


def _knows(root: Registry, kind: str) -> bool:
    with root.switch_scope_and_registry(None) as registry:
        return registry.get(kind) is not None


def _names(text: str, word: str) -> bool:
    return re.search(rf"(?<![\w./-]){re.escape(word)}(?![\w/-])", text) is not None


def _reason(error: Exception) -> str:
    """The first line of an error, without the general advice that MMEngine adds."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    text = text.strip().partition("\n")[0].partition(". Please check whether the value of")[0]
    if not text:  # a bare assertion
        place = traceback.extract_tb(error.__traceback__)[-1]
        text = f"`{place.line}` does not hold"
    if match := re.match(r"(\w+) is not in the ", text):
        scoped = f"mmlocal.{match[1]}"
        if any(_knows(root, scoped) for root in root_registries()):
            text += f"; with its scope, its name is {scoped}"
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]} ..."
    clear = isinstance(error, (ValueError, TypeError, AssertionError)) or " is not in the " in text
    return text if clear else f"{type(error).__name__}: {text}"
