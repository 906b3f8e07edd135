"""A PyTorch that is missing or too old is one sentence, whichever way the ops are reached."""

import subprocess
import sys

import pytest

OLD = "mmlocal needs PyTorch 2.6 or newer, and this is 2.4.1+cpu"
MISSING = "mmlocal needs PyTorch 2.6 or newer, and none is installed"


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("import torch; torch.__version__ = '2.4.1+cpu'; import mmlocal.ops", OLD),
        ("import torch; torch.__version__ = '2.4.1+cpu'; import mmlocal.layers", OLD),
        (
            "import torch; from mmengine.registry import MODELS; torch.__version__ = '2.4.1+cpu'; "
            "MODELS.get('mmlocal.ELSASwin')",
            OLD,
        ),
        ("import sys; sys.modules['torch'] = None; import mmlocal.ops", MISSING),
    ],
    ids=["ops", "layers", "registry", "no torch"],
)
def test_torch_that_does_not_fit_is_one_sentence(code, sentence):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"ImportError: {sentence}")
