"""Versions that mmlocal runs with, and checks whether a library can run here.

``mmlocal info``, ``docs/compatibility.md`` and the errors of the commands use this module. It
imports only the standard library until it checks a library, so it works in a broken installation.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import io
import platform
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import NamedTuple

TESTED, EXPECTED, NO = "tested", "expected", "no"


@dataclass(frozen=True)
class Support:
    """The versions of one dependency that work.

    Args:
        tested: versions that the tests run with. ``"3.10"`` stands for every version 3.10.x.
        least: the oldest version that is expected to work.
        below: the oldest version that is known to be too new, if there is one.
        note: another condition under which it does not work, for the column "no".
    """

    tested: tuple[str, ...]
    least: str
    below: str | None = None
    note: str = ""

    def verdict(self, version: str) -> str:
        """Say whether a version works: ``"tested"``, ``"expected"`` or ``"no"``.

        Args:
            version: version of the dependency. ``"expected"`` if it begins with no number.
        """
        numbers = _numbers(version)
        if not numbers:
            return EXPECTED
        if any(numbers[: len(_numbers(t))] == _numbers(t) for t in self.tested):
            return TESTED
        too_new = self.below is not None and numbers >= _numbers(self.below)
        return NO if too_new or numbers < _numbers(self.least) else EXPECTED

    def row(self) -> tuple[str, str, str]:
        """The cells "tested", "expected" and "no" of the table."""
        newest = f", older than {self.below}" if self.below else ""
        no = [f"older than {self.least}"]
        no += [f"{self.below} or newer"] if self.below else []
        no += [self.note] if self.note else []
        return ", ".join(self.tested), f"{self.least} or newer{newest}", "; ".join(no)


#: Versions by import name. ``tested`` must be the pins in requirements/.
SUPPORT = {
    "Python": Support(("3.10", "3.11", "3.12"), "3.10"),
    "torch": Support(
        ("2.11.0",), "2.6", note="2.14 or newer if mmcv must be compiled (mmdet, mmseg)"
    ),
    "torchvision": Support(("0.26.0",), "0.21", note="a release that was made for another torch"),
    "triton": Support(("3.6.0",), "3.3"),
    "numpy": Support(("2.2.6",), "1.24"),
    "cv2": Support(("4.12.0",), "4.5"),
    "mmengine": Support(("0.10.12",), "0.10", "1.0"),
    "mmcv": Support(
        ("2.3.6",), "2.0", "2.4", "without compiled ops (mmpretrain alone runs without)"
    ),
    "mmdet": Support(("3.5.1",), "3.0", "4.0"),
    "mmseg": Support(("1.4.2",), "1.0", "2.0"),
    "mmpretrain": Support(("1.3.6",), "1.0", "2.0"),
}
# onedl-mmcv does not compile with this torch or a newer one, because its build sets C++17.
MMCV_COMPILES_BELOW = "2.14"

# ``platform.system()`` and ``platform.machine()`` (``None`` for any) -> verdict and name.
SYSTEMS = {
    ("Linux", "x86_64"): (TESTED, "Linux x86_64"),
    ("Linux", "aarch64"): (EXPECTED, "Linux aarch64"),
    ("Darwin", None): (EXPECTED, "macOS"),
    ("Windows", None): (EXPECTED, "Windows (without the C++ kernels)"),
}

# Import name -> distribution: OneDL's maintained forks, and OpenMMLab's originals.
_FORKS = {
    "mmengine": "onedl-mmengine",
    "mmcv": "onedl-mmcv",
    "mmdet": "onedl-mmdetection",
    "mmseg": "onedl-mmsegmentation",
    "mmpretrain": "onedl-mmpretrain",
}
_ORIGINALS = {name: name for name in _FORKS} | {"mmseg": "mmsegmentation"}
# Import name -> distribution, if they differ.
_OTHERS = {"cv2": "opencv-python-headless", "PIL": "pillow", "yaml": "pyyaml"}


class Missing(NamedTuple):
    """One thing that a library lacks here.

    Args:
        what: reason for people to read, such as ``"mmcv is not installed"``.
        mend: command that mends it.
    """

    what: str
    mend: str


def missing(packages: Sequence[str], modules: Sequence[str] = ()) -> list[Missing]:
    """List the reasons why a library cannot run here.

    This imports all packages and modules if the packages are installed.

    Args:
        packages: packages that must be installed in a version that can work, and must import.
        modules: modules that must import. Packages that are not in this list are imported before.

    Returns:
        The reasons, in the order in which to mend them; empty if the library can run.
    """
    names = list(packages)
    # A broken torchvision also breaks the libraries that do not need it.
    if "torchvision" not in names and _is_installed("torchvision"):
        names.insert(names.index("torch") + 1, "torchvision")
    unfit = [m for m in map(_unfit, ["Python", *names]) if m]
    if unfit:
        return unfit
    for name in [*(name for name in names if name not in modules), *modules]:
        found = _missing_mmcv_ops() if name == "mmcv._ext" else _broken(name)
        if found:
            return found
    return []


def explain(library: str, found: Sequence[Missing]) -> str:
    """Say why a library cannot run here, and show the commands that mend it.

    Args:
        library: name of the library.
        found: result of :func:`missing`, not empty.
    """
    reasons = "; ".join(one.what for one in found)
    commands = dict.fromkeys(f"    {one.mend}" for one in found)
    return "\n".join([f"{library} cannot run here: {reasons}. Mend it with", *commands])


def mending_of(error: ImportError) -> str | None:
    """The command that installs a missing module.

    Args:
        error: error of the import.

    Returns:
        The command. ``None`` if the module is part of mmlocal, or if no module is missing.
    """
    absent = _absent(error)
    return None if absent in (None, "mmlocal") else _install(absent)


def version_verdict(name: str, version: str) -> str:
    """Say whether a version works here: ``"tested"``, ``"expected"`` or ``"no"``.

    Args:
        name: key of :data:`SUPPORT`.
        version: version of this dependency.
    """
    if name == "torchvision" and (torch := _version("torch")) and not _match(torch, version):
        return NO
    return SUPPORT[name].verdict(version)


def system_verdict() -> str:
    """Say whether this operating system and processor work: ``"tested"`` or ``"expected"``."""
    system, machine = platform.system(), platform.machine()
    fallback = (EXPECTED, "")
    return SYSTEMS.get((system, machine), SYSTEMS.get((system, None), fallback))[0]


def table() -> list[dict[str, str]]:
    """Make the compatibility table.

    Returns:
        Rows with the keys ``""``, ``"tested"``, ``"expected"`` and ``"no"``.
    """
    systems = {
        verdict: ", ".join(text for v, text in SYSTEMS.values() if v == verdict)
        for verdict in (TESTED, EXPECTED)
    }
    rows = [("system", systems[TESTED], systems[EXPECTED], "-")]
    rows += [(name, *support.row()) for name, support in SUPPORT.items()]
    return [dict(zip(("", TESTED, EXPECTED, NO), row, strict=True)) for row in rows]


def import_quietly(name: str) -> None:
    """Import a module without one line that OneDL's forks print.

    The forks include data sets for a platform of OneDL, and its package is not public. Without this
    package they print "Could not import OneDL. Skipping OneDL datasets.", and no setting turns that
    off. All other printed lines pass.

    Args:
        name: name of the module.

    Raises:
        Exception: the module does not import. A broken installation can raise anything.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            importlib.import_module(name)
    finally:
        for line in printed.getvalue().splitlines():
            if not line.startswith("Could not import OneDL"):
                print(line)


