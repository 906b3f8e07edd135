"""Reading Flax's files, which may be hostile or damaged, without Flax."""

import random
import sys

import pytest
import torch
from qna_data import SAMPLE, array, write_flax

from mmlocal.checkpoints import load_flax
from mmlocal.checkpoints.flax_files import find_flax

msgpack = pytest.importorskip("msgpack", reason="needs msgpack")

DTYPES = [
    *(torch.bool, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.complex64, torch.complex128),
]


def fails(path) -> str:
    """Return the error, which must be one line."""
    with pytest.raises(ValueError) as error:
        load_flax(path)
    message = str(error.value)
    assert message.startswith(f"checkpoint {path} ")
    assert "\n" not in message
    return message


def flat(tree: dict, prefix: str = "") -> dict:
    leaves = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            leaves |= flat(value, f"{prefix}{key}/")
        else:
            leaves[prefix + key] = value
    return leaves


def test_the_sample_has_its_tree():
    leaves = flat(load_flax(SAMPLE / "checkpoint_375300"))
    lines = (SAMPLE / "tree.txt").read_text().splitlines()
    assert len(leaves) == len(lines)
    for line in lines:
        name, _, kind = line.partition("\t")
        kind = kind.strip('"')
        if kind.startswith("array:"):
            _, dtype, shape = kind.split(":")
            value = leaves[name]
            assert str(value.dtype) == f"torch.{dtype}"
            assert str(list(value.shape)) == shape
        else:
            assert not torch.is_tensor(leaves[name]), line
    assert leaves["step"] == 375300


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_arrays(dtype, tmp_path):
    tensor = torch.randn(2, 3).mul(10).abs().to(dtype)
    tree = dict(a=tensor, b=dict(c=tensor[0, 0], d=tensor[:0]))
    content = flat(load_flax(write_flax(tree, tmp_path / "a")))
    assert content.keys() == flat(tree).keys()
    for key, wanted in flat(tree).items():
        assert content[key].dtype is dtype
        assert content[key].shape == wanted.shape
        assert torch.equal(content[key], wanted)


def test_other_leaves(tmp_path):
    tree = dict(n=None, i=3, f=0.5, s="x", l=[1, 2], e={}, k={1: "one"})
    scalar = array(torch.tensor(2.5, dtype=torch.float64), code=3)
    number = msgpack.ExtType(2, msgpack.packb((1.0, -2.0)))
    other = msgpack.ExtType(9, b"data")
    content = load_flax(write_flax(tree | dict(x=scalar, y=number, z=other), tmp_path / "a"))
    assert content.pop("x").item() == 2.5
    assert content == tree | dict(y=1 - 2j, z=other)


def chunked(tensor: torch.Tensor, sizes: list[int], **changes: object) -> dict:
    """Flax cuts arrays of more than 2**30 bytes in this way."""
    chunks = tensor.flatten().split(sizes)
    return {
        "__msgpack_chunked_array__": True,
        "shape": {str(i): size for i, size in enumerate(tensor.shape)},
        "chunks": {str(i): chunk for i, chunk in enumerate(chunks)},
    } | changes


def test_chunks(tmp_path):
    # More than ten, so that the order of the names is not that of the numbers.
    tensor = torch.arange(24.0).view(2, 3, 4)
    tree = dict(a=dict(b=chunked(tensor, [2] * 12)))
    content = load_flax(write_flax(tree, tmp_path / "a"))
    assert torch.equal(content["a"]["b"], tensor)


def test_contradictory_chunks(tmp_path):
    tensor = torch.arange(6.0).view(2, 3)
    for changes, words in (
        (dict(shape={"0": 2, "1": 4}), r"shape (2, 4) is cut into chunks of 6 numbers"),
        (dict(shape={"0": 2, "1": -1}), "impossible shape"),
        (dict(shape={"1": 2, "2": 3}), "damaged, or not written by Flax"),
        (dict(shape=None), "damaged, or not written by Flax"),
        (dict(chunks={}), "damaged, or not written by Flax"),
        (dict(chunks={"0": "text"}), "damaged, or not written by Flax"),
    ):
        path = write_flax(dict(a=chunked(tensor, [6]) | changes), tmp_path / "a")
        assert words in fails(path), changes


