"""The code blocks of docs/inference.md work on a trained model."""

import re
from pathlib import Path

import cv2
import mmpretrain
import numpy as np
import pytest
import torch
from mmengine.config import Config
from tools.conftest import TOOLS, load_tool

from mmlocal.checkpoints.files import sha256_of
from mmlocal.cli.publish import publish

from .conftest import start, succeeds

PAGE = (Path(__file__).parents[2] / "docs/inference.md").read_text()
TITLES = {"mmdet": "Detection", "mmseg": "Segmentation", "mmpretrain": "Classification"}
BLOCKS = {
    library: re.search(rf"## {title}\n.*?```python\n(.*?)```", PAGE, re.DOTALL)[1]
    for library, title in TITLES.items()
}
DRAWN = {"mmdet": "detected/vis", "mmseg": "segmented/vis", "mmpretrain": "classified"}


def weights_of(work_dir: Path) -> Path:
    return Path((work_dir / "last_checkpoint").read_text())


@pytest.mark.slow
def test_inferencer(library, trained, folder):
    config, work_dir = trained
    picture = next((folder / "data/shapes/val").iterdir())
    # an untrained detector is sure of nothing
    block = BLOCKS[library].replace('"detected",', '"detected", pred_score_thr=0.0,')
    script = folder / f"infer_{library}.py"
    script.write_text(
        f"config, weights, picture = {str(config)!r}, {str(weights_of(work_dir))!r}, "
        f"{str(picture)!r}\n{block}"
        "print('drawn with', (inferencer.visualizer.dataset_meta or {}).get('classes'))\n"
    )
    output = succeeds(script, cwd=folder, TORCH_FORCE_WEIGHTS_ONLY_LOAD="1")
    (drawn,) = (folder / DRAWN[library]).iterdir()
    difference = cv2.absdiff(cv2.imread(str(drawn)), cv2.imread(str(picture)))
    assert (difference.max(axis=2) > 50).mean() > 0.01, "nothing is drawn"
    if library == "mmseg":
        assert "drawn with ('background', 'arrow', 'circle'" in output
        assert "(64, 64)" in output
        assert len(list((folder / "segmented/pred").iterdir())) == 1
    elif library == "mmdet":
        assert (folder / f"detected/preds/{picture.stem}.json").is_file()
    else:
        names = Config.fromfile(config).metainfo.classes
        assert any(f"{name} 0." in output for name in names)


@pytest.mark.slow
def test_log_is_plotted(library, trained, folder):
    _, work_dir = trained
    (log,) = work_dir.glob("*/vis_data/scalars.json")
    tool = Path(mmpretrain.__path__[0]) / ".mim/tools/analysis_tools/analyze_logs.py"
    metric = {"mmdet": "coco/segm_mAP", "mmseg": "mIoU", "mmpretrain": "accuracy/top1"}[library]
    curve = folder / f"curve_{library}.png"
    succeeds(
        *(tool, "plot_curve", log, "--keys", "loss", metric, "--out", curve),
        cwd=folder,
        MPLBACKEND="Agg",
    )
    assert cv2.imread(str(curve)) is not None


@pytest.mark.slow
def test_published_checkpoint_of_a_run(library, trained, folder):
    _, work_dir = trained
    path = publish(str(weights_of(work_dir)), str(folder / f"models/{library}.pth"))
    assert re.fullmatch(rf"{library}-[0-9a-f]{{8}}\.pth", path.name)
    assert sha256_of(path).startswith(path.stem.rpartition("-")[2])
    published = torch.load(path, weights_only=True)
    source = torch.load(weights_of(work_dir), weights_only=False)
    assert published.keys() == {"meta", "state_dict"}
    assert published["meta"] == source["meta"]
    assert published["state_dict"].keys() == source["state_dict"].keys()
    for name, value in source["state_dict"].items():
        assert torch.equal(published["state_dict"][name], value)


class Hostile:
    def __reduce__(self):
        return print, ("executed",)


def test_only_plain_values_are_published(tmp_path):
    weights = {"w": torch.ones(2)}
    meta = dict(epoch=3, dataset_meta=dict(classes=("a", "b"), palette=np.zeros((2, 3))))
    torch.save(dict(state_dict=weights, meta=meta), tmp_path / "in.pth")
    path = publish(str(tmp_path / "in.pth"), str(tmp_path / "out"))
    assert path.parent == tmp_path / "out"
    assert path.name.startswith("in-")
    meta = torch.load(path, weights_only=True)["meta"]
    assert meta == dict(epoch=3, dataset_meta=dict(classes=("a", "b")))


def test_publishing_refuses(tmp_path, capfd):
    hostile, other = tmp_path / "hostile.pth", tmp_path / "other.pth"
    torch.save(dict(state_dict={"w": Hostile()}), hostile)
    torch.save(dict(weights={}), other)
    for source, message in (
        (hostile, "neither a tensor nor plain data"),
        (other, "no state_dict"),
        (tmp_path / "none.pth", "does not exist"),
    ):
        with pytest.raises((OSError, ValueError), match=message):
            publish(str(source), str(tmp_path / "out"))
    with pytest.raises(ValueError, match=r"or end in \.pth or \.safetensors, got .*out/x\.pt"):
        publish(str(other), str(tmp_path / "out/x.pt"))
    assert "executed" not in capfd.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_publishing_tool(tmp_path):
    assert load_tool("publish_model").parse_args(["a", "b"]).out == "b"
    result = start(TOOLS / "publish_model.py", "none.pth", "out", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.strip() == "error: checkpoint none.pth does not exist"
