"""The comparisons of operators: each config changes one thing of its base, as its row says."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from mmengine import Config
from mmengine.registry import MODELS
from torch import nn

import mmlocal
from mmlocal.layers.unified_presets import PRESETS
from mmlocal.models.backbones import ELSASwin

BASE = "swin_t_window_in1k_300e"
OPERATORS = [n for n in mmlocal.list_configs() if n.startswith("swin_t_")]
ABLATIONS = [
    n
    for n in mmlocal.list_configs()
    if n.startswith("qna_vit_")
    and any(word in n for word in ("light", "deep", "heads", "down", "sasa"))
]


def build(cfg: Config) -> nn.Module:
    with torch.device("meta"):
        return MODELS.build(deepcopy(cfg.model))


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def without(cfg: Config, *names: str) -> dict:
    """The config without some arguments of the backbone, and without intermediate variables."""
    cfg = deepcopy(cfg).to_dict()
    for name in names:
        cfg["model"]["backbone"].pop(name, None)
    cfg.pop("mixer", None)
    return cfg


def test_all_are_there():
    assert len(OPERATORS) >= 33
    names = {n.removeprefix("swin_t_").removesuffix("_in1k_300e") for n in OPERATORS}
    assert {"window", "ddf", "involution", "sasa", "lsa_ghost", "elsa_no_ghost"} <= names
    # Windows with lsa are the base, and dwconv has projections around nn.Conv2d.
    presets = {name.replace("-", "_") for name in PRESETS} - {"lsa"}
    assert presets <= names
    assert len(ABLATIONS) >= 14


@pytest.mark.parametrize("name", OPERATORS)
def test_operator(load, index, name):
    """The first three stages have the operator, and all else is the base's."""
    cfg, base = load(name), load(BASE)
    assert without(cfg, "mixers") == without(base, "mixers")
    model = build(cfg)
    assert count(model) == index[name].metadata.data["Parameters"]
    window = dict(type="WindowAttention", fit_window=True)
    if name == BASE:
        assert cfg.model.backbone.mixers == window
        return
    *mixers, last = cfg.model.backbone.mixers
    assert last == window
    assert len({mixer.type for mixer in mixers}) == 1
    attentions = [[type(block.attn) for block in stage.blocks] for stage in model.backbone.stages]
    kinds = [set(stage) for stage in attentions]
    assert kinds[0] == kinds[1] == kinds[2]
    assert [kind.__name__ for kind in kinds[0]] == [mixers[0].type]
    if "preset" in mixers[0]:
        words = name.removeprefix("swin_t_").removesuffix("_in1k_300e").removesuffix("_ghost")
        assert mixers[0].preset == words.replace("_", "-")
    docstring = Path(mmlocal.config_path(name)).read_text().split('"""')[1]
    assert docstring.split("\n\n")[1].startswith(("Part of the comparison", "Our extension:"))


@pytest.mark.parametrize("operator", ["window", "dwconv", "ddf"])
def test_operator_in_volo(load, index, operator):
    """Only the mixer of the first stage differs from VOLO-D1."""
    name = f"volo_d1_{operator}_in1k_300e"
    cfg, base = load(name), load("volo_d1_in1k_300e")
    assert without(cfg, "mixer") == without(base, "mixer")
    model = build(cfg)
    assert count(model) == index[name].metadata.data["Parameters"]
    first, *others = model.backbone.stages
    assert {type(block.attn).__name__ for block in first.blocks} == {cfg.model.backbone.mixer.type}
    kinds = {type(block.attn).__name__ for stage in others for block in stage.blocks}
    assert kinds == {"GlobalAttention"}


def test_the_base_is_swin_t(load):
    """It has the parameters of Swin-T, and the recipe and the layout of ELSA-Swin-T."""
    base, elsa = load(BASE), load("elsa_swin_t_in1k_300e")
    assert count(build(base)) == 28_288_354
    ours, theirs = (without(cfg) for cfg in (base, elsa))
    for cfg in (ours, theirs):
        del cfg["model"]["backbone"]
        cfg.pop("window", None)
    assert ours == theirs
    assert base.model.backbone.drop_path_rate == elsa.model.backbone.drop_path_rate


def test_elsa_variants_differ_from_elsa_swin_in_the_ghost_heads(load):
    elsa = build(load("elsa_swin_t_in1k_300e"))
    assert isinstance(elsa.backbone, ELSASwin)
    names = {key for key, _ in elsa.named_parameters()}
    for variant, ghosts in {"no_ghost": [], "mul": ["mul"], "mul_add": ["mul", "add"]}.items():
        ours = {
            key for key, _ in build(load(f"swin_t_elsa_{variant}_in1k_300e")).named_parameters()
        }
        plain = {key for key in names if "ghost_add" not in key}
        assert {key for key in ours if "ghost" not in key} == plain
        heads = {key.rpartition(".")[2] for key in ours if "ghost" in key}
        assert heads == {f"ghost_{ghost}" for ghost in ghosts}


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablation_of_qna(load, index, name):
    """Only arguments of the backbone differ from the base, and blocks and heads are the row's."""
    cfg = load(name)
    assert count(build(cfg)) == index[name].metadata.data["Parameters"]
    changed = ("arch", "window_sizes", "num_queries", "mixers", "downsample")
    base = load("qna_vit_s_in1k_300e" if "deep" in name else "qna_vit_t_in1k_300e")
    assert without(cfg, *changed) == without(base, *changed)
    backbone = cfg.model.backbone
    if "light" in name:
        # As the paper counts, with the down-sampling: 2, 2, 2, 0 blocks of QnA.
        assert [n + (i < 3) for i, n in enumerate(backbone.arch.qna_depths)] == [2, 2, 2, 0]
        assert tuple(backbone.arch.attn_depths) == (1, 1, 5, 2)
    elif "deep" in name:
        assert backbone.arch.qna_depths[2] + backbone.arch.attn_depths[2] + 1 == 19
    elif "heads" in name:
        dims = int(name.split("_d")[1].split("_")[0])
        heads = backbone.arch.qna_heads if "qna_heads" in name else backbone.arch.attn_heads
        assert [64 * 2**i // n for i, n in enumerate(heads)] == [dims] * 4
        assert tuple(backbone.arch.qna_depths) == (2, 3, 2, 0)
    docstring = Path(mmlocal.config_path(name)).read_text().split('"""')[1]
    assert docstring.split("\n\n")[1].startswith("An ablation of the paper of QnA")
