"""FLOPs, compared with counts by hand, counts of the official code, and published figures."""

import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mmengine import Config
from mmengine.analysis import FlopAnalyzer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import mmlocal
from mmlocal.analysis import (
    MMENGINE_HANDLES,
    Complexity,
    ModuleWork,
    count_macs,
    count_work,
    model_complexity,
)
from mmlocal.cli.flops import published_table
from mmlocal.layers import ELSA, SASA, GhostAttention, QnA, UpsampleQnA, WindowMSA
from mmlocal.libraries import library_of
from mmlocal.models.backbones import ELSASwin, QnAViT
from mmlocal.ops import (
    OPS,
    Op,
    elsa_attention,
    neighborhood_scores,
    qna_attention,
    register_op,
)

DOC = Path(__file__).parents[2] / "docs" / "models.md"
OP = "mmlocal.elsa_attention"
QNA_OP = "mmlocal.qna_attention"

device = pytest.mark.parametrize("device", ["meta", "cpu"])


class Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.forward = function


@device
@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize(
    ("lam", "gamma", "steps"), [(0, 0, 1), (0, 1, 2), (1, 0, 2), (1, 1, 2)], ids=str
)
def test_op(device, softmax, lam, gamma, steps):
    """Each tap and value costs one MAC, and one more for the weight of a ghost head."""
    value, attn = torch.zeros(2, 6, 5, 4, device=device), torch.zeros(2, 3 * 9, 5, 4, device=device)
    ghost = torch.ones(6, 3, 3, device=device)
    macs = count_macs(
        Call(elsa_attention),
        *(value, attn, ghost, ghost),
        kernel_size=3,
        dilation=2,
        lam=lam,
        gamma=gamma,
        softmax=softmax,
    )
    assert macs == {OP: steps * 9 * 2 * 6 * 5 * 4}


def test_op_with_projection():
    """The count equals the sum of the op and the convolution before it."""
    shapes = [(2, 6, 5, 4), (2, 7, 5, 4), (27, 7), (27,), (6, 3, 3)]
    value, attn, weight, bias, ghost = (torch.zeros(shape, device="meta") for shape in shapes)
    op = Call(torch.ops.mmlocal.elsa_attention_projected)
    conv = 2 * 5 * 4 * 7 * 27
    for ghosts, steps in ((None, None), 1), ((None, ghost), 2), ((ghost, ghost), 2):
        for b in (bias, None):
            macs = count_macs(op, value, attn, weight, b, *ghosts, 3, 2, "triton")
            assert macs == {"mmlocal.elsa_attention_projected": steps * 9 * 2 * 6 * 5 * 4 + conv}


@device
def test_elsa_layer(device):
    layer = ELSA(12, 3, kernel_size=3, group_width=4).eval().to(device)
    pixels = 2 * 5 * 4
    macs = count_macs(layer, torch.zeros(2, 5, 4, 12, device=device))
    qk = 8  # 2 * (12 // 3)
    assert macs.pop(OP) == 2 * 9 * 12 * pixels
    # q, k, v; the grouped 3x3 convolution; the maps of 3 heads with 9 taps
    convolutions = pixels * (12 * (2 * qk + 12) + 9 * qk * 4 + qk * 27)
    projection = pixels * 12 * 12
    grouped = macs.get("mmlocal.grouped_conv2d", 0)
    assert grouped == (0 if device == "meta" else pixels * 9 * qk * 4)
    # Which of the others are convolutions depends on the CPU.
    assert sum(macs.values()) == convolutions + projection


@device
@pytest.mark.parametrize("sum_queries", [True, False])
@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize(("stride", "pixels"), [(1, 5 * 4), (2, 3 * 2), (3, 2 * 2)])
def test_qna_op(device, stride, pixels, queries, sum_queries):
    """There is one MAC for each output, tap and query, whether queries are summed or not."""
    value = torch.zeros(2, 6, 5, 4, device=device)
    scores = torch.zeros(2, queries * 3, 5, 4, device=device)
    macs = count_macs(
        Call(qna_attention),
        *(value, scores),
        num_queries=queries,
        kernel_size=3,
        stride=stride,
        padding=1,
        sum_queries=sum_queries,
    )
    assert macs == {QNA_OP: queries * 9 * 2 * 6 * pixels}


