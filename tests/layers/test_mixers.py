"""The registry of mixers: the promises of each mixer, and the registration of new ones."""

import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import nn

import mmlocal
from mmlocal.layers import MIXERS, register_mixer

mixers = pytest.mark.parametrize("name", MIXERS)


@mixers
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (7, 7), (9, 4), (15, 16)], ids=str)
def test_any_map(name, size):
    """A mixer keeps the shape, and all its parameters learn unless the map has one position."""
    torch.manual_seed(0)
    mixer = MIXERS[name](12, 3)
    x = torch.randn(2, *size, 12, requires_grad=True)
    out = mixer(x)
    assert out.shape == x.shape
    out.square().sum().backward()
    for parameter in (x, *mixer.parameters()):
        assert parameter.grad.isfinite().all()
    if size != (1, 1):
        assert all(parameter.grad.any() for parameter in mixer.parameters())


@mixers
def test_space_is_mixed(name):
    """A neighbour has an influence, another image has none."""
    torch.manual_seed(0)
    mixer = MIXERS[name](12, 3).double().eval()
    x = torch.randn(2, 6, 6, 12, dtype=torch.float64)
    changed = x.clone()
    changed[0, 3, 3] += 1
    changes = (mixer(x) - mixer(changed)).abs().amax(dim=3)
    assert (changes[0, 2:5, 2:5] > 1e-9).all()
    assert not changes[1].any()


def test_register():
    with patch.dict(MIXERS):

        @register_mixer("mine")
        class Mine(nn.Module):
            pass

        assert MIXERS["mine"] is Mine
        with pytest.raises(ValueError, match=r"name must be new in MIXERS, got 'mine' of .*Mine"):
            register_mixer("mine")(nn.Identity)
        assert MIXERS["mine"] is Mine


def test_a_file_in_layers_is_a_new_mixer(tmp_path):
    """No other file has to name the new mixer."""
    package = tmp_path / "mmlocal"
    shutil.copytree(Path(mmlocal.__file__).parent, package)
    (package / "layers" / "mine.py").write_text(
        "from torch import nn\n"
        "from mmlocal.layers.mixers import register_mixer\n"
        "@register_mixer('mine')\n"
        "class Mine(nn.Module):\n"
        "    pass\n"
    )
    code = "from mmlocal.layers.mixers import MIXERS; print(MIXERS['mine'].__module__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "mmlocal.layers.mine\n"
