"""model-index.yml, README tables and docstrings agree with the configs."""

import re
from pathlib import Path

import pytest
from mmengine import Config

import mmlocal
from mmlocal.checkpoints import SYSTEMS

pytest.importorskip("modelindex.load_model_index")

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = [
    name
    for name in mmlocal.list_configs()
    if name.startswith(("elsa", "volo")) and "shapes" not in name
]


def test_index_has_every_config_once(index):
    generated = {"shapes", "scenes"}
    configs = {name for name in mmlocal.list_configs() if not generated & set(name.split("_"))}
    assert set(index) == configs | {*mmlocal.list_weights()}
    for name, model in index.items():
        assert (ROOT / model.config).resolve() == Path(mmlocal.config_path(name))
        assert model.in_collection
        assert model.results is not None  # mim search needs them
        cfg = Config.fromfile(ROOT / model.config)
        metadata = model.full_model.metadata.data
        for key, loop in (("Epochs", "max_epochs"), ("Iterations", "max_iters")):
            assert metadata.get(key) == cfg.train_cfg.get(loop)
        batch_size = cfg.train_dataloader.batch_size if generated & set(name.split("_")) else None
        assert metadata["Batch Size"] == (batch_size or cfg.auto_scale_lr.base_batch_size)


def cells(path: Path, name: str) -> list[str]:
    """The row of a config in the README beside it."""
    (row,) = [
        line
        for line in (path.parent / "README.md").read_text().splitlines()
        if line.startswith(f"| [{name}]({name}.py) |")
    ]
    return [cell.strip() for cell in row.strip("|").split("|")]


def docstring_of(path: Path) -> str:
    return " ".join(path.read_text().split('"""')[1].split())


@pytest.mark.parametrize("name", PUBLISHED)
def test_drop_path_in_the_readme(name):
    path = Path(mmlocal.config_path(name))
    assert str(Config.fromfile(path).model.backbone.drop_path_rate) in cells(path, name)
    assert "Published:" in docstring_of(path) or "Our extension:" in docstring_of(path)


def test_every_figure_has_its_source(index):
    """In the index, the README and the docstring; where sources differ, all of them."""
    sources = {
        "official README": "README of the official code",
        "article": " et al. 20",
        "listing of the article": "listing of the article",
    }
    for name, model in index.items():
        if name in mmlocal.list_weights():  # its figure is ours, see test_shipped_weights.py
            continue
        path = ROOT / model.config
        docstring, readme = docstring_of(path), (path.parent / "README.md").read_text()
        assert f"{model.metadata.data['Parameters']:,}" in cells(path, name)
        for metric, value in [m for r in model.results for m in r.metrics.items()]:
            label, source = metric.rstrip(")").rsplit(" (", 1)
            assert sources[source] in docstring, (name, metric)
            assert "Published:" in docstring
            assert "Not reproduced here." in docstring
            figure = f"+{value}" if " gain " in label else str(value)
            assert figure in docstring, (name, metric)
            assert figure in readme, (name, metric)


def test_figures_that_differ_between_sources(index):
    """The README of the official code, and the article or a listing of it."""
    figures = {
        name: [value for r in index[name].results for value in r.metrics.values()]
        for name in (
            "elsa_swin_t_cascade_maskrcnn_3x",
            "elsa_swin_t_upernet_160k",
            "elsa_swin_s_upernet_160k",
            "qna_vit_b_in1k_300e",
        )
    }
    assert list(figures.values()) == [[51.0, 51.1, 44.2], [47.9], [50.4, 50.3], [83.9, 83.7]]


