"""Golden vectors of DeMT's layers, with our names of the official parameters."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parents[1] / "data" / "mtl"
MIXER_NAMES = {
    "0": "conv",
    "2": "norm1",
    "3.fn.0.get_offset.p_conv": "deform.positions",
    "3.fn.0.get_offset.opt": "deform.offsets",
    "3.fn.0": "deform.conv",
    "3.fn.2": "norm2",
}


def load_arrays(name: str) -> tuple[dict[str, Tensor], str]:
    """The arrays of a file, and its description as JSON."""
    with np.load(FOLDER / f"{name}.npz") as arrays:
        golden = {k: torch.from_numpy(v) for k, v in arrays.items() if k != "meta"}
        return golden, str(arrays["meta"])


def mixer_part(golden: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The arrays of a mixer by our names, without the buffer that nothing uses."""
    found = {}
    for key, value in golden.items():
        if key.startswith(prefix) and not key.endswith("fn.0.offset"):
            number, rest = key.removeprefix(f"{prefix}blocks.").split(".", 1)
            module, parameter = rest.rsplit(".", 1)
            found[f"blocks.{number}.{MIXER_NAMES[module]}.{parameter}"] = value
    return found
