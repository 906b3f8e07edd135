"""Check that the heads of a model have as many outputs as the data has classes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config

from mmlocal.cli.data.report import Findings
from mmlocal.libraries import Library, library_of
from mmlocal.libraries.config_parts import type_name


@dataclass(frozen=True)
class Head:
    """A head of the model.

    Args:
        key: key of the head in the config.
        num_classes: number of classes that the head is configured for.
    """

    key: str
    num_classes: int

    @property
    def setting(self) -> str:
        """Key of ``num_classes`` in the config."""
        return f"{self.key}.num_classes"


def heads_of(cfg: Config) -> list[Head]:
    """List the heads of a config that have one output for each class.

    Args:
        cfg: whole config.
    """
    model, library = cfg.get("model"), library_of(cfg)
    if not isinstance(model, dict) or not library.counts_classes(model):
        return []
    return list(_walk(model, "model", library))


def _walk(node: Any, key: str, library: Library) -> Iterator[Head]:
    for name, child in node.items():
        parts = (
            {f"{key}.{name}.{i}": part for i, part in enumerate(child)}
            if isinstance(child, (list, tuple))
            else {f"{key}.{name}": child}
        )
        for path, part in parts.items():
            if not isinstance(part, dict):
                continue
            number = part.get("num_classes")
            counts = name in library.heads and type_name(part.get("type")) not in library.odd_heads
            if counts and type(number) is int and not part.get("class_agnostic"):
                yield Head(path, number)
            yield from _walk(part, path, library)


def compare_heads(
    heads: list[Head], number: int, names: str, trains: bool, findings: Findings
) -> None:
    """Compare the outputs of all heads with a number of classes.

    Args:
        heads: result of :func:`heads_of`.
        number: number of classes of a data set.
        names: subject and verb for the message, such as ``"train_dataloader.dataset has"``.
        trains: whether the labels reach the loss. Then too few outputs are an error; every other
            difference is a warning.
        findings: collects the differences.
    """
    for head in heads:
        if head.num_classes == number:
            continue
        text = f"{head.setting} is {head.num_classes}, {names} {number} classes"
        if head.num_classes < number and trains:
            findings.error(f"{text}: there are labels without an output")
        elif head.num_classes < number:
            findings.warn(f"{text}: some classes are never predicted")
        else:
            findings.warn(f"{text}: there are outputs without a class")
        findings.set(head.setting, number)
