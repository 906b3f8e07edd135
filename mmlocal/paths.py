"""Where the configs are: in the installed ``.mim`` folder or, uninstalled, beside the package."""

from difflib import get_close_matches
from pathlib import Path

TASKS = ("mmdet", "mmseg", "mmpretrain")


def _configs() -> dict[str, dict[str, Path]]:
    """Config files by task and stem."""
    package = Path(__file__).resolve().parent
    root = package / ".mim" / "configs"
    if not root.is_dir():
        root = package.parent / "configs"
    return {
        task: {
            path.stem: path.resolve()
            for path in sorted((root / task).rglob("*.py"))
            if "_base_" not in path.relative_to(root).parts
        }
        for task in TASKS
    }


def list_configs(task: str | None = None) -> list[str]:
    """Names of the configs that come with mmlocal, sorted; each one is unique.

    Args:
        task: ``"mmdet"``, ``"mmseg"`` or ``"mmpretrain"``; all three if ``None``.

    Raises:
        ValueError: any other ``task``.
    """
    if task not in (None, *TASKS):
        raise ValueError(f"task must be one of {', '.join(TASKS)} or None, got {task!r}")
    configs = _configs()
    return sorted(name for t in (TASKS if task is None else (task,)) for name in configs[t])


def config_path(name: str) -> str:
    """Absolute path of a config, to load with ``mmengine.Config.fromfile``.

    Args:
        name: name of the config file, with or without ``.py``; no folder.

    Raises:
        ValueError: no config has this name; names the closest ones.
    """
    paths = {stem: path for configs in _configs().values() for stem, path in configs.items()}
    path = paths.get(name.removesuffix(".py"))
    if path is None:
        near = get_close_matches(name.removesuffix(".py"), paths, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "see mmlocal.list_configs()"
        raise ValueError(f"name must be that of a config of mmlocal, got {name!r}: {hint}")
    return str(path)
