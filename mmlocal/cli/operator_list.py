"""Mixers on a command line, such as ``ELSA(kernel_size=5)``."""

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmlocal.errors import UsageError

_LABELLED = re.compile(r"\s*([\w.+-]+)\s*=(?!=)(.+)", re.DOTALL)


def choose_operators(texts: Sequence[str], known: Mapping[str, Any]) -> dict[str, Any]:
    """Read the operators that a user named.

    Args:
        texts: for each operator a key of ``known``, or text for :func:`parse_operator`. Without
            any, all of ``known`` are taken.
        known: label -> ``mixers`` of a :class:`~mmlocal.models.backbones.LocalSwin`.

    Returns:
        Label -> ``mixers``, in the order of the user.

    Raises:
        UsageError: there is no operator, two have one label, or a text has a mistake.
    """
    chosen: dict[str, Any] = {}
    for text in texts or known:
        label, mixers = (text, known[text]) if text in known else parse_operator(text)
        if label in chosen:
            raise UsageError(
                f"two operators have the label {label!r}; give another one, as in other={text}"
            )
        chosen[label] = mixers
    if not chosen:
        raise UsageError(
            "name at least one operator, or take a config that lists some in operators"
        )
    return chosen


def parse_operator(text: str) -> tuple[str, Any]:
    """Read one operator.

    The text is a mixer, ``ELSA``, a mixer with arguments, ``ELSA(kernel_size=5)``, or a list with
    one mixer per stage, ``[ELSA, ELSA, ELSA, WindowAttention]``. An argument may be a mixer too, as
    in ``ProjectedMixer(mixer=DDF(kernel_size=3))``. A label and ``=`` may stand before it; the
    label is else the text itself.

    Args:
        text: what the user wrote.

    Returns:
        The label, and ``mixers`` of a :class:`~mmlocal.models.backbones.LocalSwin`.

    Raises:
        UsageError: the text has another form.
    """
    match = _LABELLED.fullmatch(text)
    label, expression = match.groups() if match else (text, text)
    try:
        node = ast.parse(expression.strip(), mode="eval").body
        if not isinstance(node, ast.Name | ast.Call | ast.List):
            raise ValueError
        return label.strip(), _mixers(node)
    except (ValueError, SyntaxError) as error:
        raise UsageError(
            f"operator {text!r} cannot be read; write a mixer such as ELSA, ELSA(kernel_size=5) or "
            "label=ELSA(kernel_size=5), or a list with one mixer per stage, in quotes"
        ) from error


def _mixers(node: ast.expr) -> Any:
    if isinstance(node, ast.Name):
        return dict(type=node.id)
    if isinstance(node, ast.List):
        return [_mixers(entry) for entry in node.elts]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args:
        if any(keyword.arg is None for keyword in node.keywords):
            raise ValueError
        arguments = {str(keyword.arg): _mixers(keyword.value) for keyword in node.keywords}
        return dict(type=node.func.id, **arguments)
    return ast.literal_eval(node)
