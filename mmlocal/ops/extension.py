"""The compiled extension ``mmlocal.ops._C`` (sources in ``csrc``), if there is one that fits."""

from __future__ import annotations

import importlib

import torch


def _load():
    """The extension, or ``None``, and why there is none."""
    try:
        extension = importlib.import_module("mmlocal.ops._C")
    except ModuleNotFoundError:
        return None, (
            "the C++ extension is not built (pip install --no-build-isolation with torch and a "
            "C++17 compiler builds it; python setup.py build_ext --inplace in a source tree)"
        )
    except ImportError as error:
        return None, f"the C++ extension does not load, build it again: {error}"
    # A local label such as +cpu names a build of the same version. The suffix of a pre-release
    # counts, as its C++ interfaces change from day to day.
    version = torch.__version__.partition("+")[0]
    if extension.torch_version != version:
        return None, (
            f"the C++ extension was built for torch {extension.torch_version} and this is "
            f"{version}: build it again"
        )
    return extension, None


# At import: torch.compile must not meet it.
extension, unavailable_reason = _load()
