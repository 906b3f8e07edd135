"""Users start each tool on tiny stock models: they train, resume, test and browse."""

import json
import pickle

import cv2
import pytest
import torch

from .conftest import LIBRARIES, TOOLS, free_port, start, write_config

pytestmark = pytest.mark.slow


def succeeds(*command, cwd, **env: str) -> str:
    result = start(*command, cwd=cwd, **env)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout + result.stderr


def logged_iterations(work_dir) -> list[int]:
    steps = []
    for path in sorted(work_dir.glob("*/vis_data/scalars.json")):
        entries = [json.loads(line) for line in path.read_text().splitlines()]
        steps += [entry["step"] for entry in entries if "loss" in entry]
    return steps


@pytest.fixture(scope="module", params=LIBRARIES)
def trained(request, data, tmp_path_factory):
    """A config, and the work dir of a run of two iterations that was resumed for a third."""
    folder = tmp_path_factory.mktemp(request.param)
    config = write_config(request.param, data, folder / "c.py")
    succeeds(TOOLS / "train.py", config, cwd=folder)
    assert (folder / "work_dirs/c/iter_2.pth").is_file()
    more = ["--cfg-options", "train_cfg.max_iters=3", "train_cfg.val_interval=3"]
    log = succeeds(TOOLS / "train.py", config, "--resume", *more, "--auto-scale-lr", cwd=folder)
    assert "Iter(val)" in log
    assert "Could not import OneDL" not in log
    return request.param, config, folder


def test_train_and_resume(trained):
    _, _, folder = trained
    work_dir = folder / "work_dirs/c"
    assert logged_iterations(work_dir) == [1, 2, 3]
    checkpoint = torch.load(work_dir / "iter_3.pth", weights_only=False)
    assert checkpoint["meta"]["iter"] == 3
    assert checkpoint["optimizer"]["state"] or checkpoint["optimizer"]["param_groups"]


def test_test_writes_predictions_and_pictures(trained):
    library, config, folder = trained
    out = folder / {"mmdet": "out.pkl", "mmseg": "out", "mmpretrain": "out.pkl"}[library]
    checkpoint = folder / "work_dirs/c/iter_2.pth"
    log = succeeds(
        *(TOOLS / "test.py", config, checkpoint, "--work-dir", "tested", "--out", out),
        *("--show-dir", "pictures"),
        cwd=folder,
    )
    metric = {"mmdet": "coco/bbox_mAP:", "mmseg": "mIoU:", "mmpretrain": "accuracy/top1:"}[library]
    assert metric in log
    if library == "mmseg":
        assert sorted(path.name for path in out.iterdir()) == ["0.png", "1.png"]
        assert cv2.imread(str(out / "0.png"), cv2.IMREAD_UNCHANGED).shape == (64, 64)
    else:
        predictions = pickle.loads(out.read_bytes())
        assert len(predictions) == 2
        assert ("pred_instances" if library == "mmdet" else "pred_score") in predictions[0]
    shown = {"mmdet": "tested", "mmseg": "pictures", "mmpretrain": "pictures"}[library]
    pictures = [path for path in (folder / shown).rglob("*") if path.suffix in (".jpg", ".png")]
    assert len(pictures) == 2


def test_tta_and_amp(trained):
    library, config, folder = trained
    checkpoint = folder / "work_dirs/c/iter_2.pth"
    flags = ["--tta"] if library == "mmdet" else ["--tta", "--amp"]  # NMS on CPU has no bfloat16
    if library == "mmpretrain":
        flags += ["--out", "metrics.json", "--out-item", "metrics"]
    log = succeeds(TOOLS / "test.py", config, checkpoint, *flags, cwd=folder)
    if library == "mmpretrain":
        assert "accuracy/top1" in json.loads((folder / "metrics.json").read_text())
    else:
        assert {"mmdet": "coco/bbox_mAP:", "mmseg": "mIoU:"}[library] in log


def test_browse_dataset(trained):
    library, config, folder = trained
    flags, count = (["--mode", "original", "--phase", "val"], 2) if library == "mmseg" else ([], 3)
    flags += ["--rescale-factor", "2"] if library == "mmpretrain" else []
    pictures = folder / "pictures of data"
    command = [TOOLS / "browse_dataset.py", config, "--not-show", "-o", pictures, "-n", "3"]
    succeeds(*command, *flags, cwd=folder)
    assert len(list(pictures.iterdir())) == count
    picture = cv2.imread(str(next(pictures.glob("000001_*"))))
    assert picture.shape == (64, 64, 3)


def test_two_processes_on_cpu(data, tmp_path):
    """Data-parallel training and testing without a GPU."""
    if torch.cuda.is_available():
        pytest.skip("with a GPU, torchrun takes one GPU per process")
    config = write_config("mmpretrain", data, tmp_path / "c.py")
    log = succeeds(
        *("bash", TOOLS / "dist_train.sh", config, "2", "--no-validate"),
        *("--work-dir", "with space", "--cfg-options", "find_unused_parameters=False"),
        cwd=tmp_path,
        PORT=free_port(),
    )
    assert "Distributed launcher: pytorch" in log
    assert "GPU number: 2" in log
    checkpoint = tmp_path / "with space/iter_2.pth"
    command = ["bash", TOOLS / "dist_test.sh", config, checkpoint, "2"]
    log = succeeds(*command, cwd=tmp_path, PORT=free_port())
    assert "accuracy/top1:" in log


def test_error_under_a_launcher(tmp_path):
    result = start("bash", TOOLS / "dist_train.sh", "no.py", "2", cwd=tmp_path, PORT=free_port())
    assert result.returncode != 0
    assert result.stderr.count("error: config 'no.py' does not exist") == 1


def test_print_config(data, tmp_path):
    config = write_config("mmseg", data, tmp_path / "c.py")
    flags = ["--cfg-options", "train_cfg.max_iters=77", "--save-path", "saved/all.py"]
    text = succeeds(TOOLS / "print_config.py", config, *flags, cwd=tmp_path)
    assert "max_iters=77" in text
    assert "max_iters=77" in (tmp_path / "saved/all.py").read_text()
    graph = succeeds(TOOLS / "print_config.py", config, "--graph", cwd=tmp_path)
    assert "EncoderDecoder(" in graph