@device
@pytest.mark.parametrize("border", ["zero", "mask"])
def test_neighborhood_op(device, border):
    """There is one MAC for each channel of a query and tap, inside or outside the map."""
    maps = [torch.zeros(2, 6, 5, 4, device=device) for _ in range(2)]
    settings = dict(num_heads=3, kernel_size=7, border=border)
    macs = count_macs(Call(neighborhood_scores), *maps, **settings)
    assert macs == {"mmlocal.neighborhood_scores": 49 * 2 * 6 * 5 * 4}


@device
def test_sasa_layer(device):
    layer = SASA(12, 3, kernel_size=5).eval().requires_grad_(False).to(device)
    macs = count_macs(layer, torch.zeros(2, 5, 4, 12, device=device))
    for name in ("mmlocal.neighborhood_scores", "mmlocal.elsa_attention"):
        assert macs.pop(name) == 25 * 2 * 5 * 4 * 12
    # Each number of a query meets the embeddings of 5 rows, or of 5 columns.
    assert sum(macs.values()) == 2 * 5 * 4 * (12 * 36 + 12 * 12 + 12 * 5)


@device
def test_qna_layers(device):
    for layer, pixels, outputs in [
        (QnA(12, 3, stride=2, attn_dims=24, num_queries=4), 2 * 3 * 2, 2 * 3 * 2),
        (UpsampleQnA(12, 3, attn_dims=24), 2 * 5 * 4, 4 * 2 * 5 * 4),
    ]:
        layer = layer.eval().requires_grad_(False).to(device)
        macs = count_macs(layer, torch.zeros(2, 5, 4, 12, device=device))
        assert macs.pop(QNA_OP) == 4 * 9 * 24 * pixels
        # values and scores of the tokens, the output, and the queries times the keys' weights
        products = 2 * 5 * 4 * 12 * (24 + 4 * 3) + outputs * 24 * 24 + 4 * 24 * 12
        assert sum(macs.values()) == products


@device
@pytest.mark.parametrize("masked", [True, False])
def test_window_attention(device, masked):
    """On a CPU, PyTorch has a fused kernel for the two products that its counter does not know."""
    layer = WindowMSA(12, 3, (2, 3)).eval().to(device)
    mask = torch.zeros(2, 6, 6, device=device) if masked else None
    windows, tokens = 4, 6
    macs = count_macs(layer, torch.zeros(windows, tokens, 12, device=device), mask=mask)
    products = windows * 3 * tokens * tokens * (4 + 4)
    projections = windows * tokens * (12 * 36 + 12 * 12)
    assert macs["aten.bmm"] == products
    assert sum(macs.values()) == products + projections


@device
def test_ghost_attention(device):
    layer = GhostAttention(12, 3, (2, 3)).eval().to(device)
    macs = count_macs(layer, torch.zeros(2, 2, 3, 12, device=device))
    assert macs["aten.bmm"] == 2 * (3 * 6 * 6 * 4 + 6 * 6 * 6 * 2)
    assert sum(macs.values()) - macs["aten.bmm"] == 2 * 6 * (12 * 36 + 12 * 12)


def test_mmengine_counts_the_same_with_our_handles():
    """MMEngine gives the same count, except that it adds normalisation."""
    arch = dict(embed_dims=12, depths=(1, 2), num_heads=(3, 3))
    backbone = ELSASwin(arch, out_indices=(1,)).eval()
    image = torch.zeros(1, 3, 32, 40)
    counts = FlopAnalyzer(backbone, (image,)).set_op_handle(**MMENGINE_HANDLES).by_operator()
    ours = count_macs(backbone, image)
    assert counts["elsa_attention"] == ours[OP] > 0
    assert counts["scaled_dot_product_attention"] == ours["aten.bmm"] > 0
    assert counts.pop("layer_norm") > 0
    assert sum(counts.values()) == sum(ours.values())


