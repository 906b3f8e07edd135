"""Pictures of a data set: the Python function, its errors, and a library from outside."""

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS
from mmengine.structures import BaseDataElement

from mmlocal.cli.browse import browse, main
from mmlocal.errors import UsageError
from mmlocal.libraries import LIBRARIES, Library, register_library

CONFIG = """
default_scope = "{scope}"
model = dict(type="BaseModel")
train_dataloader = dict(batch_size=1, num_workers=0, dataset=dict(type="GreyImages"))
visualizer = dict(type="Visualizer")
"""


class GreyImages(BaseDataset):
    """Three images; image i has the grey level 10 i."""

    def load_data_list(self) -> list[dict]:
        return [{"level": 10 * index} for index in range(3)]

    def prepare_data(self, index: int) -> dict:
        image = torch.full((3, 8, 9), self.get_data_info(index)["level"], dtype=torch.uint8)
        sample = BaseDataElement(metainfo={"img_path": f"of/{index}.png"})
        return {"inputs": image, "data_samples": sample}


@pytest.fixture
def grey_images():
    DATASETS.register_module(module=GreyImages)
    yield
    del DATASETS.module_dict["GreyImages"]


def test_writes_pictures(config, library, tmp_path):
    out = tmp_path / "pictures"
    browse(str(config), output_dir=str(out), not_show=True, show_number=2)
    assert [path.name[:7] for path in sorted(out.iterdir())] == ["000000_", "000001_"]
    drawn = cv2.imread(str(min(out.iterdir())))
    browse(str(config), output_dir=str(out), not_show=True, show_number=1, channel_order="RGB")
    swapped = cv2.imread(str(min(out.iterdir())))
    assert drawn.shape == swapped.shape
    assert not np.array_equal(drawn, swapped)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"not_show": True}, "output_dir: must be given if no window opens"),
        ({"show_number": 0}, "show_number: must be at least 1, got 0"),
    ],
    ids=["no output", "no pictures"],
)
def test_refuses(arguments, message):
    with pytest.raises(UsageError, match=message):
        browse("elsa_swin_nano_shapes", **arguments)


def test_rescaling_is_for_one_library(config, library, tmp_path):
    arguments = dict(output_dir=str(tmp_path / "out"), not_show=True, rescale_factor=2)
    if library == "mmpretrain":
        browse(str(config), **arguments)
        return
    with pytest.raises(UsageError, match=f"applies to mmpretrain .* is for {library}"):
        browse(str(config), **arguments)


def test_command_names_the_flag(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["elsa_swin_nano_shapes", "--not-show"])
    assert capsys.readouterr().err == "error: --output-dir: must be given if no window opens\n"


@pytest.mark.usefixtures("grey_images")
def test_library_from_outside(tmp_path, monkeypatch):
    """It only has to be registered and to draw its own pictures."""
    drawn = {}

    class Toy(Library):
        name = "toy"

        def draw(self, visualizer, image, sample, rescale_factor=None, **where):
            drawn[where["name"]] = int(image.mean()), rescale_factor

        arguments = frozenset({"rescale_factor"})

    monkeypatch.setitem(LIBRARIES, "toy", None)  # forgotten afterwards
    register_library(Toy)
    path = tmp_path / "toy.py"
    path.write_text(CONFIG.format(scope="toy"))
    browse(str(path), output_dir=str(tmp_path), not_show=True, show_number=2, rescale_factor=3.0)
    assert drawn == {"000000_0.png": (0, 3.0), "000001_1.png": (10, 3.0)}


@pytest.mark.usefixtures("grey_images")
def test_plain_mmengine(tmp_path):
    """The image without annotations."""
    path = tmp_path / "plain.py"
    path.write_text(CONFIG.format(scope="mmengine"))
    browse(str(path), output_dir=str(tmp_path / "out"), not_show=True)
    images = [cv2.imread(str(path)) for path in sorted((tmp_path / "out").iterdir())]
    assert [image.shape for image in images] == [(8, 9, 3)] * 3
    assert [image.mean() for image in images] == [0, 10, 20]
