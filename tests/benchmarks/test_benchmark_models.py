"""The whole benchmark of backbones."""

import functools
import json
from typing import ClassVar

import pytest
import torch
from tool_scripts import TIMES, run_tool
from torch import nn

from benchmarks import backbones, models, peak
from benchmarks.by_kind import KINDS
from mmlocal.errors import UsageError
from mmlocal.models.backbones.base import LocalBackbone
from mmlocal.ops import OPS
from mmlocal.registry import MODELS

# Width and channels of the maps of a 64x64 image.
SIZES = ((16, 96), (8, 192), (4, 384), (2, 768))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(models=["vgg"]), "models: must be among .*elsa_swin_tiny.*, got 'vgg'"),
        (dict(models=[], batch_size=0), "batch_size: must be at least 1, got 0"),
        (dict(models=[], size=(0, 64)), "size: must be at least 1, got 0"),
    ],
)
def test_bad_options_of_benchmark_models(options, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        models.benchmark_models(tmp_path, device="cpu", **options)


def test_benchmark_models(tmp_path):
    names = ["elsa_swin_tiny", "qna_vit_tiny", "swin_tiny", "resnet_50"]
    arguments = ["--size", "64", "32", "--batch-size", "1", "--rounds", "1", "--device", "cpu"]
    arguments += ["--out", tmp_path]
    printed = run_tool(
        "benchmark_models.py", "--models", *names, *arguments, MMLOCAL_BACKEND="eager"
    )
    result = json.loads((tmp_path / "models_cpu_64x32_b1.json").read_text())
    assert result.keys() == {"hardware", "versions", "date", "settings", "peak_gflops", "results"}
    assert result["settings"] == dict(
        batch_size=1,
        size=[64, 32],
        amp=False,
        compile=False,
        rounds=1,
        backends=dict.fromkeys(OPS, "eager"),
    )
    for mode in ("inference", "training"):
        rows = {row["model"]: row for row in result["results"] if row["mode"] == mode}
        assert list(rows) == names
        for row in rows.values():
            assert row.keys() >= TIMES | {"parameters", "macs", "images_per_second", "peak_bytes"}
            assert tuple(row["ms_by_kind"]) == KINDS
            ours = row["model"] in names[:2]
            assert (row["ms_by_kind"]["local attention"] > 0) == ours
            assert row["images_per_second"] == pytest.approx(1e3 / row["median_ms"])
            flops = 2 * row["macs"] * (3 if mode == "training" else 1)
            assert row["gflops"] == pytest.approx(1e-6 * flops / row["median_ms"])
            peak = max(result["peak_gflops"][mode].values())
            assert row["share_of_peak"] == pytest.approx(row["gflops"] / peak)
        # torchvision's without the classifier
        assert rows["resnet_50"]["parameters"] == 25_557_032 - 2_049_000
        if mode == "training":  # gradients of all weights are held at once
            assert all(row["peak_bytes"] > 4 * row["parameters"] for row in rows.values())
    assert all(name in printed for name in names)


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return (self.conv(x),)


def test_all_registered_backbones_are_listed(monkeypatch):
    class Other(LocalBackbone):
        """A backbone from another package."""

        arch_zoo: ClassVar[dict] = {"tiny": {}}

        def __init__(self, arch: str) -> None:
            super().__init__()
            self.arch = arch

    monkeypatch.setitem(MODELS.module_dict, "Other", Other)
    found = backbones.list_models()
    assert found["test_benchmark_models_tiny"]((32, 32)).arch == "tiny"
    ours = {"elsa_swin_base", "ghost_deit_tiny", "qna_vit_tiny_7x7"}
    assert found.keys() > ours | backbones.PEERS.keys()


@pytest.mark.parametrize(
    "name",
    ["torchvision_swin_tiny", "torchvision_convnext_tiny", "timm_swin_tiny", "timm_convnext_tiny"],
)
def test_peers_give_four_maps(name):
    model = backbones.build_model(name, (64, 64)).to("meta")
    maps = model(torch.zeros(1, 3, 64, 64, device="meta"))
    channels_last = "swin" in name
    sizes = [((s, s, c) if channels_last else (c, s, s)) for s, c in SIZES]
    assert [tuple(x.shape[1:]) for x in maps] == sizes


def test_plain_matrix_products_are_products():
    for call in peak.matrix_products(torch.empty(0, device="meta")).values():
        assert torch.Size([s for s in call().shape if s > 1]) == (1536, 1536)


def test_compiled_models_stand_beside_the_others(tmp_path, monkeypatch):
    """With a quick compiler: the C++ compiler of the default one has nothing to show here."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    monkeypatch.setitem(backbones.PEERS, "tiny", lambda size: Tiny())
    result = models.benchmark_models(
        tmp_path, ["tiny"], size=(32, 32), compiled=True, rounds=1, device="cpu"
    )
    assert (tmp_path / "models_cpu_32x32_b4_compile.json").exists()
    rows = [(row["mode"], row["compiled"], "ms_by_kind" in row) for row in result["results"]]
    assert rows == [
        (mode, compiled, not compiled)
        for mode in ("inference", "training")
        for compiled in (False, True)
    ]
    printed = models.format_models(result)
    assert printed.count("tiny, compiled") == 1


def test_peers_that_do_not_compile_are_left_out(tmp_path, monkeypatch):
    def fail(model):
        raise RuntimeError("no compiler\nhere")

    monkeypatch.setattr(torch, "compile", fail)
    monkeypatch.setitem(backbones.PEERS, "tiny", lambda size: Tiny())
    settings = dict(size=(32, 32), compiled=True, rounds=1, device="cpu")
    result = models.benchmark_models(tmp_path, ["tiny"], **settings)
    assert [row.get("skipped") for row in result["results"]] == [None, "no compiler"] * 2
    printed = models.format_models(result)
    assert "not run, training: tiny, compiled: no compiler" in printed
    with pytest.raises(RuntimeError, match="no compiler"):
        models.benchmark_models(tmp_path, ["qna_vit_tiny"], **settings)
