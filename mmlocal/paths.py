"""Find configs and weights: in ``.mim`` of an installed package, or in the folders of a clone."""

from difflib import get_close_matches
from pathlib import Path


def home() -> Path:
    """The folder that holds ``configs``, ``weights`` and ``tools``."""
    package = Path(__file__).resolve().parent
    installed = package / ".mim"
    return installed if (installed / "configs").is_dir() else package.parent


def _configs() -> dict[str, dict[str, Path]]:
    """Map the name of each library to its configs, a dict of names and paths."""
    root = home() / "configs"
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
    path = paths.get(str(name).removesuffix(".py"))
    if path is None:
        near = get_close_matches(str(name).removesuffix(".py"), paths, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "see mmlocal.list_configs()"
        raise ValueError(f"name must be the name of a config of mmlocal, got {name!r}: {hint}")
    return str(path)


def list_weights() -> list[str]:
    """List the names of the configs whose trained weights come with mmlocal, sorted."""
    return sorted(_weights())


def weights_path(name: str) -> str:
    """Absolute path of the trained weights of a config, a file that comes with mmlocal.

    Only small networks on generated data have such a file.

    Args:
        name: name of the config file, with or without ``.py``, without its folder.

    Raises:
        ValueError: no weights of this config come with mmlocal. The message names the configs that
            have some.
    """
    paths = _weights()
    path = paths.get(str(name).removesuffix(".py"))
    if path is None:
        known = ", ".join(sorted(paths)) or "none"
        raise ValueError(
            f"name must be a config whose weights come with mmlocal ({known}), got {name!r}; "
            "official weights: see docs/checkpoints.md"
        )
    return str(path)


def _weights() -> dict[str, Path]:
    """Map the names of configs to their files. The name of a file ends in a part of its SHA-256."""
    files = (home() / "weights").glob("*-????????.pth")
    return {path.stem.rpartition("-")[0]: path.resolve() for path in files}
