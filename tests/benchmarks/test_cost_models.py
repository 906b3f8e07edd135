"""docs/cost_models.md agrees with its figures, fits find known slopes, and a tiny run works."""

import json
import math
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from tool_scripts import TIMES, load_tool
from torch import nn

from benchmarks import cost_models, cost_page, cost_plots
from benchmarks.cost_curves import Curve, curves
from benchmarks.cost_earlier import earlier_slopes
from benchmarks.cost_fit import error_of_largest, fit, slope
from benchmarks.cost_processes import check_processes
from benchmarks.cost_series import BACKBONES, MODES, Series, Subject, all_series, size_of
from mmlocal.errors import UsageError
from mmlocal.layers import WindowAttention
from mmlocal.models.backbones import ELSASwin
from mmlocal.ops import OPS
from mmlocal.paths import config_path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / cost_page.PAGE).read_text()
CPU = torch.device("cpu")

# ------------------------------------------------------------------------------------------ fits

SIZES = [1.0, 2.0, 5.0, 10.0, 30.0]


@pytest.mark.parametrize("factors", [{0: 3.0, 1: 2.0}, {1: 0.5}, {0: 7.0}, {0: 2.0, 1: 4e3}])
def test_lines(factors):
    costs = [sum(k * x**p for p, k in factors.items()) for x in SIZES]
    fitted = fit(SIZES, costs)
    assert fitted.factors == pytest.approx(factors)
    assert fitted.worst < 1e-9
    assert fitted(100.0) == pytest.approx(sum(k * 100.0**p for p, k in factors.items()))
    assert error_of_largest(SIZES, costs) == pytest.approx(0, abs=1e-9)


def test_squares():
    costs = [0.2 + 3 * x + 0.25 * x**2 for x in SIZES]
    assert fit(SIZES, costs, (0, 1, 2)).factors == pytest.approx({0: 0.2, 1: 3.0, 2: 0.25})
    line = fit(SIZES, costs)
    assert line.worst > 0.2
    assert error_of_largest(SIZES, costs) < -0.3  # a line predicts too little
    share = cost_page.square_share(fit(SIZES, costs, (0, 1, 2)), 10.0)
    assert share == pytest.approx(25 / 55.2)
    # x = 12.07: 0.2 + 36.2 = 36.4
    assert cost_page.half_side(fit(SIZES, costs, (0, 1, 2))) == pytest.approx(12.0663**0.5, 1e-4)
    assert cost_page.half_side(line) is None


def test_no_part_is_negative():
    fitted = fit(SIZES, [2 * x - 0.9 for x in SIZES])
    assert fitted.factors.keys() == {1}
    assert fitted.worst == pytest.approx(max(abs(fitted(x) / (2 * x - 0.9) - 1) for x in SIZES))


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_slopes(power):
    assert slope(SIZES, [3 * x**power for x in SIZES]) == pytest.approx(power)


def test_formula():
    assert cost_page.formula(fit(SIZES, [0.25 + 61 * x for x in SIZES])) == "0.25 + 61 x"
    squares = fit(SIZES, [1234 * x**2 for x in SIZES], (0, 1, 2))
    assert cost_page.formula(squares) == "1,234 x²"


# -------------------------------------------------------------------------------------- the page


def table_of(name: str) -> list[list[str]]:
    """Cells of the first generated table of a part, without its header."""
    begin, end = (f"{name}, {edge} -->" for edge in ("begin", "end"))
    part = PAGE.partition(begin)[2].partition(end)[0]
    lines = re.findall(r"^\|.*\|$", part, re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines][2:]


@pytest.fixture(scope="module")
def measured():
    found = cost_models.read_measured()
    assert found is not None, "run tools/benchmark_cost_models.py --measure"
    return found


def test_page_is_as_the_tool_writes_it(measured):
    written = cost_page.page_with(PAGE, measured)
    assert written == PAGE, "run python tools/benchmark_cost_models.py"
    for question in ("pixels", "window", "channels", "scale"):
        picture = ROOT / "docs" / cost_page.picture_of(question)
        assert 10_000 < picture.stat().st_size < 200_000


