"""The table of exported models in docs/export.md."""

from collections.abc import Sequence
from pathlib import Path

from mmlocal.export.onnx_file import Exported

#: Configs and parts that --table exports, at the size of their images.
TABLE = (
    ("elsa_swin_t_in1k_300e", "model"),
    ("elsa_volo_d1_in1k_300e", "model"),
    ("volo_d1_in1k_300e", "model"),
    ("qna_vit_t_in1k_300e", "model"),
    ("qna_vit_t_7x7_in1k_300e", "model"),
    ("dwnet_t_in1k_300e", "model"),
    ("dwnet_t_dynamic_in1k_300e", "model"),
    ("dwnet_t_idynamic_in1k_300e", "model"),
    ("ghost_deit_ti_in1k_300e", "model"),
    ("swin_t_window_in1k_300e", "model"),
    ("elsa_swin_t_upernet_160k", "model"),
    ("dwnet_t_upernet_160k", "model"),
    ("elsa_swin_t_maskrcnn_1x", "neck"),
    ("qna_vit_t_maskrcnn_1x", "neck"),
)

_HEADINGS = (
    "config", "part", "image", "free", "opset", "nodes", "MB", "worst error", "PyTorch ms",
    "onnxruntime ms",
)  # fmt: skip


def table_row(config: str, part: str, found: Exported) -> list[str]:
    """Format the result of an export as a row of the table.

    Args:
        config: path or name of the config.
        part: the part of the model.
        found: result of :func:`export`.
    """
    shape = next(iter(found.errors))
    times = [
        f"{found.milliseconds[name]:.0f}" if name in found.milliseconds else "-"
        for name in ("PyTorch", "onnxruntime")
    ]
    return [
        Path(config).stem,
        part,
        f"{shape[0]} x {shape[2]}x{shape[3]}",
        "all" if "height" in found.free else ", ".join(found.free) or "none",
        str(found.opset),
        f"{found.nodes:,}",
        f"{found.size / 1e6:.1f}",
        f"{found.worst:.1e}",
        *times,
    ]


def table_lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    return [f"| {' | '.join(row)} |" for row in (_HEADINGS, ["---"] * len(_HEADINGS), *rows)]
