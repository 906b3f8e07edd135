"""Conversion of official checkpoints to files that our models load in every library."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mmlocal.checkpoints.files import name_output, save_file, sha256_of
from mmlocal.checkpoints.matching import MatchReport, match_state_dict
from mmlocal.checkpoints.system import SYSTEMS, System
from mmlocal.version import __version__


@dataclass
class Conversion:
    """A converted checkpoint, and a report on each tensor.

    Args:
        checkpoint: ``meta`` and ``state_dict``. The state dict has the names of a full model.
        report: comparison of the backbone with the model that ``meta['backbone_cfg']`` builds.
        heads: names of the tensors outside the backbone.
        dropped: official names of tensors that our models do not store.
        left: entries of the official checkpoint that are not carried over.
        assumed: arguments of the backbone that the weights do not show, with the values that
            ``meta['backbone_cfg']`` has for them. ``meta['assumed']`` holds the same.
    """

    checkpoint: dict
    report: MatchReport
    heads: list[str]
    dropped: list[str]
    left: list[str]
    assumed: dict[str, object]

    def __str__(self) -> str:
        meta = self.checkpoint["meta"]
        parts = sorted({name.partition(".")[0] for name in self.heads})
        lines = [
            *(_call(meta[key]) for key in ("backbone_cfg", "head_cfg") if key in meta),
            f"backbone: {self.report}",
            f"heads: {len(self.heads)} kept" + (f" ({', '.join(parts)})" if parts else ""),
            f"dropped: {len(self.dropped)} unused",
            *(f"    {name}" for name in self.dropped),
        ]
        if self.assumed:
            lines.append(f"assumed, because no weight shows it: {_arguments(self.assumed)}")
        if self.left:
            lines.append(f"not carried over: {', '.join(self.left)}")
        return "\n".join(lines)


def convert_checkpoint(
    content: Mapping,
    build: Callable[[dict], nn.Module],
    system: str,
    **options: object,
) -> Conversion:
    """Convert a checkpoint of an official code base.

    Args:
        content: the checkpoint, as the system's ``load`` reads it.
        build: function that makes a backbone from its config. The converted state dict must fit
            the backbone. ``build`` is called on the ``meta`` device, if the model allows it, so no
            size can exhaust the memory.
        system: name of the code base, a key of :data:`~mmlocal.checkpoints.system.SYSTEMS`.
        **options: options of the system's ``rename``.

    Returns:
        The conversion. Tensors keep their dtype and share no memory with ``content``.

    Raises:
        ValueError: ``system`` is unknown or does not have an option, or the checkpoint has another
            architecture or a tensor without a place.
    """
    entry = _system(system, options)
    renamed = entry.rename(content, **options)
    cfg, backbone = dict(renamed.cfg), renamed.backbone
    model, _, report = _match(entry, backbone, build, cfg)
    if renamed.tables:
        cfg |= renamed.tables
        model, backbone, report = _match(entry, backbone, build, cfg, resize=True)
    if renamed.head_cfg:
        head = {key.removeprefix("decode_head."): value for key, value in renamed.heads.items()}
        _match(entry, head, build, dict(renamed.head_cfg))
    for name, arch in getattr(model, "arch_zoo", {}).items():
        if arch == cfg["arch"]:
            cfg["arch"] = name

    defaults = inspect.signature(type(model)).parameters
    assumed = {name: cfg.get(name, defaults[name].default) for name in renamed.untold}
    meta = dict(backbone_cfg=cfg, assumed=assumed, mmlocal_version=__version__) | renamed.meta
    if renamed.head_cfg:
        meta["head_cfg"] = renamed.head_cfg
    state_dict = {f"backbone.{key}": tensor for key, tensor in backbone.items()} | renamed.heads
    state_dict = {
        key: tensor.detach().clone(memory_format=torch.contiguous_format)
        for key, tensor in state_dict.items()
    }
    meta["source"] = dict(system=system) | renamed.source
    checkpoint = dict(meta=meta, state_dict=state_dict)
    return Conversion(
        checkpoint, report, list(renamed.heads), renamed.dropped, renamed.left, assumed
    )


def convert_file(
    source: str | Path,
    out: str | Path,
    build: Callable[[dict], nn.Module],
    system: str,
    dry_run: bool = False,
    **options: object,
) -> tuple[Conversion, Path | None]:
    """Convert a checkpoint file without executing anything in it.

    Args:
        source: official checkpoint. For QnA-ViT, it may be a folder of checkpoints: the file of
            the highest step is converted.
        out: a folder, or a file name that ends in ``.pth`` or ``.safetensors``. In a folder, the
            new file has the name of ``source``, and ``.pth``. The first 8 hex digits of the new
            file's SHA-256 come before the suffix.
        build: function that makes a backbone from its config.
        system: name of the code base, a key of :data:`~mmlocal.checkpoints.system.SYSTEMS`.
        dry_run: whether to convert and check, but write nothing.
        **options: options of the system's ``rename``.

    Returns:
        The conversion, whose ``meta`` also names the source, and the path of the new file. With
        ``dry_run``, the path is ``None``.

    Raises:
        ImportError: a library that reads ``source`` is not installed.
        OSError: ``source`` is missing, or the new file cannot be written.
        ValueError: ``system`` is unknown or does not have an option, ``source`` cannot be read
            safely or converted, or ``out`` has another suffix.
    """
    entry = _system(system, options)
    source, out = entry.find(Path(source).expanduser()), Path(out).expanduser()
    target = name_output(source, out)
    content = entry.load(source)
    try:
        conversion = convert_checkpoint(content, build, system, **options)
    except (ValueError, TypeError, IndexError, RuntimeError) as error:  # of odd shapes, too
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"checkpoint {source} cannot be converted: {reason}") from error
    meta = conversion.checkpoint["meta"]
    file = dict(system=system, file=source.name, sha256=sha256_of(source))
    meta["source"] = file | meta["source"]
    return conversion, None if dry_run else save_file(conversion.checkpoint, *target)


def _call(cfg: Mapping[str, object]) -> str:
    arguments = {name: value for name, value in cfg.items() if name != "type"}
    return f"{cfg['type']}({_arguments(arguments)})"


def _arguments(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in values.items())


def _system(system: str, options: Mapping[str, object]) -> System:
    if system not in SYSTEMS:
        raise ValueError(f"system must be one of {', '.join(SYSTEMS)}, got {system!r}")
    entry = SYSTEMS[system]
    if unknown := [name for name in options if name not in entry.options]:
        raise ValueError(
            f"checkpoints of {entry.model} have the options {', '.join(entry.options)}, got "
            f"{', '.join(unknown)}"
        )
    return entry


def _match(
    entry: System,
    state_dict: Mapping[str, Tensor],
    build: Callable[[dict], nn.Module],
    cfg: dict,
    resize: bool = False,
) -> tuple[nn.Module, dict[str, Tensor], MatchReport]:
    """Build the model of ``cfg``, and compare a state dict with it."""
    with torch.device(entry.device):
        model = build(cfg)
    selected, report = match_state_dict(state_dict, model.state_dict(), antialias=entry.antialias)
    wrong = report.mismatched or report.missing or report.unexpected
    if wrong or (report.resized and not resize):
        raise ValueError(f"it does not fit the {entry.model} that its shapes describe: {report}")
    return model, selected, report
