"""The registry of mixers: the promises of each mixer, and the registration of new ones."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import nn

import mmlocal
from mmlocal.layers import MIXERS, build_mixer, register_mixer

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
def test_no_image(name):
    """A batch without images is a map too, as for the ops."""
    x = torch.randn(0, 5, 4, 12, requires_grad=True)
    out = MIXERS[name](12, 3).eval()(x)
    assert out.shape == x.shape
    out.sum().backward()


@mixers
def test_a_wrong_map(name):
    mixer = MIXERS[name](12, 3)
    for shape in [(2, 0, 4, 12), (2, 4, 0, 12)]:
        with pytest.raises(ValueError, match=re.escape(f"one row and one column, got {shape}")):
            mixer(torch.zeros(shape))
    with pytest.raises(TypeError, match=r"x must be floating point, got torch\.int64"):
        mixer(torch.zeros(2, 4, 4, 12, dtype=torch.int64))


@mixers
@pytest.mark.filterwarnings("ignore")  # all of TorchScript is deprecated
def test_torchscript(name):
    """``torch.jit.trace`` works, and ``torch.jit.script`` names the ways that work."""
    torch.manual_seed(0)
    mixer = MIXERS[name](12, 3).eval()
    x = torch.randn(2, 5, 4, 12)
    traced = torch.jit.trace(mixer, x, check_trace=False)
    torch.testing.assert_close(traced(2 * x), mixer(2 * x))
    with pytest.raises(RuntimeError, match=r"torch\.jit\.script cannot .* torch\.export"):
        torch.jit.script(mixer)


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


@mixers
def test_scripting_is_refused_in_words(name):
    with pytest.raises(RuntimeError, match=f"torch.jit.script cannot compile {name}; use "):
        torch.jit.script(MIXERS[name](12, 3))


@pytest.fixture
def mine():
    with patch.dict(MIXERS):

        @register_mixer
        class Mine(nn.Module):
            def __init__(self, embed_dims, num_heads, factor=1.0, shift=False):
                super().__init__()
                self.arguments = (embed_dims, num_heads, factor, shift)

        yield Mine


def test_register(mine):
    assert MIXERS["Mine"] is mine
    other = type("Mine", (nn.Identity,), {})
    with pytest.raises(ValueError, match=r"name must be new in MIXERS, got 'Mine' of .*Mine"):
        register_mixer(other)
    assert MIXERS["Mine"] is mine


def test_build(mine):
    for kind in ("Mine", mine):
        assert build_mixer(dict(type=kind), 12, 3).arguments == (12, 3, 1.0, False)
    cfg = dict(type="Mine", num_heads=4, factor=2.0)
    assert build_mixer(cfg, 12, 3).arguments == (12, 4, 2.0, False)
    assert cfg == dict(type="Mine", num_heads=4, factor=2.0)


def test_every_second_block_shifts(mine):
    cfg = dict(type="Mine")
    assert [build_mixer(cfg, 12, 3, i).arguments[3] for i in range(4)] == [False, True, False, True]
    cfg["shift"] = False
    assert not build_mixer(cfg, 12, 3, 1).arguments[3]


@pytest.mark.parametrize(
    ("cfg", "error", "message"),
    [
        (dict(type="ELSa"), ValueError, r"unknown mixer 'ELSa': did you mean ELSA\? there are "),
        (dict(type="zzz"), ValueError, r"unknown mixer 'zzz': there are [A-Z]"),
        (dict(kernel_size=3), ValueError, r"must have the key 'type', got \{'kernel_size': 3\}"),
        (dict(type=3), TypeError, "type of a mixer must be a name or a class, got 3"),
        ("ELSA", TypeError, "a mixer must be a dict with the key 'type', got 'ELSA'"),
        (
            dict(type="ELSA", kernel=3),
            TypeError,
            r"'kernel': 3\} does not fit ELSA: .*'kernel'",
        ),
    ],
    ids=str,
)
def test_a_wrong_config(cfg, error, message):
    with pytest.raises(error, match=message):
        build_mixer(cfg, 12, 3)


def test_a_file_in_layers_is_a_new_mixer(tmp_path):
    """No other file has to name the new mixer."""
    package = tmp_path / "mmlocal"
    shutil.copytree(Path(mmlocal.__file__).parent, package)
    (package / "layers" / "mine.py").write_text(
        "from torch import nn\n"
        "from mmlocal.layers.mixers import register_mixer\n"
        "@register_mixer\n"
        "class Mine(nn.Module):\n"
        "    pass\n"
    )
    code = "from mmlocal.layers.mixers import MIXERS; print(MIXERS['Mine'].__module__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "mmlocal.layers.mine\n"