def test_contradictory_arrays(tmp_path):
    """Sizes are compared before anything of that size is made."""
    tensor = torch.arange(6.0).view(2, 3)
    huge = 1 << 62
    for changes, words in (
        (dict(shape=(2, 4)), "(2, 4) and dtype float32 needs 32 bytes, got 24"),
        (dict(shape=(huge, huge)), f"needs {4 * huge * huge} bytes, got 24"),
        (dict(shape=(2, -3)), "impossible shape"),
        (dict(shape=(2.0, 3)), "impossible shape"),
        (dict(shape=(True, 6)), "impossible shape"),
        (dict(shape=(1,) * 33), "impossible shape"),
        (dict(shape=6), "damaged, or not written by Flax"),
        (dict(shape=(0, huge, huge), data=b""), "damaged, or not written by Flax"),
        (dict(dtype="float64"), "dtype float64 needs 48 bytes, got 24"),
        (dict(dtype="object"), "unknown dtype 'object'"),
        (dict(dtype="load"), "unknown dtype 'load'"),
        (dict(dtype="V" * 99), f"unknown dtype '{'V' * 20}'"),
        (dict(dtype=5), "damaged, or not written by Flax"),
        (dict(data=b""), "needs 24 bytes, got 0"),
        (dict(data=3), "damaged, or not written by Flax"),
    ):
        path = write_flax(dict(params=dict(a=array(tensor, **changes))), tmp_path / "a")
        assert words in fails(path), changes


def test_claims_without_data(tmp_path):
    """Nested lists and maps may claim more entries than the file has bytes."""
    path = tmp_path / "a"
    for claim in (b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff"):
        path.write_bytes(b"\x81\xa6params" + claim * 20)
        assert "damaged, or not written by Flax" in fails(path)
    path.write_bytes(b"\x81\xa6params" + b"\xc9\xff\xff\xff\xff\x01")
    assert "damaged, or not written by Flax" in fails(path)
    path.write_bytes(b"\x91" * 100_000)  # deeper than any stack
    assert "damaged, or not written by Flax" in fails(path)
    path.write_bytes(msgpack.packb(dict(a=list(range(70_000)))))
    assert "damaged, or not written by Flax" in fails(path)


def test_a_file_of_impossible_size_is_not_read(tmp_path):
    with open(tmp_path / "a", "wb") as file:
        file.truncate((1 << 34) + 1)  # takes no space
    assert "is larger than 16 GiB" in fails(tmp_path / "a")


def test_other_files(tmp_path):
    torch.save(dict(params={}), tmp_path / "a.pth")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_text("no checkpoint")
    for name in ("a.pth", "empty", "text"):
        assert "damaged, or not written by Flax" in fails(tmp_path / name)
    assert "must hold a map, as Flax writes it, got list" in fails(write_flax([1], tmp_path / "b"))


def test_damaged_files(tmp_path):
    """Any cut is an error; any changed byte gives a map or an error of one line, nothing else."""
    torch.manual_seed(0)
    tree = dict(step=torch.tensor(3), params=dict(a=dict(b=torch.randn(4, 3)), c=torch.ones(2)))
    tree["params"]["d"] = chunked(torch.ones(3, 2), [4, 2])
    path = write_flax(tree, tmp_path / "a")
    whole = path.read_bytes()
    for length in range(0, len(whole), 4):
        path.write_bytes(whole[:length])
        assert "cannot be read: it is damaged" in fails(path)
    choice = random.Random(0)
    messages = []
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(choice.choice((1, 1, 4))):
            damaged[choice.randrange(len(damaged))] = choice.randrange(256)
        path.write_bytes(damaged)
        try:
            assert isinstance(load_flax(path), dict)
        except ValueError as error:
            messages.append(str(error))
    assert 40 < len(messages) < 200
    assert all(message.startswith(f"checkpoint {path} ") for message in messages)
    assert "\n" not in "".join(messages)


def test_folders(tmp_path):
    for name in ("checkpoint_9", "checkpoint_10", "checkpoint_x", "checkpoint_11.tmp", "other_99"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "checkpoint_12").mkdir()
    assert find_flax(tmp_path) == tmp_path / "checkpoint_10"
    assert find_flax(tmp_path / "checkpoint_9") == tmp_path / "checkpoint_9"
    with pytest.raises(FileNotFoundError, match=r"checkpoint_12 holds no file checkpoint_<step>"):
        find_flax(tmp_path / "checkpoint_12")
    for path in (tmp_path, tmp_path / "no"):
        with pytest.raises(FileNotFoundError, match=f"checkpoint {path} does not exist"):
            load_flax(path)


def test_without_msgpack(monkeypatch):
    monkeypatch.setitem(sys.modules, "msgpack", None)
    with pytest.raises(ImportError, match="checkpoints of Flax need msgpack: pip install msgpack"):
        load_flax(SAMPLE / "checkpoint_375300")
