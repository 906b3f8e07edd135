"""The table of exported models in docs/export.md."""

from collections.abc import Sequence
from pathlib import Path

from mmlocal.export.onnx_file import Exported

#: Config, part, and height and width of the image, which is smaller than in papers where an export
#: is to stay short. ``None`` is the size of published FLOPs.
TABLE: tuple[tuple[str, str, tuple[int, int] | None], ...] = (
    ("elsa_swin_t_in1k_300e", "model", None),
    ("elsa_volo_d1_in1k_300e", "model", None),
    ("volo_d1_in1k_300e", "model", None),
    ("qna_vit_t_in1k_300e", "model", None),
    ("qna_vit_t_7x7_in1k_300e", "model", None),
    ("dwnet_t_in1k_300e", "model", None),
    ("dwnet_t_idynamic_in1k_300e", "model", None),
    ("ghost_deit_ti_in1k_300e", "model", None),
    ("elsa_swin_t_upernet_160k", "model", (256, 256)),
    ("itsa_swin_t_nyud_40k", "model", (128, 160)),
    ("demt_swin_t_nyud_40k", "model", (128, 160)),
    ("qna_vit_t_detr_qna_75e", "model", (256, 320)),
    ("elsa_swin_t_maskrcnn_1x", "neck", (256, 320)),
    ("qna_vit_t_maskrcnn_1x", "neck", (256, 320)),
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
