"""Errors while MMEngine builds what a config describes, as one line that names the config key."""

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
from mmlocal.libraries.base import type_name

# Nothing public tells which part of a config MMEngine is building, so the traceback has to. It is
# read by the names of functions, methods and arguments that MMEngine documents.
# Methods of the runner that build a part -> the key of that part.
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
# What a loop builds, and the end of its key.
_PARTS_OF_LOOPS = {"build_dataloader": "dataloader", "build_evaluator": "evaluator"}
_BUILDERS = {build_from_cfg.__code__, build_scheduler_from_cfg.__code__}
_LONGEST = 300  # characters of an error that are repeated


def root_registries() -> list[Registry]:
    """The registries of MMEngine, from which those of all libraries descend."""
    return [value for value in vars(registry_module).values() if isinstance(value, Registry)]


@contextmanager
def build_errors(cfg: Config) -> Iterator[None]:
    """Turn errors of building into a :class:`UsageError` that names the config key at fault.

    Errors of a loop that already runs pass unchanged, as they are no mistakes of the config.

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
    """One line: the key that was being built when ``error`` was raised, its value and the reason.

    Args:
        error: as caught, with its traceback.
        cfg: whole config.
    """
    reason = _reason(error)
    path = _path_of(error, cfg)
    # Some builders go on without the class that they did not find.
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
    """Value at a path, ``None`` if there is none."""
    for key in path:
        if isinstance(node, (list, tuple)):
            node = node[int(key)] if int(key) < len(node) else None
        else:
            node = node.get(key) if hasattr(node, "get") else None
    return node


def _walk(node: Any, path: list[str]) -> Iterator[tuple[list[str], Any]]:
    """All values below ``node`` with their paths, itself first."""
    yield path, node
    if isinstance(node, (dict, Config)):
        children = node.items()
    else:
        children = enumerate(node) if isinstance(node, (list, tuple)) else ()
    for key, child in children:
        yield from _walk(child, [*path, str(key)])


def _find(cfg: Config, below: list[str], part: dict) -> list[str] | None:
    """Path of the dict below a path that ``part`` was made from.

    Libraries add to a part before they build it, so the most alike of the same type is taken.
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
    """The part that the reason names, an argument, a type or a value; ``path`` if there is none."""
    nodes = [(where, node) for where, node in _walk(_at(cfg, path), path) if where != path]
    nodes.sort(key=lambda item: len(item[0]))
    if match := re.search(r"unexpected keyword argument '(\w+)'", reason):
        found = [where for where, _ in nodes if where[-1] == match[1]]
        if found and (path or len(found) == 1):
            return found[0]
    if match := re.match(r"(\S+) is not in the .* registry", reason):
        # A part may lie elsewhere, as `train_cfg` of a model, which its heads build.
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
    """Path of the first part below ``path`` whose type no registry knows."""
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
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]} ..."
    clear = isinstance(error, (ValueError, TypeError, AssertionError)) or " is not in the " in text
    return text if clear else f"{type(error).__name__}: {text}"
