"""Official state dicts, from golden files and from the shapes of published models."""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

DATA = Path(__file__).parents[1] / "data"
CLASSIFIERS = ["cls_00_img64_win_clipped", "cls_01_img56_shifted", "cls_02_img32_ape"]
DENSE = ["det_00_75x101", "det_01_66x50_ape"]


def golden(name: str) -> tuple[dict, dict, dict]:
    """Official state dict, arguments of the official constructor, and all arrays."""
    with np.load(DATA / "elsa" / f"{name}.npz") as file:
        arrays = {k: torch.from_numpy(v) for k, v in file.items() if k != "config"}
        init = json.loads(str(file["config"]))["init"]
    prefixes = ("param.", "buffer.")
    official = {k.partition(".")[2]: v for k, v in arrays.items() if k.startswith(prefixes)}
    return official, init, arrays


def published(name: str) -> dict:
    """Official names and shapes of a published model, all zeros."""
    shapes = json.loads((DATA / "elsa_statedicts" / f"elsa_{name}.json").read_text())["state_dict"]
    return {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}


def relative_error(ours: torch.Tensor, official: torch.Tensor) -> float:
    assert ours.shape == official.shape
    return ((ours - official).abs().max() / official.abs().max()).item()


def timm_checkpoint(state_dict: dict, ema: dict | None = None, prefix: str = "") -> dict:
    """A checkpoint as timm 0.4.9's trainer saves it."""
    checkpoint = dict(
        epoch=309,
        arch="elsa_swin_tiny",
        state_dict={prefix + key: value for key, value in state_dict.items()},
        optimizer=dict(state={0: dict(step=7, exp_avg=torch.ones(2))}, param_groups=[dict(lr=0.1)]),
        version=2,
        args=argparse.Namespace(model="elsa_swin_tiny", lr=1e-3, mean=None),
        amp_scaler=dict(scale=65536.0, growth_factor=2.0),
        metric=82.7,
    )
    if ema is not None:
        checkpoint["state_dict_ema"] = {prefix + key: value for key, value in ema.items()}
    return checkpoint


def mmcv_checkpoint(backbone: dict, heads: dict, **meta: object) -> dict:
    """A checkpoint as MMCV 1.3 saves a detector or segmentor. ``amp`` is apex's entry."""
    return dict(
        meta=dict(
            env_info="sys.platform: linux",
            config="model = dict(type='MaskRCNN')",
            seed=None,
            epoch=12,
            iter=87972,
            mmcv_version="1.3.0",
            time="Thu Dec 16 10:00:00 2021",
            **meta,
        ),
        state_dict={f"backbone.{key}": value for key, value in backbone.items()} | heads,
        optimizer=dict(state={}, param_groups=[dict(lr=1e-4)]),
        amp=dict(loss_scaler0=dict(loss_scale=65536.0, unskipped=12)),
    )