def test_everything_was_measured(measured):
    points = {tuple(row[k] for k in ("kind", "name", "axis", "value", "mode"))
              for row in measured["results"] if "axis" in row}  # fmt: skip
    assert points == {
        (one.kind, one.name, one.axis, value, mode)
        for one in all_series()
        for mode, largest in one.largest
        for value in one.values
        if value <= largest
    }
    # The page is about attention.
    attention = set(OPS) - {"convolution"}
    assert {one.name for one in all_series() if one.kind == "op"} == attention


def test_figures_of_the_page(measured):
    """Read here without the code that writes them."""
    rows = measured["results"]
    pixels = {
        (row["mode"], row["value"]): row
        for row in rows
        if (row["kind"], row["name"], row.get("axis")) == ("op", "elsa", "pixels")
    }
    for mode, line in zip(MODES, table_of("caches"), strict=False):
        assert line[:2] == ["ELSA", mode]
        each = {side: row["median_ms"] * 1e6 / side**2 for (m, side), row in pixels.items()
                if m == mode}  # fmt: skip
        assert line[2] == f"{each[32]:,.1f} (32x32)"
        assert line[4] == f"{each[512]:,.1f} (512x512)"
        assert line[5] == f"{each[512] / min(each.values()):.2f}"
    found = {row["name"]: row for row in rows if row["kind"] == "processes"}
    for line, row in zip(table_of("processes"), found.values(), strict=True):
        parameters = row["parameters"]
        assert line[1:5] == [
            f"{parameters:,}", f"{4 * parameters:,}", f"{4 * parameters:,}", f"{2 * parameters:,}"
        ]  # fmt: skip
        assert row["gradient_error"] < 1e-4
    for line, row in zip(table_of("scale"), found.values(), strict=True):
        gradients = 4 * row["parameters"] / 2**20
        assert [float(cell) for cell in line[1:5]] == pytest.approx(
            [gradients, gradients / 2, 1.75 * gradients, 1.96875 * gradients], abs=0.6
        )
        fixed = 20 * row["parameters"] / 2**30
        for images, cell in zip((128, 16), line[6:8], strict=True):
            expected = fixed + images * float(line[5]) / 1024
            assert float(cell) == pytest.approx(expected, rel=0.05, abs=0.06)


def test_parameters(measured):
    """Two processes ran the published models, without the classes' head."""
    known = json.loads((ROOT / "docs/benchmarks/models_cpu_224x224_b4_volo.json").read_text())
    known["results"] += json.loads(
        (ROOT / "docs/benchmarks/models_cpu_224x224_b4_family.json").read_text()
    )["results"]
    expected = {row["model"]: row["parameters"] for row in known["results"]}
    for row in measured["results"]:
        if row["kind"] == "processes":
            assert row["parameters"] == expected[row["name"]]
    counted = {row["model"]: row["macs"] for row in known["results"]}
    for row in measured["results"]:
        if row["kind"] == "count" and row["value"] == 224:
            assert row["macs"] == counted[row["name"]]


def test_claims_about_work(measured):
    """Only VOLO's work has a square part, and it is exact to a percent."""
    work = cost_page.work_of(measured)
    assert work.keys() == BACKBONES.keys()
    assert [name for name, fitted in work.items() if fitted.factors.get(2)] == ["volo_d1"]
    assert max(fitted.worst for fitted in work.values()) < 0.01


def test_earlier_machines():
    """Two of the points that docs/performance.md has in a table."""
    found = earlier_slopes()
    machine, exponent = found["demt", "pixels", "inference"]
    assert "Intel" in machine
    assert exponent == pytest.approx(math.log(19120 / 87) / math.log(107 * 140 / 27 / 35), 0.01)
    assert {name for name, _, _ in found} == {"elsa", "qna", "itsa", "demt"}


