"""A dummy code base: the parts that it needs, and the places that find it."""

import sys
from pathlib import Path

import pytest
import torch

import mmlocal.checkpoints
from mmlocal.checkpoints import SYSTEMS, System, register_system
from mmlocal.checkpoints.system import (
    Renamed,
    count_blocks,
    mlp_ratio_of,
    official_weights,
    split_heads,
)
from mmlocal.cli.convert import main
from mmlocal.models.backbones import ELSASwin

ARCH = dict(embed_dims=6, depths=(1,), num_heads=(1,), group_width=8)


def rename(content: dict, ema: bool = False, halve: float = 1.0) -> Renamed:
    official, left = official_weights(content, "model_ema" if ema else "model")
    backbone = {key.removeprefix("trunk."): value * halve for key, value in official.items()}
    cfg = dict(type="mmlocal.ELSASwin", arch=ARCH, out_indices=(0,))
    return Renamed(cfg, backbone, {}, [], left, untold=("drop_path_rate",))


@pytest.fixture
def dummy() -> System:
    options = dict(ema=dict(action="store_true", help="averaged"),
                   halve=dict(type=float, help="factor of all weights"))  # fmt: skip
    system = System("dummy", "Dummy", rename, options)
    register_system(system)
    yield system
    del SYSTEMS["dummy"]


def test_the_command_line_finds_it(dummy, tmp_path, capsys):
    """The command line shows its options, one of which another code base has, too."""
    backbone = ELSASwin(ARCH, out_indices=(0,))
    weights = {f"module.trunk.{key}": value for key, value in backbone.state_dict().items()}
    torch.save(dict(model=weights, epoch=3), tmp_path / "in.pth")
    main(["--from", "dummy", str(tmp_path / "in.pth"), str(tmp_path / "out"), "--halve", "0.5"])
    out = capsys.readouterr().out
    assert f"backbone: {len(weights)} loaded; 0 resized; 0 mismatched; 0 missing" in out
    assert (
        "assumed, because no weight shows it: drop_path_rate=0.1\nnot carried over: epoch\n" in out
    )
    (path,) = (tmp_path / "out").iterdir()
    content = torch.load(path, weights_only=True)
    assert content["meta"]["source"]["system"] == "dummy"
    for key, value in weights.items():
        ours = content["state_dict"][key.replace("module.trunk.", "backbone.")]
        assert torch.equal(ours, value / 2)
    with pytest.raises(SystemExit):
        main(["--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert "--ema elsa, volo, dummy: " in words
    assert "--halve HALVE dummy: factor of all weights" in words


def test_a_name_is_taken_once(dummy):
    with pytest.raises(ValueError, match="name must be new, got 'dummy' for a second time"):
        register_system(dummy)


def test_every_file_is_imported():
    """No list names the code bases."""
    (folder,) = map(Path, mmlocal.checkpoints.__path__)
    names = {f"mmlocal.checkpoints.{path.stem}" for path in folder.glob("[a-z]*.py")}
    assert len(names) > 5
    assert names <= set(sys.modules)


def test_number_of_blocks():
    def count(*names: str) -> tuple[int, ...]:
        weights = {f"{name}.weight": torch.zeros(1) for name in names}
        return count_blocks("Net", weights, "net.{}.{}")

    assert count("net.0.0", "net.1.1", "net.1.0", "network.7.0", "net.1.0.fc") == (1, 2)
    with pytest.raises(ValueError, match=r"not an official Net: there is no net\.0\.0"):
        count("network.0.0")
    for names, missing in ((("net.0.0", "net.2.0"), "1.0"), (("net.0.0", "net.0.2"), "0.1")):
        with pytest.raises(ValueError, match=rf"not a whole Net: there is no net\.{missing}"):
            count(*names)


def test_mlp_ratio():
    assert mlp_ratio_of([(32, 8), (64, 16)]) == 4
    assert mlp_ratio_of([(20, 8)]) == 2.5
    with pytest.raises(ValueError, match="no mlp_ratio gives"):
        mlp_ratio_of([(32, 8), (48, 16)])


def test_heads():
    one = torch.zeros(1)
    assert split_heads({"a": one}) == ({"a": one}, {})
    assert split_heads({"backbone.a": one, "neck.b": one}) == ({"a": one}, {"neck.b": one})
    with pytest.raises(ValueError, match="1 tensors belong to no known head: other"):
        split_heads({"backbone.a": one, "other": one})
