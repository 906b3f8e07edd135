"""From an official checkpoint to one that mmdet, mmseg and mmpretrain load into our models."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mmlocal.checkpoints.elsa import convert_elsa, elsa_backbone_cfg, unused_by_elsa
from mmlocal.checkpoints.files import load_file, save_file, sha256_of
from mmlocal.checkpoints.matching import MatchReport, match_state_dict
from mmlocal.version import __version__

# Whose checkpoints can be converted.
SYSTEMS = ("elsa",)
# Whose parts are named alike in mmdet 2.x and 3.x, and in mmseg 0.x and 1.x.
_HEAD = re.compile(r"(neck|rpn_head|roi_head|decode_head|auxiliary_head)\.")


@dataclass
class Conversion:
    """A converted checkpoint, and what became of each tensor.

    Args:
        checkpoint: ``meta`` and ``state_dict``, the latter with the names of a full model.
        report: the backbone held against the model that ``meta['backbone_cfg']`` builds.
        heads: names of the other tensors.
        dropped: official names of tensors that our models do not store.
        left: entries of the official checkpoint that are not carried over.
    """

    checkpoint: dict
    report: MatchReport
    heads: list[str]
    dropped: list[str]
    left: list[str]

    def __str__(self) -> str:
        cfg = dict(self.checkpoint["meta"]["backbone_cfg"])
        kind = cfg.pop("type")
        arguments = ", ".join(f"{name}={value!r}" for name, value in cfg.items())
        parts = sorted({name.partition(".")[0] for name in self.heads})
        lines = [
            f"{kind}({arguments})",
            f"backbone: {self.report}",
            f"heads: {len(self.heads)} kept" + (f" ({', '.join(parts)})" if parts else ""),
            f"dropped: {len(self.dropped)} unused",
            *(f"    {name}" for name in self.dropped),
        ]
        if self.left:
            lines.append(f"not carried over: {', '.join(self.left)}")
        return "\n".join(lines)


def convert_checkpoint(
    content: Mapping,
    build: Callable[[dict], nn.Module],
    ema: bool = False,
    lam: float | None = None,
    gamma: float | None = None,
) -> Conversion:
    """Convert a checkpoint of the official ELSA code.

    The layout is told by the names: a classification model as timm's trainer saves it, a detector
    of mmdet 2.x, a segmentor of mmseg 0.x, or the bare state dict of any of these or of a dense
    backbone.

    Args:
        content: what :func:`load_file` returns.
        build: makes a backbone from its config. The converted state dict has to fit it.
        ema: take the moving average of the weights, ``state_dict_ema``.
        lam: of :func:`elsa_backbone_cfg`.
        gamma: of :func:`elsa_backbone_cfg`.

    Returns:
        The conversion. Tensors keep their dtype and share no memory with ``content``.

    Raises:
        ValueError: another architecture, no EMA weights, or a tensor that has no place.
    """
    official, left = _official_state_dict(content, ema)
    heads = {}
    if any(key.startswith("backbone.") for key in official):
        heads = {k: v for k, v in official.items() if not k.startswith("backbone.")}
        if unknown := [key for key in heads if not _HEAD.match(key)]:
            raise ValueError(f"{len(unknown)} tensors belong to no known head: {_some(unknown)}")
        official = {k.removeprefix("backbone."): v for k, v in official.items() if k not in heads}

    cfg = elsa_backbone_cfg(official, lam, gamma)
    dropped = unused_by_elsa(official, cfg)
    for key in dropped:
        del official[key]
    backbone = convert_elsa(official, cfg.get("lam", 0.0), cfg.get("gamma", 1.0))
    if _numel(official) != _numel(backbone):
        raise ValueError("several of its tensors would get the same name")
    if not heads:
        heads = {k: v for k, v in backbone.items() if k.startswith("head.")}
        backbone = {k: v for k, v in backbone.items() if k not in heads}
    model = build(cfg)
    _, report = match_state_dict(backbone, model.state_dict())
    if report.resized or report.mismatched or report.missing or report.unexpected:
        raise ValueError(f"it does not fit the ELSA-Swin that its shapes describe: {report}")
    for name, arch in model.arch_zoo.items():
        if arch == cfg["arch"]:
            cfg["arch"] = name

    meta = dict(backbone_cfg=cfg, mmlocal_version=__version__)
    if dataset_meta := _dataset_meta(content.get("meta")):
        meta["dataset_meta"] = dataset_meta
    state_dict = {f"backbone.{key}": tensor for key, tensor in backbone.items()} | heads
    state_dict = {
        key: tensor.detach().clone(memory_format=torch.contiguous_format)
        for key, tensor in state_dict.items()
    }
    checkpoint = dict(meta=meta, state_dict=state_dict)
    return Conversion(checkpoint, report, list(heads), dropped, left)


def convert_file(
    source: str | Path,
    out: str | Path,
    build: Callable[[dict], nn.Module],
    system: str = "elsa",
    ema: bool = False,
    lam: float | None = None,
    gamma: float | None = None,
    dry_run: bool = False,
) -> tuple[Conversion, Path | None]:
    """Convert a checkpoint file; nothing in it is executed.

    Args:
        source: official checkpoint.
        out: a folder, to name the new file after ``source``, or a file name in ``.pth``. Either
            way the first 8 hex digits of the new file's SHA-256 come before the suffix.
        build: of :func:`convert_checkpoint`, as are ``ema``, ``lam`` and ``gamma``.
        system: one of :data:`SYSTEMS`.
        dry_run: convert and check, but write nothing.

    Returns:
        The conversion, whose ``meta`` also names the source, and the new file, or ``None`` for
        ``dry_run``.

    Raises:
        OSError: ``source`` is missing, or the new file cannot be written.
        ValueError: unknown ``system``; ``source`` cannot be read safely or converted; ``out`` has
            another suffix.
    """
    if system not in SYSTEMS:
        raise ValueError(f"system must be one of {', '.join(SYSTEMS)}, got {system!r}")
    source, out = Path(source).expanduser(), Path(out).expanduser()
    if out.is_dir() or not out.suffix:
        folder, stem = out, re.sub(r"(\.pth|\.pt)?(\.tar)?$", "", source.name)
    elif out.suffix == ".pth":
        folder, stem = out.parent, out.stem
    else:
        raise ValueError(f"the output must be a folder or end in .pth, got {out}")
    content = load_file(source)
    try:
        conversion = convert_checkpoint(content, build, ema, lam, gamma)
    except (
        ValueError,
        TypeError,
        IndexError,
        RuntimeError,
    ) as error:  # as tensors of odd shapes do
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"checkpoint {source} cannot be converted: {reason}") from error
    conversion.checkpoint["meta"]["source"] = dict(
        system=system, file=source.name, sha256=sha256_of(source), ema=ema
    )
    return conversion, None if dry_run else save_file(conversion.checkpoint, folder, stem)


def _official_state_dict(content: Mapping, ema: bool) -> tuple[dict[str, Tensor], list[str]]:
    """The weights under their official names, and the names of the other entries."""
    entry = "state_dict_ema" if ema else "state_dict"
    if ema and entry not in content:
        raise ValueError(f"it holds no moving average of the weights, {entry}")
    wrapped = entry in content
    state_dict = content[entry] if wrapped else content
    if not isinstance(state_dict, Mapping) or not state_dict:
        raise ValueError(f"{entry if wrapped else 'it'} holds no weights")
    if wrong := [k for k, v in state_dict.items() if not (isinstance(k, str) and _is_plain(v))]:
        raise ValueError(f"{len(wrong)} of its weights are no plain tensors: {_some(wrong)}")
    if all(key.startswith("module.") for key in state_dict):
        state_dict = {key.removeprefix("module."): value for key, value in state_dict.items()}
    return dict(state_dict), [str(key) for key in content if key != entry] if wrapped else []


def _is_plain(value: object) -> bool:
    """Whether it is a dense tensor with data; quantised, sparse and meta tensors are not."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and not value.is_quantized
        and not value.is_meta
    )


def _dataset_meta(meta: object) -> dict:
    """Class names and colours under the names of MMEngine, from where MMCV 1.x put them."""
    if not isinstance(meta, Mapping):
        return {}
    classes, palette = meta.get("CLASSES"), meta.get("PALETTE")
    found = {}
    if isinstance(classes, (list, tuple)) and all(isinstance(name, str) for name in classes):
        found["classes"] = tuple(classes)
        if isinstance(palette, (list, tuple)):  # of [R, G, B]
            found["palette"] = [[int(value) for value in colour] for colour in palette]
    return found


def _numel(state_dict: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in state_dict.values())


def _some(names: list) -> str:
    return ", ".join(map(str, names[:3])) + (", ..." if len(names) > 3 else "")