@pytest.mark.parametrize(
    ("config", "batch"),
    [
        ("elsa_swin_t_in1k_300e", 1024),
        ("qna_vit_t_in1k_300e", 1024),
        ("dwnet_t_in1k_300e", 1024),
        ("volo_d1_in1k_300e", 1024),
        ("swin_t_window_in1k_300e", 1024),
        ("elsa_swin_t_maskrcnn_1x", 16),
    ],
)
def test_published_batches(config, batch):
    assert Config.fromfile(config_path(config)).auto_scale_lr.base_batch_size == batch
    assert f"{batch} images" in PAGE
    assert cost_page.BATCH == 1024


# ------------------------------------------------------------------------------------- a tiny run


def tiny(value: int, mode: str, device: torch.device) -> Subject:
    layer = nn.Linear(value, value).train(mode == "training").to(device)
    x = torch.ones(8, value, device=device)
    return Subject(partial(layer, x), list(layer.parameters()), x.nbytes)


def series(kind: str, name: str, axis: str) -> Series:
    largest = (("inference", 8), ("training", 8))
    return Series(kind, name, axis, (2, 4, 8), tiny, largest)


SMALL = [
    series("op", "elsa", "pixels"),
    series("backbone", "elsa_swin_tiny", "pixels"),
    series("backbone", "elsa_swin_tiny", "window"),
    series("backbone", "elsa_swin_tiny", "channels"),
    series("backbone", "elsa_swin_tiny", "images"),
]


def test_tiny_run(tmp_path, monkeypatch):
    """Figures reach page, file and pictures, and a second writing changes nothing."""
    saved = []
    result = cost_models.measure(
        SMALL, backbones=(), rounds=1, device="cpu", save=lambda found: saved.append(len(found))
    )
    assert len(saved) == 10  # after each mode of each kind and axis
    assert len(result["results"]) == len(SMALL) * 3 * 2
    row = result["results"][0]
    keys = {"kind", "name", "axis", "value", "mode", "powers", "bytes"}
    assert row.keys() == TIMES | keys
    # Inputs and outputs, 8x2 floats each; then weight and bias, and their gradients.
    assert row["bytes"] == 2 * 8 * 2 * 4
    monkeypatch.setattr(cost_models, "_MULTIPLES", (1, 2))
    counted = cost_models._count("qna_vit_tiny")
    known = dict(
        kind="processes", name="elsa_swin_tiny", parameters=6, processes=2, buckets=1,
        reduced_bytes=24, reduced_bytes_float16=12, loopback_bytes=None, gradient_error=0.0,
    )  # fmt: skip
    result["results"] += [*counted, known]
    page = tmp_path / cost_page.PAGE
    page.parent.mkdir()
    page.write_text(PAGE)
    written = cost_models.write_models(result, tmp_path)
    assert [path.name for path in written] == [
        "cost_models.md", "cost_models_cpu.json", "cost_models_cpu_pixels.png",
        "cost_models_cpu_window.png", "cost_models_cpu_channels.png", "cost_models_cpu_scale.png",
    ]  # fmt: skip
    assert "| QnA-ViT-T |" in page.read_text()
    before = [path.read_bytes() for path in written]
    cost_models.write_models(cost_models.read_measured(tmp_path), tmp_path)
    assert [path.read_bytes() for path in written] == before
    with pytest.raises(ValueError, match=r"cost_models\.md must hold once the lines <!-- written"):
        cost_page.page_with("no tables", result)


def test_bad_rounds():
    with pytest.raises(UsageError, match="rounds: must be at least 1, got 0"):
        cost_models.measure(SMALL, (), rounds=0)


@pytest.mark.parametrize("one", all_series(), ids=lambda one: f"{one.name}-{one.axis}")
def test_sizes_of_series(one):
    """The sizes grow, there are enough of them for a fit, and it predicts the largest one."""
    assert list(one.values) == sorted(set(one.values))
    assert len(one.values) >= 3
    assert {mode for mode, _ in one.largest} <= set(MODES)
    assert size_of(one.axis, 3) == (9 if one.axis in ("pixels", "window") else 3)


