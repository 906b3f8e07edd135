"""Words, colours and lines of contestants, so that each looks the same in all plots.

The families of mmlocal have strong colours. All others are grey, and differ in markers and dashes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_PEER = "#8a8a8a"
_OTHERS = ("P", "X", "<", ">", "h", "*")


@dataclass(frozen=True)
class Style:
    """Look of a contestant in a plot.

    Args:
        words: name for people who do not know the code.
        colour: colour of lines, markers and text.
        marker: marker of matplotlib.
        line: line style of matplotlib.
        ours: whether the contestant belongs to a family of mmlocal.
    """

    words: str
    colour: str = _PEER
    marker: str = "o"
    line: Any = "-"
    ours: bool = False

    def plot_arguments(self) -> dict[str, Any]:
        """Keyword arguments for ``Axes.plot`` and ``Axes.errorbar`` of matplotlib."""
        return dict(
            color=self.colour,
            marker=self.marker,
            linestyle=self.line,
            linewidth=2.4 if self.ours else 1.3,
            markersize=6 if self.ours else 5,
            zorder=3 if self.ours else 2,
        )


_STYLES = {
    "ELSA": Style("ELSA", "#d1242f", "o", "-", True),
    "QnA": Style("QnA", "#0b5fc0", "o", "-", True),
    "UQnA": Style("U-QnA", "#0b5fc0", "o", "-", True),
    "OutlookAttention": Style("outlook attention (VOLO)", "#1a7f37", "o", "-", True),
    "DynamicDepthwiseConv": Style("dynamic depth-wise conv (DWNet)", "#bc6c00", "o", "-", True),
    "InterTaskAttention": Style("inter-task attention (ITSA)", "#7b3fb5", "o", "-", True),
    "WindowAttention": Style("window attention (Swin)", _PEER, "s", "--"),
    "HaloAttention": Style("halo attention (HaloNet)", _PEER, "D", "-."),
    "DepthwiseConv": Style("depth-wise convolution", _PEER, "^", ":"),
    "Conv": Style("dense convolution", _PEER, "v", (0, (6, 2))),
    "Flex": Style("FlexAttention", _PEER, "P", (0, (1, 2))),
    "NATTEN": Style("NATTEN", _PEER, "X", (0, (4, 1, 1, 1, 1, 1))),
    "SASA": Style("stand-alone self-attention (SASA)", _PEER, "<", (0, (3, 3))),
    "GlobalAttention": Style("global attention", _PEER, ">", (0, (8, 2, 2, 2))),
    "Involution": Style("involution", _PEER, "h", (0, (2, 1))),
    "DDF": Style("decoupled dynamic filters (DDF)", _PEER, "*", (0, (5, 1, 1, 1))),
    "WrittenOut": Style("windows written out", "#404040", "x", "-"),
    "ExpConv": Style("two convolutions of exponentials", _PEER, "p", (0, (3, 1))),
    "BilinearConv": Style("bilinear + convolution", _PEER, "s", "--"),
    "TransposedConv": Style("transposed convolution", _PEER, "^", ":"),
}
# Names that the code has for the same things.
_ALIASES = {
    "conv": "Conv",
    "dwconv": "DepthwiseConv",
    "exp_conv": "ExpConv",
    "flex": "Flex",
    "halo": "HaloAttention",
    "natten": "NATTEN",
    "reference": "WrittenOut",
    "sasa": "SASA",
    "swin": "WindowAttention",
    # ops
    "elsa": "ELSA",
    "qna": "QnA",
    "outlook": "OutlookAttention",
    "deformable": "InterTaskAttention",
    # decoders of auto-encoders
    "bilinear_conv": "BilinearConv",
    "conv_transposed": "TransposedConv",
    "uqna": "UQnA",
}


def style_of(name: str) -> Style:
    """The look of a contestant.

    Args:
        name: name of a mixer, of an op, of a peer in the benchmarks, or any other name.

    Returns:
        The same style for the same name, always. An unknown name gets a grey one.
    """
    key = _ALIASES.get(name, name)
    if key in _STYLES:
        return _STYLES[key]
    marker = _OTHERS[sum(name.encode()) % len(_OTHERS)]
    return Style(name, marker=marker)