# The tables of the three official READMEs, in their order.
OFFICIAL = {
    "elsa_swin_t_in1k_300e": [82.7],
    "elsa_swin_s_in1k_300e": [83.5],
    "elsa_swin_b_in1k_300e": [84.0],
    "elsa_swin_t_maskrcnn_1x": [45.7, 41.1],
    "elsa_swin_t_maskrcnn_3x": [47.5, 42.7],
    "elsa_swin_s_maskrcnn_1x": [48.3, 43.0],
    "elsa_swin_s_maskrcnn_3x": [49.2, 43.6],
    "elsa_swin_t_cascade_maskrcnn_1x": [49.8, 43.0],
    "elsa_swin_t_cascade_maskrcnn_3x": [51.0, 44.2],
    "elsa_swin_s_cascade_maskrcnn_1x": [51.6, 44.4],
    "elsa_swin_s_cascade_maskrcnn_3x": [52.3, 45.2],
    "elsa_swin_t_upernet_160k": [47.9],
    "elsa_swin_s_upernet_160k": [50.4],
    "qna_vit_t_in1k_300e": [81.7],
    "qna_vit_t_7x7_in1k_300e": [82.0],
    "qna_vit_s_in1k_300e": [83.2],
    "qna_vit_b_in1k_300e": [83.9],
    "volo_d1_in1k_300e": [84.2],
    "volo_d1_in1k_30e_384": [85.2],
    "volo_d2_in1k_300e": [85.2],
    "volo_d2_in1k_30e_384": [86.0],
    "volo_d3_in1k_300e": [85.4],
    "volo_d3_in1k_30e_448": [86.3],
    "volo_d4_in1k_300e": [85.7],
    "volo_d4_in1k_30e_448": [86.8],
    "volo_d5_in1k_300e": [86.1],
    "volo_d5_in1k_30e_448": [87.0],
    "volo_d5_in1k_30e_512": [87.1],
    "dwnet_t_in1k_300e": [81.2],
    "dwnet_t_dynamic_in1k_300e": [81.8],
    "dwnet_b_in1k_300e": [83.2],
    "dwnet_b_dynamic_in1k_300e": [83.2],
    "dwnet_t_cascade_maskrcnn_3x": [49.9, 43.4],
    "dwnet_t_dynamic_cascade_maskrcnn_3x": [50.5, 43.7],
    "dwnet_b_cascade_maskrcnn_3x": [51.0, 44.1],
    "dwnet_b_dynamic_cascade_maskrcnn_3x": [51.2, 44.4],
    "dwnet_t_upernet_160k": [45.5],
    "dwnet_t_dynamic_upernet_160k": [45.7],
    "dwnet_b_upernet_160k": [48.3],
    "dwnet_b_dynamic_upernet_160k": [48.0],
    # Segmentation, then the other tasks in the order of the README.
    "demt_hrnet18_nyud_40k": [39.18, 0.5922, 20.21, 76.4],
    "demt_swin_t_nyud_40k": [46.36, 0.5871, 20.6, 76.9],
    "demt_swin_s_nyud_40k": [51.5, 0.5474, 20.02, 78.1],
    "demt_hrnet18_pascal_40k": [59.23, 57.93, 83.93, 14.02, 69.8],
    "demt_swin_t_pascal_40k": [69.71, 57.18, 82.63, 14.56, 71.2],
    "demt_swin_s_pascal_40k": [72.01, 58.96, 83.2, 14.57, 72.1],
}


def test_figures_of_the_official_readmes(index):
    found = {
        name: [
            value
            for result in model.results
            for metric, value in result.metrics.items()
            if metric.endswith("(official README)")
        ]
        for name, model in index.items()
    }
    assert {name: figures for name, figures in found.items() if figures} == OFFICIAL
    for name, figures in OFFICIAL.items():
        row = cells(Path(mmlocal.config_path(name)), name)
        assert row[-len(figures) :] == [str(figure) for figure in figures]


# Owner of the official page -> name of the converter.
CONVERTERS = {
    "damo-cv": "elsa",
    "moabarar": "qna",
    "sail-sg": "volo",
    "Atten4Vis": "dwnet",
    "SwinTransformer": "swin",
    "yangyangxu0": "demt",
}


def test_official_files(index):
    """docs/checkpoints.md has a row for each, and a converter reads it."""
    page = (ROOT / "docs/checkpoints.md").read_text()
    rows = set(re.findall(r"^\| .* \| `mmlocal convert .*` \|$", page, re.MULTILINE))
    expected = set()
    for name, model in index.items():
        official = model.data.get("Official Weights")
        if official is None:
            continue
        converter = CONVERTERS[official["Page"].split("/")[3]]
        assert converter in SYSTEMS
        assert f"<{official['Page']}>" in page
        file = official.get("File")
        # The published accuracy of this model belongs to the averaged weights.
        options = " --ema" if name == "elsa_swin_b_in1k_300e" else ""
        command = f"`mmlocal convert --from {converter} {file or 'FILE'} OUT{options}`"
        expected.add(f"| {f'`{file}`' if file else 'not known'} | `{name}` | {command} |")
    assert len(expected) == 43
    assert rows == expected


def test_models_with_figures_of_the_official_readmes_have_official_weights(index):
    without = {name for name in OFFICIAL if "Official Weights" not in index[name].data}
    # DeMT's README has figures of these, and no files.
    assert without == {
        *("demt_hrnet18_nyud_40k", "demt_hrnet18_pascal_40k"),
        *("demt_swin_t_pascal_40k", "demt_swin_s_pascal_40k"),
    }


def test_no_entry_promises_a_download(index):
    assert [name for name, model in index.items() if model.weights is not None] == []