@functools.cache
def distributions() -> dict[str, list[str]]:
    """Map each installed top-level module to the names of its distributions."""
    # An interrupted pip leaves distributions without a name.
    found = metadata.packages_distributions().items()
    return {module: sorted({name for name in names if name}) for module, names in found}


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # sys.modules holds something else under this name
        return False


def _unfit(name: str) -> Missing | None:
    """Why a package is not fit: it is missing, or its version cannot work. Else ``None``."""
    if name != "Python" and not _is_installed(name):
        return Missing(f"{name} is not installed", _install(name))
    support = SUPPORT.get(name)
    version = platform.python_version() if name == "Python" else _version(name)
    if support is None or version is None or support.verdict(version) != NO:
        return None
    side = "old" if _numbers(version) < _numbers(support.least) else "new"
    return Missing(f"{name} {version} is too {side}", _install(name))


def _broken(name: str) -> list[Missing]:
    """Why an installed module does not import; empty if it does."""
    try:
        import_quietly(name)
    except Exception as error:  # a broken installation raises anything
        return [Missing(f"{name} does not import ({_reason(error)})", _repair(name, error))]
    return []


def _missing_mmcv_ops() -> list[Missing]:
    try:
        importlib.import_module("mmcv._ext")
    except Exception as error:
        found = []
        torch = _version("torch") or ""
        if _numbers(torch) >= _numbers(MMCV_COMPILES_BELOW):
            what = f"mmcv does not compile with torch {torch}, it needs one below "
            found.append(Missing(what + MMCV_COMPILES_BELOW, _install("torch")))
        what = f"mmcv's compiled ops do not load ({_reason(error)})"
        return [*found, Missing(what, _compile_mmcv())]
    return []


