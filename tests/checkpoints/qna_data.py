"""Official checkpoints of QnA-ViT: the sample, golden files, shapes, and files of Flax."""

import json
from pathlib import Path

import numpy as np
import torch
from convert_data import DATA

SAMPLE = DATA / "qna_ckpt"
CLASSIFIERS = ["vit_gap_64", "vit_qnav1_k5", "vit_qnav2_resnetstem"]
PUBLISHED = ["tiny", "tiny_7x7", "small", "base"]


def golden_qna(name: str) -> tuple[dict, dict, dict, dict]:
    """Official parameters and batch statistics (flat), model config, and all arrays."""
    with np.load(DATA / "qna" / f"{name}.npz") as file:
        arrays = {k: torch.from_numpy(v) for k, v in file.items() if k != "config"}
        config = json.loads(str(file["config"]))

    def group(prefix: str) -> dict:
        return {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}

    return group("params/"), group("batch_stats/"), config, arrays


def published_qna(name: str) -> dict:
    """Official names and shapes of a published model, all zeros."""
    shapes = json.loads((DATA / "qna_statedicts" / f"qna_{name}.json").read_text())
    return {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}


def nested(flat: dict) -> dict:
    """Nest maps by their names, whose parts are joined by ``/``."""
    tree = {}
    for key, value in flat.items():
        *owners, leaf = key.split("/")
        node = tree
        for owner in owners:
            node = node.setdefault(owner, {})
        node[leaf] = value
    return tree


def train_state(params: dict, batch_stats: dict) -> dict:
    """A checkpoint as the official trainer saves it."""
    moments = {"0": dict(count=torch.tensor(7), mu=nested(params), nu=nested(params)), "1": {}}
    return dict(
        step=torch.tensor(7),
        params=nested(params),
        opt_state={"0": {}, "1": dict(inner_state=moments)},
        batch_stats=nested(batch_stats) or None,
        dynamic_scale=dict(fin_steps=torch.tensor(1), scale=torch.tensor(65536.0)),
    )


def array(tensor: torch.Tensor, code: int = 1, **changes: object) -> object:
    """Pack a tensor as Flax does. ``changes`` replace its shape, dtype name or bytes."""
    import msgpack

    parts = dict(
        shape=tuple(tensor.shape),
        dtype=str(tensor.dtype).removeprefix("torch."),
        data=tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes(),
    )
    return msgpack.ExtType(code, msgpack.packb(tuple((parts | changes).values())))


def write_flax(tree: object, path: Path) -> Path:
    """Write a tree of tensors and plain data as ``flax.serialization`` does."""
    import msgpack

    path.write_bytes(msgpack.packb(tree, default=array, strict_types=True))
    return path