@pytest.mark.parametrize("sum_queries", [True, False])
def test_mmengine_counts_qna(sum_queries):
    value, scores = torch.zeros(2, 6, 5, 4), torch.zeros(2, 2 * 3, 5, 4)
    settings = dict(num_queries=2, kernel_size=3, stride=2, padding=1, sum_queries=sum_queries)
    op = Call(lambda value, scores: qna_attention(value, scores, **settings))
    counts = FlopAnalyzer(op, (value, scores)).set_op_handle(**MMENGINE_HANDLES).by_operator()
    assert dict(counts) == {"qna_attention": count_macs(op, value, scores)[QNA_OP]}


@pytest.fixture
def dummy_op(monkeypatch) -> Iterator[str]:
    """Make the operator of an op that registers itself after the import of the counters."""
    operator = "mmlocal_tests::shift"
    if not hasattr(torch.ops.mmlocal_tests, "shift"):
        shift = torch.library.custom_op(operator, lambda x: x.roll(1), mutates_args=(),
                                        schema="(Tensor x) -> Tensor")  # fmt: skip
        shift.register_fake(torch.empty_like)
    analysis = types.ModuleType("analysis_of_shift")
    analysis.FLOPS = {operator: lambda shape, *args, out_shape: 2 * 3 * out_shape[0]}
    monkeypatch.setitem(sys.modules, analysis.__name__, analysis)
    register_op(Op("shift", torch.ops.mmlocal_tests.shift, (), analysis.__name__))
    yield operator
    del OPS["shift"]


def test_an_op_that_registers_later_counts(dummy_op):
    image = torch.zeros(7)
    shift = Call(torch.ops.mmlocal_tests.shift)
    macs = count_macs(shift, image)
    assert macs == {"mmlocal_tests.shift": 3 * 7}
    assert Complexity((1, 7), 0, macs | {"aten.mm": 5}).local_macs == 3 * 7
    with FlopCounterMode(display=False) as counter:
        shift(image)
    assert counter.get_total_flops() == 2 * 3 * 7
    assert dummy_op in MMENGINE_HANDLES
    counts = FlopAnalyzer(shift, (image,)).set_op_handle(**MMENGINE_HANDLES).by_operator()
    assert dict(counts) == {"shift": 3 * 7}


def test_names_of_ops_are_unique():
    with pytest.raises(ValueError, match="name must be new, got 'elsa'"):
        register_op(OPS["elsa"])