@pytest.mark.parametrize(
    "one", {one.name: one for one in all_series() if one.kind != "backbone"}.values(),
    ids=lambda one: one.name,
)  # fmt: skip
def test_smallest_calls(one):
    """Training computes a gradient of each input or parameter."""
    subject = one.build(one.values[0], "training", CPU)
    outs, grads = subject.call("training")()
    assert [x.shape for x in grads] == [x.shape for x in subject.leaves]
    assert all(x.isfinite().all() for x in grads)
    assert subject.held > 0
    assert len(outs) == 1


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones_are_published(name):
    """The published sizes give the published models; other windows and channels can be built."""
    if name == "swin_tiny":
        pytest.importorskip("mmpretrain.models")
    with torch.device("cpu" if name == "swin_tiny" else "meta"):  # mmpretrain reads values
        model = cost_models.build_backbone(name)
        other = cost_models.build_backbone(name, dims=32, window=5)
    assert sum(x.numel() for x in other.parameters()) < sum(x.numel() for x in model.parameters())


def curve(name: str, *times: float, kind: str = "backbone") -> Curve:
    sizes = tuple(2.0**i for i in range(len(times)))
    return Curve(kind, name, "pixels", "inference", sizes, times, times, (0, 1))


def test_messages():
    line, square = curve("swin_tiny", 1, 2, 4, 8), curve("volo_d1", 1, 2, 4, 16)
    small, op = curve("qna_vit_tiny", 3, 3.1, 3.2, 6), curve("elsa", 1, 9, kind="op")
    assert cost_plots.message_of("pixels", [line, square, op]) == (
        "On the largest maps, the time per pixel grows fast for VOLO-D1,\n"
        "and little or not at all for the other 1 steps and backbones"
    )
    assert "no step or backbone leaves" in cost_plots.message_of("pixels", [line])
    assert cost_plots.message_of("window", [line, small]) == (
        "The largest window takes 2.0 (QnA-ViT-T) to 8.0 (Swin-T) times the time of 3x3"
    )
    assert "twice the channels take 2.0 to 2.0 times" in cost_plots.message_of("channels", [line])
    assert cost_plots.scale_message([[1.2, 9.7], [0.6, 2.2]]) == (
        "1024 images need 1 to 10 GiB on each of 8 GPUs,\nand 1 to 2 GiB on each of 64"
    )


def test_curves_are_sorted():
    row = dict(kind="op", name="qna", axis="channels", mode="training", powers=[0, 1])
    rows = [row | dict(value=value, median_ms=1.0, bytes=2**20) for value in (200, 100)]
    (found,) = curves(dict(results=rows), "channels")
    assert found.sizes == (1.0, 2.0)
    assert found.memory == (1.0, 1.0)
    assert found.time_error_of_largest is None


# ---------------------------------------------------------------------------------- two processes


def small_backbone(name: str) -> nn.Module:
    assert name == "small"
    arch = dict(embed_dims=8, depths=(1, 1), num_heads=(1, 2))
    model = ELSASwin(arch, kernel_size=3, window_size=2, out_indices=(0, 1))
    assert any(isinstance(part, WindowAttention) for part in model.modules())
    return model


@pytest.mark.slow
def test_two_processes():
    """Two processes reduce all gradients once, and get the gradients of one process."""
    found = check_processes("small", side=16, build=small_backbone)
    parameters = sum(x.numel() for x in small_backbone("small").parameters())
    assert found["parameters"] == parameters
    assert found["reduced_bytes"] == 4 * parameters
    assert found["reduced_bytes_float16"] == 2 * parameters
    assert found["processes"] == 2
    assert found["buckets"] >= 1
    assert found["gradient_error"] < 1e-5


def test_the_tool(monkeypatch, tmp_path):
    tool = load_tool("benchmark_cost_models")
    arguments = tool.parse_args(["--measure", "--rounds", "5"])
    assert vars(arguments) == dict(measure=True, rounds=5, device="cpu")
    args = tool.argparse.Namespace(measure=False, device="cuda")
    monkeypatch.setattr(tool, "parse_args", lambda: args)
    monkeypatch.setattr(tool, "measured_path", lambda device: tmp_path / f"x_{device}.json")
    monkeypatch.setattr(tool, "read_measured", lambda device: None)
    with pytest.raises(UsageError, match=r"x_cuda\.json is missing; add --measure"):
        tool.main()
