"""Files of safetensors: what the writer stores, and every place that reads them."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

from mmlocal.checkpoints import find_file, load_file, save_file
from mmlocal.checkpoints.files import sha256_of
from mmlocal.checkpoints.safetensors_files import is_safetensors
from mmlocal.cli import publish
from mmlocal.cli.models import load_weights
from mmlocal.cli.resume import check_checkpoint
from mmlocal.errors import UsageError

safetensors = pytest.importorskip("safetensors")
META = dict(
    epoch=3,
    name="12",
    note='{"not": "JSON for us"}',
    dataset_meta=dict(classes=("a", "b"), palette=[[1, 2, 3], [4, 5, 6]]),
)


def checkpoint() -> dict:
    weight = torch.arange(12.0).reshape(3, 4)
    state_dict = {
        "a": weight,
        "transposed": weight.t(),  # with other strides, in the same memory
        "half": weight.half(),
        "steps": torch.tensor(7),
        "empty": torch.zeros(0, 2),
    }
    return dict(meta=META, state_dict=state_dict)


@pytest.fixture(scope="module")
def run_file(tmp_path_factory) -> Path:
    """A checkpoint as a training run leaves it."""
    path = tmp_path_factory.mktemp("run") / "epoch_3.pth"
    extra = dict(optimizer={}, message_hub=dict(log_scalars={}))
    content = checkpoint()
    meta = META | dict(tensor=torch.ones(2), raw=b"bytes")
    torch.save(content | extra | dict(meta=meta), path)
    path.with_name("last_checkpoint").write_text("/somewhere/else/epoch_3.pth")
    torch.save(content, path.with_name("epoch_2.pth"))
    return path


@pytest.fixture(scope="module")
def published(run_file, tmp_path_factory) -> Path:
    return publish.publish(run_file, tmp_path_factory.mktemp("out") / "small.safetensors")


def test_publish(run_file, published):
    assert published.name == f"small-{sha256_of(published)[:8]}.safetensors"
    content = load_file(published)
    assert content.keys() == {"meta", "state_dict"}
    lists = dict(classes=["a", "b"], palette=[[1, 2, 3], [4, 5, 6]])
    assert content["meta"] == META | dict(dataset_meta=lists)
    expected = checkpoint()["state_dict"]
    assert content["state_dict"].keys() == expected.keys()
    for name, value in expected.items():
        assert content["state_dict"][name].dtype == value.dtype
        assert torch.equal(content["state_dict"][name], value)


def test_the_package_itself_reads_it(published):
    with safetensors.safe_open(str(published), "pt") as file:
        assert json.loads(file.metadata()["meta"])["epoch"] == 3


def test_format_and_folder(run_file, published, tmp_path):
    """A folder of a run names its last checkpoint, and ``--format`` the format of the new file."""
    path = publish.publish(run_file.parent, tmp_path, format="safetensors")
    assert path.name == published.name.replace("small", "epoch_3")
    assert path.read_bytes() == published.read_bytes()
    with pytest.raises(ValueError, match=r"a folder or end in \.safetensors, got .*x\.pth"):
        publish.publish(run_file, tmp_path / "x.pth", format="safetensors")
    arguments = publish.parse_args(["a", "b", "--format", "safetensors"])
    assert vars(arguments) == dict(source="a", out="b", format="safetensors", half=False)


def test_half(tmp_path):
    weights = {"w": torch.tensor([0.1, -3.0]), "steps": torch.tensor(7)}
    torch.save(dict(state_dict=weights), tmp_path / "a.pth")
    content = load_file(publish.publish(tmp_path / "a.pth", tmp_path / "half", half=True))
    assert torch.equal(content["state_dict"]["w"], weights["w"].half())
    assert content["state_dict"]["steps"].dtype == torch.int64
    torch.save(dict(state_dict={"w": torch.tensor([1e5])}), tmp_path / "b.pth")
    with pytest.raises(ValueError, match="w is too large for float16: its largest value is 1000"):
        publish.publish(tmp_path / "b.pth", tmp_path / "half", half=True)


def test_published_again_as_a_file_of_torch(published, tmp_path):
    path = publish.publish(published, tmp_path / "small.pth")
    assert torch.load(path, weights_only=True)["meta"]["epoch"] == 3


def test_files_of_other_programs(tmp_path):
    from safetensors.torch import save_file as save

    save({"w": torch.ones(2)}, tmp_path / "a.safetensors", metadata={"format": "pt", "meta": "x"})
    save({"w": torch.ones(2)}, tmp_path / "b.safetensors")
    for name in ("a", "b"):
        content = load_file(tmp_path / f"{name}.safetensors")
        assert content["meta"] == {}
        assert torch.equal(content["state_dict"]["w"], torch.ones(2))
    renamed = (tmp_path / "b.safetensors").rename(tmp_path / "model.bin")
    assert is_safetensors(renamed)
    assert load_file(renamed)["state_dict"]["w"].sum() == 2
    torch.save({}, tmp_path / "c.pth")
    assert not is_safetensors(tmp_path / "c.pth")


class Hostile:
    def __reduce__(self):
        return os.system, ("touch ran",)


def test_damaged_and_hostile_files(published, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    buffer = io.BytesIO()
    torch.save(Hostile(), buffer)
    whole = published.read_bytes()
    path = tmp_path / "x.safetensors"
    for content in (b"", whole[:4], whole[:40], whole[:-1], b"\xff" * 64, buffer.getvalue()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.safetensors cannot be read safely: it is damag"):
            load_file(path)
        with pytest.raises(UsageError, match=r"checkpoint: checkpoint .* cannot be read"):
            check_checkpoint(str(path), "checkpoint")
    assert not Path("ran").exists()
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_file(tmp_path / "no.safetensors")


def test_what_the_format_cannot_hold(tmp_path):
    for value in (torch.eye(2).to_sparse(), 3):
        with pytest.raises(ValueError, match="dense tensors only, w is "):
            save_file(dict(meta={}, state_dict={"w": value}), tmp_path, "x", ".safetensors")
    assert list(tmp_path.iterdir()) == []


def test_odd_contents(tmp_path):
    """Entries of other types give one clear error, or are left out."""
    path = tmp_path / "x.pth"
    model = nn.Linear(1, 1)
    for weights, message in (
        (None, "has a state_dict without weights, a NoneType"),
        ({"weight": 3, "bias": 0.5}, r"2 mismatched \(weight: int for \(1, 1\), bias: float"),
    ):
        torch.save(dict(state_dict=weights), path)
        with pytest.raises(UsageError, match=message):
            load_weights(model, str(path))
    torch.save(dict(state_dict={7: torch.ones(1)}), path)
    with pytest.raises(ValueError, match="tensors with names, and 7 is no text"):
        publish.publish(path, tmp_path, format="safetensors")
    torch.save(dict(state_dict=model.state_dict(), meta=["list"]), path)
    for suffix in ("pth", "safetensors"):
        assert load_file(publish.publish(path, tmp_path, format=suffix))["meta"] == {}


def test_without_the_package(published, run_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    needed = r"needs the package safetensors: pip install safetensors"
    with pytest.raises(ImportError, match=needed):
        load_file(published)
    with pytest.raises(UsageError, match=needed):
        check_checkpoint(str(published), "checkpoint")
    with pytest.raises(UsageError, match=needed):
        load_weights(nn.Linear(1, 1), str(published))
    with pytest.raises(SystemExit):
        publish.main([str(run_file), str(tmp_path / "x.safetensors")])
    assert capsys.readouterr().err.startswith("error: a .safetensors file needs the package")


def test_folders(run_file, published, tmp_path):
    assert find_file(run_file.parent) == run_file
    assert find_file(run_file) == run_file
    alone = tmp_path / "v1.0"
    alone.mkdir()
    (alone / "notes.txt").write_text("")
    copy = alone / published.name
    copy.write_bytes(published.read_bytes())
    assert find_file(alone) == copy
    (alone / "other.pth").write_bytes(b"")
    for read in (load_file, find_file):
        with pytest.raises(ValueError, match=r"holds 2 checkpoints, name one: other\.pth, small-"):
            read(alone)
    with pytest.raises(UsageError, match=r"checkpoint: folder .* holds 2 checkpoints"):
        check_checkpoint(str(alone), "checkpoint")
    check_checkpoint(str(run_file.parent), "checkpoint")


ARCH = dict(embed_dims=8, depths=(1, 1), num_heads=(1, 2))
BACKBONE = dict(type="mmlocal.ELSASwin", arch=ARCH, out_indices=(0, 1))


def test_pretrained_backbone(tmp_path):
    """``init_cfg`` with a prefix, of our backbones and of a module of MMEngine."""
    source = MODELS.build(BACKBONE)
    weights = {f"backbone.{name}": value for name, value in source.state_dict().items()}
    path = save_file(dict(meta={}, state_dict=weights), tmp_path, "small", ".safetensors")
    pretrained = dict(type="Pretrained", checkpoint=str(path), prefix="backbone.")
    model = MODELS.build(BACKBONE | dict(init_cfg=pretrained))
    model.init_weights()
    for name, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


READ = """
import sys
{imports}
import torch
from mmengine.runner import load_checkpoint
for path in sys.argv[1:]:
    model = torch.nn.Module()
    model.register_buffer("a", torch.zeros(3, 4))
    try:
        meta = load_checkpoint(model, path).get("meta")
        print("read", meta["epoch"], float(model.a.sum()))
    except Exception as error:
        print("failed", error)
"""


@pytest.mark.parametrize("imports", ["import mmlocal", "import mmengine.runner, mmlocal", ""])
def test_mmengine_reads_files_and_folders(imports, published, run_file, tmp_path):
    """Whatever is imported first. Without mmlocal, MMEngine reads its own files only."""
    paths = map(str, (run_file, published, run_file.parent))
    command = [sys.executable, "-c", READ.format(imports=imports), *paths]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    found = re.findall("^(read 3 66.0|failed)", done.stdout, re.MULTILINE)
    others = "read 3 66.0" if imports else "failed"
    assert found == ["read 3 66.0", others, others]