def _install(name: str) -> str:
    """The command that installs a module, in its tested version or one that fits torch."""
    if name == "Python":
        return "an environment of Python 3.10, 3.11 or 3.12"
    if name == "torch":
        versions = (SUPPORT[n].tested[0] for n in ("torch", "torchvision"))
        return "pip install torch=={} torchvision=={}".format(*versions)
    if name == "torchvision":
        torch = _version("torch")
        if torch is None:
            return _install("torch")
        # Distributions from PyTorch's own indices have a label, such as +cpu. PyPI's have none.
        release, _, label = torch.partition("+")
        _, minor, patch = (*_numbers(release), 0, 0)[:3]
        fits = f"pip install --no-deps torchvision==0.{minor + 15}.{patch}"
        return f"{fits}+{label} --index-url (the index of your torch)" if label else fits
    if name == "mmcv":
        return _compile_mmcv()
    distribution = _distribution(name)
    if name not in SUPPORT or distribution in _ORIGINALS.values():
        return f"pip install {distribution}"
    tested = SUPPORT[name].tested[0]
    if name == "cv2":  # versions of its distributions have a fourth number
        return f"pip install '{distribution}=={tested}.*'"
    return f"pip install {distribution}=={tested}"


def _compile_mmcv() -> str:
    distribution = _distribution("mmcv").removesuffix("-lite")
    return (
        "pip install --no-build-isolation --no-cache-dir --force-reinstall --no-deps "
        f"{distribution}"
    )


def _repair(module: str, error: Exception) -> str:
    """The command that mends an installed module that does not import."""
    name = module.partition(".")[0]
    absent = _absent(error)
    if absent and absent != name:
        return _install(absent)
    if "libGL" in str(error):
        name = "cv2"
    elif name in ("torch", "torchvision"):
        return _install(name)
    return f"pip install --force-reinstall --no-deps {_distribution(name)}"


def _absent(error: Exception) -> str | None:
    """The top-level module that an import did not find."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return None
    return error.name.partition(".")[0]


def _distribution(name: str) -> str:
    """The distribution that a module comes from; if it is missing, the one to install."""
    installed = distributions()
    if name not in _FORKS:
        return _OTHERS.get(name, name)
    if installed.get(name):
        return installed[name][0]
    original = any(
        _ORIGINALS[other] in installed.get(other, ()) for other in _FORKS if other != name
    )
    return (_ORIGINALS if original else _FORKS)[name]


def _version(name: str) -> str | None:
    """The version of an installed module, from its metadata; ``None`` if it is missing."""
    if name in sys.modules and sys.modules[name] is None:
        return None
    for distribution in [*distributions().get(name, ()), name]:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(distribution)
    return None


def _match(torch: str, torchvision: str) -> bool:
    """Whether a torchvision was made for a torch: 0.26.0 for 2.11.0, 0.21.0 for 2.6.0."""
    theirs, ours = _numbers(torchvision), _numbers(torch)
    if len(theirs) < 2 or len(ours) < 2 or ours[0] != 2:
        return True  # unknown
    return theirs[:2] == (0, ours[1] + 15)


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers of a version, without suffix and label: 2, 11, 0 for ``2.11.0a0+cpu``."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
