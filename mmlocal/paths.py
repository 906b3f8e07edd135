"""Where the configs are: in the installed ``.mim`` folder or, uninstalled, beside the package."""

from difflib import get_close_matches
from pathlib import Path


def _configs() -> dict[str, dict[str, Path]]:
    """Config files by library, each a folder, and stem."""
    package = Path(__file__).resolve().parent
    root = package / ".mim" / "configs"
    if not root.is_dir():
        root = package.parent / "configs"
    configs: dict[str, dict[str, Path]] = {}
    for path in sorted(root.glob("*/**/*.py")):
        library, *folders = path.relative_to(root).parts
        if "_base_" not in folders:
            configs.setdefault(library, {})[path.stem] = path.resolve()
    return configs


def config_libraries() -> list[str]:
    """Names of the libraries for which configs come with mmlocal, sorted."""
    return list(_configs())


def list_configs(library: str | None = None) -> list[str]:
    """Names of the configs that come with mmlocal, sorted; each one is unique.

    Args:
        library: name of a library, such as ``"mmdet"``; all if ``None``.

    Raises:
        ValueError: no config is for this ``library``.
    """
    configs = _configs()
    if library not in (None, *configs):
        raise ValueError(f"library must be one of {', '.join(configs)} or None, got {library!r}")
    return sorted(name for key in configs if library in (None, key) for name in configs[key])


def config_path(name: str) -> str:
    """Absolute path of a config, to load with ``mmengine.Config.fromfile``.

    Args:
        name: name of the config file, with or without ``.py``; no folder.

    Raises:
        ValueError: no config has this name. The message names the closest ones.
    """
    paths = {stem: path for configs in _configs().values() for stem, path in configs.items()}
    path = paths.get(name.removesuffix(".py"))
    if path is None:
        near = get_close_matches(name.removesuffix(".py"), paths, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "see mmlocal.list_configs()"
        raise ValueError(f"name must be the name of a config of mmlocal, got {name!r}: {hint}")
    return str(path)
