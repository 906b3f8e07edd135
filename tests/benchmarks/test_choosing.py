"""docs/choosing.md agrees with the metafiles, the counted costs and the measured figures."""

import json
import re
from pathlib import Path

import pytest
import yaml
from tool_scripts import TIMES, load_tool

from benchmarks import choosing
from mmlocal.errors import UsageError

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / choosing.PAGE).read_text()
OURS = [choice for choice in choosing.CHOICES if isinstance(choice, choosing.Ours)]
PEERS = [choice for choice in choosing.CHOICES if isinstance(choice, choosing.Peer)]


def load(text: str) -> dict:
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def rows() -> dict[str, list[str]]:
    """Cells of the generated table, by model."""
    part = PAGE.partition(choosing.BEGIN)[2].partition(choosing.END)[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    cells = [[cell.strip().strip("*`") for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row for row in cells[2:]}


def test_page_is_as_the_tool_writes_it():
    written = choosing.page_with(PAGE, choosing.read_measured())
    assert written == PAGE, "run python tools/benchmark_choosing.py"


def test_figures_of_ours():
    """Read here without the code that writes them."""
    found = rows()
    entries = {}
    for library in ("mmdet", "mmseg", "mmpretrain"):
        models = load((ROOT / f"configs/{library}/metafile.yml").read_text())["Models"]
        entries |= {model["Name"]: model for model in models}
    for choice in OURS:
        row = found[choice.label]
        figures = {}
        for name in filter(None, (choice.classifier, choice.detector, choice.segmentor)):
            for result in entries[name]["Results"]:
                for metric, value in result["Metrics"].items():
                    figures.setdefault(metric.partition(" (")[0], value)
        assert (
            row[1]
            == f"{choosing.published()[choice.classifier]['Metadata']['Parameters'] / 1e6:.1f}"
        )
        for cell, metric in zip(
            row[3:7], ("Top 1 Accuracy", "box AP", "mIoU", "mIoU ms+flip"), strict=True
        ):
            expected = figures.get(metric)
            assert cell == ("-" if expected is None else str(expected)), (choice.label, metric)
        assert row[9] == choice.classifier


def index_of(library: str) -> dict[str, dict]:
    """Models of a library's own metafiles, by name."""
    module = pytest.importorskip(library)
    configs = Path(module.__file__).parent / ".mim/configs"
    entries = {}
    for folder in ("swin", "swin_transformer", "convnext", "resnet", "cascade_rcnn", "upernet"):
        for path in (configs / folder).glob("metafile.y*ml"):
            models = load(path.read_text())["Models"]
            entries |= {model["Name"]: model for model in models}
    return entries


def metrics_of(model: dict) -> dict[str, float]:
    results = model["Results"]
    results = [results] if isinstance(results, dict) else results
    return {name: value for result in results for name, value in result["Metrics"].items()}


def test_figures_of_the_others():
    mmpretrain, mmdet, mmseg = map(index_of, ("mmpretrain", "mmdet", "mmseg"))
    for peer in PEERS:
        assert peer.classifier in PAGE
        assert metrics_of(mmpretrain[peer.classifier])["Top 1 Accuracy"] == peer.top1
        if peer.detector:
            assert peer.detector in PAGE
            assert metrics_of(mmdet[peer.detector])["box AP"] == peer.box_ap
        assert peer.segmentor in PAGE
        found = metrics_of(mmseg[peer.segmentor])
        assert (found["mIoU"], found["mIoU(ms+flip)"]) == peer.miou
    (classic,) = [metrics_of(mmpretrain["resnet50_8xb32_in1k"])["Top 1 Accuracy"]]
    assert f"it has {classic} %" in PAGE


def test_advice():
    """The sentences of the first table are true of the figures."""
    row = {name: [float(cell) if re.fullmatch(r"[\d.]+", cell) else None for cell in cells]
           for name, cells in rows().items()}  # fmt: skip
    line = r"^\| (\w+) \| 224x224 \| [\d,]+ \| ([\d.]+) \|"
    counted = dict(re.findall(line, (ROOT / "docs/models.md").read_text(), re.MULTILINE))
    work = {choice.label: float(counted[choice.classifier]) for choice in OURS}
    swin = float(counted["swin_t_window_in1k_300e"])  # the same network
    top1, box_ap, several = (
        {name: cells[i] for name, cells in row.items() if cells[i]} for i in (3, 4, 6)
    )
    light = [name for name in work if work[name] <= swin]
    others = [peer.label for peer in PEERS]
    assert max([*light, *others], key=top1.get) == "QnA-ViT-S"
    assert 0.5 < work["QnA-ViT-T"] / swin < 0.6
    assert top1["QnA-ViT-T"] > top1["Swin-T"]
    for figures in (box_ap, several):
        small = [name for name in figures if name.endswith(("-T", "-50"))]
        assert max(small, key=figures.get) == "ELSA-Swin-T"
        assert max(figures, key=figures.get) == "ELSA-Swin-S"
    assert max(top1, key=top1.get) == "VOLO-D2"
    assert swin < work["VOLO-D1"] < 0.55 * work["VOLO-D2"]


def test_measured_figures():
    measured = choosing.read_measured()
    assert measured is not None, "run tools/benchmark_choosing.py --measure"
    assert [row["model"] for row in measured["results"]] == [
        choice.classifier for choice in choosing.CHOICES
    ]
    found = rows()
    counted = (ROOT / "docs/models.md").read_text()
    picture = (ROOT / choosing.PICTURE).read_text()
    for choice, row in zip(choosing.CHOICES, measured["results"], strict=True):
        cells = found[choice.label]
        assert cells[1] == f"{row['parameters'] / 1e6:.1f}"
        assert cells[2] == f"{row['macs'] / 1e9:.2f}"
        assert cells[7] == f"{row['images_per_second']:.1f}"
        assert row["images_per_second"] == pytest.approx(4e3 / row["median_ms"])
        assert f'id="{choice.label}: {cells[7]}, {cells[3]}"' in picture
        if choice in OURS:
            line = f"| {choice.classifier} | 224x224 | {row['parameters']:,} | {cells[2]} |"
            assert line in counted


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A measurement of one small network, as the JSON file holds it."""
    measured = choosing.measure(["elsa_swin_nano_shapes"], size=32, rounds=1, device="cpu")
    return json.loads(json.dumps(measured))


def test_measure(small):
    (row,) = small["results"]
    assert row.keys() == TIMES | {
        *("model", "parameters", "macs", "peak_bytes", "images_per_second")
    }
    assert small["settings"]["batch_size"] == choosing.BATCH_SIZE
    assert row["images_per_second"] == pytest.approx(4e3 / row["median_ms"])
    assert 0 < row["peak_bytes"] < 50e6
    assert row["macs"] > row["parameters"] > 1e5
    for options, message in ((dict(rounds=0), "rounds: must be"), (dict(size=0), "size: must be")):
        with pytest.raises(UsageError, match=message):
            choosing.measure(**options)


def test_write(small, tmp_path):
    """Measured figures reach page, file and picture, and a second writing changes nothing."""
    measured = small | dict(results=[])
    for number, choice in enumerate(choosing.CHOICES, 1):
        row = small["results"][0] | dict(model=choice.classifier, images_per_second=3.0 * number)
        measured["results"].append(row)
    page = tmp_path / choosing.PAGE
    page.parent.mkdir()
    page.write_text(PAGE)
    written = choosing.write_choices(measured, tmp_path)
    assert written == [page, tmp_path / choosing.MEASURED, tmp_path / choosing.PICTURE]
    assert "| **ELSA-Swin-T** " in page.read_text()
    assert re.search(r"ELSA-Swin-T\*\* .* 3\.0 \|", page.read_text())
    assert "](images/choosing.svg)" in page.read_text()
    picture = (tmp_path / choosing.PICTURE).read_text()
    assert 'id="ELSA-Swin-T: 3.0, 82.7"' in picture
    before = [path.read_bytes() for path in written]
    choosing.write_choices(choosing.read_measured(tmp_path), tmp_path)
    assert [path.read_bytes() for path in written] == before
    with pytest.raises(ValueError, match=r"choosing\.md must hold the lines <!--"):
        choosing.page_with("no table", measured)


def test_the_tool():
    arguments = load_tool("benchmark_choosing").parse_args(["--measure", "--rounds", "3"])
    assert vars(arguments) == dict(measure=True, rounds=3, device="cpu")
