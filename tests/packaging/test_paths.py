from collections import Counter
from pathlib import Path

import pytest
import yaml

import mmlocal
from mmlocal import paths

ROOT = Path(__file__).resolve().parent.parent.parent


def test_lists_every_config_once_and_no_base():
    files = [p for p in (ROOT / "configs").rglob("*.py") if "_base_" not in p.parts]
    assert files
    assert mmlocal.list_configs() == sorted(path.stem for path in files)
    assert [name for name, n in Counter(mmlocal.list_configs()).items() if n > 1] == []


def test_lists_by_library():
    by_library = {name: mmlocal.list_configs(name) for name in paths.config_libraries()}
    assert set(by_library) == {"mmdet", "mmseg", "mmpretrain"}
    assert "elsa_swin_t_maskrcnn_1x" in by_library["mmdet"]
    assert sorted(name for names in by_library.values() for name in names) == mmlocal.list_configs()


def test_package_without_configs(tmp_path, monkeypatch):
    """A copy of the package alone, and a folder that holds no config."""
    monkeypatch.setattr(paths, "__file__", str(tmp_path / "mmlocal" / "paths.py"))
    assert (mmlocal.list_configs(), paths.config_libraries()) == ([], [])
    with pytest.raises(ValueError, match="got 'elsa': see"):
        mmlocal.config_path("elsa")
    (tmp_path / "configs" / "__pycache__").mkdir(parents=True)
    assert paths.config_libraries() == []


@pytest.mark.parametrize("suffix", ["", ".py"])
def test_path_of_a_config(suffix):
    path = Path(mmlocal.config_path("elsa_swin_t_maskrcnn_1x" + suffix))
    assert path == ROOT / "configs" / "mmdet" / "elsa_swin_t_maskrcnn_1x.py"


def test_unknown_names_and_libraries_are_refused():
    near = r"got 'elsa_swin_t_maskrcn_1x': did you mean .*elsa_swin_t_maskrcnn_1x"
    with pytest.raises(ValueError, match=near):
        mmlocal.config_path("elsa_swin_t_maskrcn_1x")
    with pytest.raises(ValueError, match=r"got 'zzzzzz': see mmlocal.list_configs\(\)"):
        mmlocal.config_path("zzzzzz")
    with pytest.raises(ValueError, match="library must be one of mmdet, mmpretrain, mmseg or None"):
        mmlocal.list_configs("mmocr")


def test_model_index_leads_to_existing_files():
    for metafile in yaml.safe_load((ROOT / "model-index.yml").read_text())["Import"]:
        models = yaml.safe_load((ROOT / metafile).read_text())["Models"]
        assert models
        for model in models:
            assert (ROOT / model["Config"]).is_file(), model["Config"]
