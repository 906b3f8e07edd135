"""A run that is killed and resumed repeats the uninterrupted run, bit for bit.

All runs have ``randomness.deterministic``, which refuses ops without a deterministic backward.
"""

import signal
from pathlib import Path

import pytest
import torch

from .conftest import TOOLS, helpers_path, scalars, start, succeeds, write_config

pytestmark = pytest.mark.slow

# In the second half of the run, past a checkpoint and its validation.
DYING = """
custom_imports = dict(imports=["killer"])
custom_hooks = [dict(type="mmengine.Killer", iteration=3)]
"""


def weights(work_dir: Path) -> dict[str, torch.Tensor]:
    path = (work_dir / "last_checkpoint").read_text()
    return torch.load(path, weights_only=False)["state_dict"]


@pytest.mark.parametrize(("before", "after"), [(0, 0), (1, 2)])
def test_killed_and_resumed(library, trained, folder, before, after):
    """The number of workers stays the same. The uninterrupted run has no workers."""
    whole = trained[1]
    name = f"{library}_{before}_{after}"
    dying = write_config(library, folder / f"dying_{name}.py", DYING + workers(before))
    resuming = write_config(library, folder / f"resuming_{name}.py", workers(after))
    kill_and_resume(dying, resuming, whole, folder)


def workers(count: int) -> str:
    """Lines of a config."""
    return f"train_dataloader = dict(num_workers={count}, persistent_workers={count > 0})\n"


def kill_and_resume(dying: Path, resuming: Path, whole: Path, folder: Path) -> None:
    """Kill and resume a run, and compare it with the run in ``whole``."""
    work_dir = folder / f"killed_{dying.stem}"
    killed = start(
        *(TOOLS / "train.py", dying, "--work-dir", work_dir),
        cwd=folder,
        PYTHONPATH=helpers_path(),
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    assert max(scalars(work_dir)) == 3
    log = succeeds(TOOLS / "train.py", resuming, "--work-dir", work_dir, "--resume", cwd=folder)
    assert "resumed epoch: " in log
    expected = scalars(whole)
    assert len(expected) == 6
    assert scalars(work_dir) == expected
    resumed = weights(work_dir)
    for name, value in weights(whole).items():
        assert torch.equal(value, resumed[name]), name
