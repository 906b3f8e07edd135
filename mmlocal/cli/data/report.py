"""Findings of the checks, gathered into one message."""

import re
import shlex
from collections.abc import Iterable, Sequence

_SHOWN = 8  # names in a list, before it is cut


class Findings:
    """Errors, warnings, and the settings that mend them."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self._options: dict[str, str] = {}  # for --cfg-options
        self._lines: dict[str, str] = {}  # for the config file

    def error(self, text: str) -> None:
        """Something with which the run cannot work."""
        if text not in self.errors:
            self.errors.append(text)

    def warn(self, text: str) -> None:
        """Something with which the run goes on, and that is hardly meant."""
        if text not in self.warnings:
            self.warnings.append(text)

    def set(self, key: str, value: object) -> None:
        """A setting that mends what was found; the first for a key counts."""
        self._options.setdefault(key, shlex.quote(f"{key}={value}"))

    def set_names(self, key: str, names: Sequence[str]) -> None:
        """A setting whose value is a sequence of names."""
        plain = re.compile(r"(?!(?:true|false|none)$)[A-Za-z_][\w-]*", re.IGNORECASE)
        if all(plain.fullmatch(str(name)) for name in names):
            self.set(key, f"[{','.join(names)}]")
        else:  # the command line drops white space and takes numbers for numbers
            self._lines.setdefault(key, f"{key} = {tuple(map(str, names))!r}")

    def advice(self) -> list[str]:
        """Lines that say how to mend what was found, none if nothing is known."""
        lines = []
        if self._options:
            lines.append(f"To mend that: --cfg-options {' '.join(self._options.values())}")
        if self._lines:
            lines.append("To mend that, set in the config:")
            lines += [f"    {line}" for line in self._lines.values()]
        return lines


def shorten(names: Iterable[object]) -> str:
    """Names in a list, the first few if there are many."""
    texts = [str(name) for name in names]
    more = f", ... ({len(texts)} in all)" if len(texts) > _SHOWN else ""
    return ", ".join(texts[:_SHOWN]) + more
