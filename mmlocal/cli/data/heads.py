"""Do the heads of a model have as many outputs as the data has classes?"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config

from mmlocal.cli.data.report import Findings
from mmlocal.libraries import Library, library_of
from mmlocal.libraries.base import type_name


@dataclass(frozen=True)
class Head:
    """A head of the model.

    Args:
        key: of its part of the config.
        num_classes: as configured.
    """

    key: str
    num_classes: int

    @property
    def setting(self) -> str:
        return f"{self.key}.num_classes"


def heads_of(cfg: Config) -> list[Head]:
    """Heads of a config that set ``num_classes``; none of a model without numbered classes."""
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
        heads: from :func:`heads_of`.
        number: classes of a data set.
        names: what has them, for the message.
        trains: whether the labels reach the loss.
        findings: where to say it. Too few outputs are an error in training, all else a warning.
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
