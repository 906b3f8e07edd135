"""Find the configs: in ``.mim`` of an installed package, or in ``configs`` of a clone."""

from difflib import get_close_matches
from pathlib import Path


def _configs() -> dict[str, dict[str, Path]]:
    """Map the name of each library to its configs, a dict of names and paths."""
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
    """List the libraries for which mmlocal has configs, sorted."""
    return list(_configs())


def list_configs(library: str | None = None) -> list[str]:
    """List the names of the configs that come with mmlocal, sorted. Each name is unique.

    Args:
        library: name of a library, such as ``"mmdet"``; ``None`` for all.

    Raises:
        ValueError: there are no configs for ``library``.
    """
    configs = _configs()
    if library not in (None, *configs):
        raise ValueError(f"library must be one of {', '.join(configs)} or None, got {library!r}")
    return sorted(name for key in configs if library in (None, key) for name in configs[key])


def config_path(name: str) -> str:
    """Absolute path of a config, to load with ``mmengine.Config.fromfile``.

    Args:
        name: name of the config file, with or without ``.py``, without its folder.

    Raises:
        ValueError: no config has this name. The message names similar configs.
    """
    paths = {stem: path for configs in _configs().values() for stem, path in configs.items()}
    path = paths.get(name.removesuffix(".py"))
    if path is None:
        near = get_close_matches(name.removesuffix(".py"), paths, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "see mmlocal.list_configs()"
        raise ValueError(f"name must be the name of a config of mmlocal, got {name!r}: {hint}")
    return str(path)
