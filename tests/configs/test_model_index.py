"""model-index.yml, README tables and docstrings agree with the configs."""

from pathlib import Path

import pytest
from mmengine import Config

import mmlocal

from .elsa_models import PUBLISHED

pytest.importorskip("modelindex.load_model_index")

ROOT = Path(__file__).resolve().parents[2]


def test_index_has_every_config_once(index):
    configs = {name for name in mmlocal.list_configs() if "shapes" not in name}
    assert set(index) == configs
    for name, model in index.items():
        assert (ROOT / model.config).resolve() == Path(mmlocal.config_path(name))
        assert model.in_collection
        assert model.results is not None  # mim search needs them
        cfg = Config.fromfile(ROOT / model.config)
        metadata = model.full_model.metadata.data
        for key, loop in (("Epochs", "max_epochs"), ("Iterations", "max_iters")):
            assert metadata.get(key) == cfg.train_cfg.get(loop)
        assert metadata["Batch Size"] == cfg.auto_scale_lr.base_batch_size


@pytest.mark.parametrize("name", PUBLISHED)
def test_readme_and_docstring_agree_with_the_index(index, name):
    model = index[name]
    path = ROOT / model.config
    (row,) = [
        line
        for line in (path.parent / "README.md").read_text().splitlines()
        if line.startswith(f"| [{name}]({name}.py) |")
    ]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    backbone = Config.fromfile(path).model.backbone
    assert str(backbone.drop_path_rate) in cells
    assert f"{model.metadata.data['Parameters']:,}" in cells
    figures = [str(value) for result in model.results for value in result.metrics.values()]
    docstring = path.read_text().split('"""')[1]
    if figures:
        assert all("(paper)" in metric for result in model.results for metric in result.metrics)
        assert cells[-len(figures) :] == figures
        assert all(figure in docstring for figure in figures)
        assert "Published:" in docstring
        assert "Not reproduced here." in " ".join(docstring.split())
    else:
        assert cells[-1] == "-"
        assert "Our extension:" in docstring
