"""Collect the findings of the checks for one message."""

import re
import shlex
from collections.abc import Iterable, Sequence

_SHOWN = 8  # number of names to show of a longer list


class Findings:
    """Errors, warnings, and the settings that mend them."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self._options: dict[str, str] = {}  # for --cfg-options
        self._lines: dict[str, str] = {}  # for the config file

    def error(self, text: str) -> None:
        """Note a mistake that makes the run fail."""
        if text not in self.errors:
            self.errors.append(text)

    def warn(self, text: str) -> None:
        """Note a probable mistake that the run survives."""
        if text not in self.warnings:
            self.warnings.append(text)

    def set(self, key: str, value: object) -> None:
        """Note a setting that mends a mistake. Only the first value for a key counts."""
        self._options.setdefault(key, shlex.quote(f"{key}={value}"))

    def set_names(self, key: str, names: Sequence[str]) -> None:
        """Note a setting that mends a mistake, with a sequence of names as the value."""
        plain = re.compile(r"(?!(?:true|false|none)$)[A-Za-z_][\w-]*", re.IGNORECASE)
        if all(plain.fullmatch(str(name)) for name in names):
            self.set(key, f"[{','.join(names)}]")
        else:  # the command line drops white space and turns digits into numbers
            self._lines.setdefault(key, f"{key} = {tuple(map(str, names))!r}")

    def advice(self) -> list[str]:
        """Lines that show the noted settings; none if there are no settings."""
        lines = []
        if self._options:
            lines.append(f"To mend that: --cfg-options {' '.join(self._options.values())}")
        if self._lines:
            lines.append("To mend that, set in the config:")
            lines += [f"    {line}" for line in self._lines.values()]
        return lines


def shorten(names: Iterable[object]) -> str:
    """Join names with commas. If there are many, show only the first few and the number."""
    texts = [str(name) for name in names]
    more = f", ... ({len(texts)} in all)" if len(texts) > _SHOWN else ""
    return ", ".join(texts[:_SHOWN]) + more