@device
def test_work_of_modules(device):
    """Nested modules, one that runs twice, one without its hooks, and one that does not run."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.attention = WindowMSA(4, 2, (2, 3))
            self.idle = nn.Linear(4, 4)

        def forward(self, x):
            return self.linear.forward(self.linear(self.attention(x).softmax(dim=1)))

    model, x = Model().eval().to(device), torch.zeros(5, 6, 4, device=device)
    before = dict(vars(model.linear))
    macs, work = count_work(lambda: model(x), dict(model.named_modules()))
    assert vars(model.linear) == before
    assert work["linear"] == ModuleWork(2 * 30 * 16, 4 * 30 * 16, 2)
    assert work["idle"] == ModuleWork(0, 0, 0)
    products = 5 * 2 * 6 * 6 * (2 + 2)
    projections = 30 * (4 * 12 + 4 * 4)
    softmax = 3 * 5 * 2 * 6 * 6
    assert work["attention"].macs == products + projections
    assert work["attention"].flops == 2 * (products + projections) + softmax
    assert work["attention.qkv"].macs == 30 * 4 * 12
    assert work[""].macs == sum(macs.values()) == work["attention"].macs + work["linear"].macs
    assert work[""].flops == 2 * work[""].macs + softmax + 3 * 5 * 6 * 4


def test_counting_leaves_the_module_alone():
    layer = ELSA(6, 1, kernel_size=3, group_width=2)
    count_macs(layer, torch.zeros(1, 3, 3, 6))
    assert layer.training
    assert torch.is_grad_enabled()


# GMACs of convolutions and matrix products, and with aggregation, counted in the official code.
@pytest.mark.parametrize(
    ("arch", "size", "products", "total"),
    [
        ("tiny", (224, 224), 4.64, 4.77),
        ("small", (224, 224), 9.34, 9.56),
        ("base", (224, 224), 16.37, 16.67),
        ("tiny", (800, 1280), 95.5, None),
        ("small", (800, 1280), 191.3, None),
    ],
)
def test_backbones_against_the_official_code(arch, size, products, total):
    with torch.device("meta"):
        backbone = ELSASwin(arch, fit_window=size == (224, 224)).eval()
        macs = count_macs(backbone, torch.zeros(1, 3, *size))
    local = macs.pop(OP)
    assert sum(macs.values()) / 1e9 == pytest.approx(products, rel=2e-3)
    if total is not None:
        assert (sum(macs.values()) + local) / 1e9 == pytest.approx(total, rel=2e-3)


# Parameters, and GMACs as XLA counts the official models: it has all additions, products and
# divisions of norms, softmax, GELU, biases and residuals besides, 1 to 2 % of the whole, and
# leaves out taps beyond the border.
@pytest.mark.parametrize(
    ("arch", "parameters", "gmacs"),
    [
        ("tiny", 15_715_560, 2.46),
        ("tiny_7x7", 15_753_960, 2.54),
        ("small", 24_971_560, 4.41),
        ("base", 55_670_008, 9.60),
    ],
)
def test_qna_vit_against_the_official_code(arch, parameters, gmacs):
    with torch.device("meta"):
        backbone = QnAViT(arch, out_indices=(3,)).eval().requires_grad_(False)
        classes = backbone.num_features[-1] * 1000
        macs = count_macs(backbone, torch.zeros(1, 3, 224, 224))
    assert sum(p.numel() for p in backbone.parameters()) + classes + 1000 == parameters
    assert macs[QNA_OP] > 0
    total = (sum(macs.values()) + classes) / 1e9
    assert 0.98 * gmacs <= total <= 0.995 * gmacs


def test_what_wider_windows_of_qna_cost():
    """0.08 GMACs in the official tiny model, so each of the two queries counts."""
    totals = {}
    for arch in ("tiny", "tiny_7x7"):
        with torch.device("meta"):
            backbone = QnAViT(arch, out_indices=(3,)).eval().requires_grad_(False)
            totals[arch] = sum(count_macs(backbone, torch.zeros(1, 3, 224, 224)).values())
    assert (totals["tiny_7x7"] - totals["tiny"]) / 1e9 == pytest.approx(0.08, abs=0.01)


def need(library: str) -> None:
    pytest.importorskip(library, reason="the library of this config is not installed")
    if library != "mmpretrain":
        pytest.importorskip("mmcv._ext", reason=f"{library} needs the compiled ops of mmcv")


# Millions of parameters and GFLOPs in Swin's tables: the same heads on another backbone.
@pytest.mark.parametrize(
    ("name", "library", "parameters", "gflops"),
    [
        ("elsa_swin_t_maskrcnn_1x", "mmdet", 48, 267),
        ("elsa_swin_t_cascade_maskrcnn_1x", "mmdet", 86, 745),
        ("elsa_swin_t_upernet_160k", "mmseg", 60, 945),
    ],
)
def test_heads_against_the_figures_of_swin(name, library, parameters, gflops):
    need(library)
    cfg = Config.fromfile(mmlocal.config_path(name))
    cfg.model.backbone = dict(type=f"{library}.SwinTransformer")
    found = model_complexity(cfg)
    assert found.parameters / 1e6 == pytest.approx(parameters, abs=0.55)
    assert found.total_macs / 1e9 == pytest.approx(gflops, rel=2e-3)
    assert found.local_macs == 0


def test_shapes_of_the_published_figures():
    cases = {
        "elsa_swin_t_maskrcnn_1x": (800, 1280),
        "elsa_swin_t_upernet_160k": (512, 2048),
        "elsa_swin_t_in1k_300e": (224, 224),
        "elsa_swin_b_in1k_30e_384": (384, 384),
        "volo_d5_in1k_30e_512": (512, 512),
    }
    for name, shape in cases.items():
        cfg = Config.fromfile(mmlocal.config_path(name))
        assert library_of(cfg).default_shape(cfg) == shape
    cfg = Config.fromfile(mmlocal.config_path("elsa_swin_t_in1k_300e"))
    cfg.test_dataloader.dataset.pipeline = [dict(type="Resize", scale=(64, 32))]  # width first
    assert library_of(cfg).default_shape(cfg) == (32, 64)
    crop = dict(type="torchvision/CenterCrop", size=[32, 64])  # height first
    cfg.test_dataloader.dataset.pipeline = [crop]
    assert library_of(cfg).default_shape(cfg) == (32, 64)
    cfg.test_dataloader.dataset.pipeline = [dict(type="PackInputs")]
    with pytest.raises(ValueError, match="shape: must be given"):
        library_of(cfg).default_shape(cfg)


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_proposals_and_masks_are_those_of_the_test_cfg(device):
    """Each further box costs one run of its head, whatever the untrained weights find."""
    need("mmdet")
    cfg = Config.fromfile(mmlocal.config_path("elsa_swin_t_maskrcnn_1x"))
    cfg.model.backbone.arch = dict(embed_dims=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1])
    cfg.model.neck.in_channels = [8, 16, 32, 64]

    def total(proposals: int, masks: int) -> int:
        cfg.model.test_cfg.rpn.max_per_img = proposals
        cfg.model.test_cfg.rcnn.max_per_img = masks
        return model_complexity(cfg, (64, 96), device).total_macs

    base = total(2, 1)
    box_head = 256 * 7 * 7 * 1024 + 1024 * 1024 + 1024 * 81 + 1024 * 4 * 80
    assert total(5, 1) - base == 3 * box_head
    mask_head = 14 * 14 * (4 * 9 * 256 * 256 + 4 * 256 * 256) + 28 * 28 * 256 * 80
    assert total(2, 3) - base == 2 * mask_head


def test_meta_and_cpu_agree():
    need("mmpretrain")
    cfg = Config.fromfile(mmlocal.config_path("elsa_swin_t_in1k_300e"))
    cfg.model.backbone.arch = dict(embed_dims=8, depths=[1, 1, 1, 2], num_heads=[1, 2, 4, 8])
    cfg.model.head.in_channels = 64
    before = cfg.pretty_text
    meta, cpu = (model_complexity(cfg, (64, 100), device) for device in ("meta", "cpu"))
    assert meta.shape == cpu.shape == (64, 100)
    assert meta.parameters == cpu.parameters

    def work(found: Complexity) -> dict[str, int]:
        """Add up products: device and memory format decide their operator."""
        macs = dict(found.macs)
        products = ("mm", "addmm", "bmm", "convolution")
        macs["products"] = sum(macs.pop(f"aten.{name}", 0) for name in products)
        return macs

    assert work(meta) == work(cpu)
    assert cfg.pretty_text == before


def rows(text: str) -> dict[str, list[str]]:
    """Cells of the rows of a Markdown table that begin with the name of a config."""
    found = re.findall(r"^\| (\w+) \|(.*)\|$", text, flags=re.MULTILINE)
    configs = set(mmlocal.list_configs())
    return {name: [cell.strip() for cell in rest.split("|")] for name, rest in found
            if name in configs}  # fmt: skip


@pytest.mark.slow
def test_table_in_the_docs_is_up_to_date():
    for library in ("mmdet", "mmseg", "mmpretrain"):
        need(library)
    table = published_table()
    assert set(rows(table)) == {
        name for name in mmlocal.list_configs() if "shapes" not in name and "scenes" not in name
    }
    assert table in DOC.read_text(), "paste the output of tools/get_flops.py --table"


def test_docs_agree_with_the_published_figures():
    published, counted = DOC.read_text().split("## All configs")
    published, counted = rows(published), rows(counted)
    assert len(published) == 32
    for name, (parameters, gflops, _) in published.items():
        ours = int(counted[name][1].replace(",", "")) / 1e6, float(counted[name][2])
        if parameters != "-":
            assert ours[0] == pytest.approx(float(parameters), rel=0.02)
        if gflops != "-":
            assert ours[1] == pytest.approx(float(gflops), rel=0.02)
