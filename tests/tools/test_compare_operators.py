"""The comparison of operators end to end, on a tiny network and a few generated images."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import CheckpointHook

from mmlocal import config_path
from mmlocal.cli import compare_operators as tool
from mmlocal.cli.compare_operators import compare_operators, format_operators, main
from mmlocal.cli.operator_list import choose_operators, parse_operator
from mmlocal.datasets.shapes import generate_shapes
from mmlocal.errors import UsageError
from mmlocal.layers import build_mixer

TINY = """
_base_ = "{base}"
model = dict(
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=8, depths=[1, 1], num_heads=[1, 2]), out_indices=(1,)
    ),
    head=dict(in_channels=16),
)
train_dataloader = dict(batch_size=8, num_workers=0, persistent_workers=False)
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = dict(num_workers=0, persistent_workers=False)
train_cfg = dict(max_epochs=2, val_interval=2)
log_level = "WARNING"
operators = dict(
    _delete_=True,
    window=dict(type="WindowAttention", window_size=4),
    mixed=[dict(type="QnA"), dict(type="GlobalAttention")],
)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A working directory with ``data/shapes`` and ``tiny.py``."""
    folder = tmp_path_factory.mktemp("operators")
    generate_shapes(
        folder / "data/shapes", tasks=("cls",), num_train=16, num_val=8, cls_size=32, progress=False
    )
    (folder / "tiny.py").write_text(TINY.format(base=config_path("local_swin_nano_shapes")))
    return folder


@pytest.fixture
def cwd(folder, monkeypatch) -> Path:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(tool, "ROUNDS", 1)
    return folder


@pytest.fixture(scope="module")
def finished(folder) -> tuple[Path, dict]:
    """A finished comparison: its folder, and what it returned."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(tool, "ROUNDS", 1)
        return folder / "out", compare_operators(folder / "out", config="tiny.py", seeds=2)


@pytest.fixture
def no_training(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("this trains")

    monkeypatch.setattr(tool, "train_and_test", fail)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "epoch_2.pth", weights_only=False)["state_dict"]


def test_summary(finished):
    out, summary = finished
    assert json.loads((out / "summary.json").read_text()) == summary
    assert {row["label"] for row in summary["operators"]} == {"window", "mixed"}
    assert summary["image"] == [32, 32]
    for row in summary["operators"]:
        results = [json.loads((out / row["label"] / f"seed_{i}/result.json").read_text())
                   for i in range(2)]  # fmt: skip
        values = [result["accuracy/top1"] for result in results]
        assert row["values"] == values
        assert row["mean"] == pytest.approx(sum(values) / 2)
        assert row["std"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
        state = weights(out / row["label"] / "seed_0")
        assert row["parameters"] == sum(x.numel() for x in state.values())
        assert row["macs"] > row["parameters"]
        for mode in ("inference", "training"):
            assert row[mode]["ms"] > 0
            assert row[mode]["bytes"] > 8 * 8 * 8 * 4  # a map of the first stage
        assert row["training"]["bytes"] > row["inference"]["bytes"]
    assert (out / "operators.png").stat().st_size > 10_000
    means = [row["mean"] for row in summary["operators"]]
    assert means == sorted(means, reverse=True)


def test_seeds_and_operators_differ(finished):
    """Both kinds of runs start from their own weights. All else is equal."""
    out, _ = finished
    one, other = (weights(out / "mixed" / f"seed_{seed}") for seed in range(2))
    assert not torch.equal(one["head.fc.weight"], other["head.fc.weight"])
    settings = [json.loads((out / name / "seed_0/settings.json").read_text())
                for name in ("window", "mixed")]  # fmt: skip
    for one in settings:
        one["model"]["backbone"].pop("mixers")
    assert settings[0] == settings[1]


def test_table(finished):
    out, summary = finished
    table = format_operators(summary)
    assert (out / "operators.md").read_text() == table + "\n"
    best = summary["operators"][0]
    first = table.splitlines()[2]
    assert first.startswith(f"| {best['label']} | {best['mean']:.2f} ± {best['std']:.2f} |")
    assert f"| {best['parameters']:,} |" in first
    best["std"] = None
    assert (
        format_operators(summary)
        .splitlines()[2]
        .startswith(f"| {best['label']} | {best['mean']:.2f} |")
    )


def test_finished_runs_are_skipped(finished, cwd, no_training):
    out, summary = finished
    again = compare_operators(out, ["mixed"], "tiny.py", seeds=2)
    (row,) = again["operators"]
    assert row["values"] == next(r for r in summary["operators"] if r["label"] == "mixed")["values"]


def test_a_new_seed_trains_alone(finished, cwd, tmp_path, no_training):
    shutil.copytree(finished[0], tmp_path / "out")
    with pytest.raises(AssertionError, match="this trains"):
        compare_operators(tmp_path / "out", config="tiny.py", seeds=3)
    assert sorted(p.parent.name for p in (tmp_path / "out").glob("*/*/settings.json")) == [
        "seed_0", "seed_0", "seed_1", "seed_1", "seed_2"
    ]  # fmt: skip


def test_an_interrupted_run_goes_on(finished, cwd, tmp_path, monkeypatch, capsys):
    """Its weights equal those of a run without a break."""
    save = CheckpointHook.after_train_epoch

    def save_and_stop(self, runner):
        save(self, runner)
        raise KeyboardInterrupt

    command = ["--config", "tiny.py", "--seeds", "1", "--work-dir", str(tmp_path), "window"]
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointHook, "after_train_epoch", save_and_stop)
        with pytest.raises(SystemExit, match="130"):
            main(command)
    assert "stopped; the same command goes on from here" in capsys.readouterr().err
    folder = tmp_path / "window/seed_0"
    assert not (folder / "result.json").exists()
    assert not (folder / "epoch_2.pth").exists()
    main(command)
    assert "| window | " in capsys.readouterr().out
    whole = weights(finished[0] / "window/seed_0")
    for name, value in weights(folder).items():
        torch.testing.assert_close(value, whole[name], rtol=0, atol=0)


def test_other_settings_are_refused(finished, cwd, no_training):
    out, _ = finished
    options = {"optim_wrapper.optimizer.lr": 0.5}
    message = r"work_dir: .*seed_0 holds a run with other settings: optim_wrapper.optimizer.lr is "
    with pytest.raises(UsageError, match=message + r"0\.003 there and 0\.5 now"):
        compare_operators(out, config="tiny.py", seeds=2, cfg_options=options)
    with pytest.raises(UsageError, match=r"settings: model.backbone.mixers.window_size is 4 there"):
        compare_operators(out, ["window=WindowAttention"], "tiny.py", seeds=1)


def test_a_foreign_folder_is_refused(cwd, tmp_path, no_training):
    (tmp_path / "ELSA/seed_0").mkdir(parents=True)
    (tmp_path / "ELSA/seed_0/mine.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"work_dir: .*seed_0 is not empty and has no settings"):
        compare_operators(tmp_path, ["ELSA"], "tiny.py")


def test_unknown_metric(finished, cwd, no_training):
    with pytest.raises(UsageError, match="metric: must be one of accuracy/top1, got 'mIoU'"):
        compare_operators(finished[0], config="tiny.py", seeds=1, metric="mIoU")


@pytest.mark.parametrize(
    ("operators", "message"),
    [
        (["QnA", "ELSa"], "operator 'ELSa': .*unknown mixer 'ELSa': did you mean ELSA"),
        (["ELSA(kernel_size=4)"], "operator 'ELSA.*kernel_size must be a positive odd number"),
        (["ELSA(size=3)"], "operator 'ELSA.*'size'"),
        (["[ELSA, ELSA, ELSA]"], r"operator '\[ELSA.*one entry for each of the 2 stages"),
        (["QnA(stride=2)"], r"operator 'QnA\(stride=2\)' cannot map an image: "),
        (["window", "window"], "two operators have the label 'window'; give another one"),
    ],
    ids=str,
)
def test_a_wrong_operator_is_refused_before_anything_trains(
    operators, message, cwd, tmp_path, no_training
):
    with pytest.raises(UsageError, match=message):
        compare_operators(tmp_path / "out", operators, "tiny.py")
    assert not (tmp_path / "out").exists()


def test_a_config_without_mixers(cwd, tmp_path, no_training):
    with pytest.raises(UsageError, match=r"operator 'ELSA': .*'mixers'"):
        compare_operators(tmp_path, ["ELSA"], "elsa_swin_nano_shapes")
    with pytest.raises(UsageError, match="name at least one operator"):
        compare_operators(tmp_path, [], "elsa_swin_nano_shapes")


@pytest.mark.parametrize(
    ("text", "label", "mixers"),
    [
        ("ELSA", "ELSA", dict(type="ELSA")),
        ("ELSA()", "ELSA()", dict(type="ELSA")),
        ("QnA(kernel_size=7)", "QnA(kernel_size=7)", dict(type="QnA", kernel_size=7)),
        ("a-1 = QnA(padding=-1, x='y')", "a-1", dict(type="QnA", padding=-1, x="y")),
        (
            "P(mixer=DDF(kernel_size=(3, 3)))",
            "P(mixer=DDF(kernel_size=(3, 3)))",
            dict(type="P", mixer=dict(type="DDF", kernel_size=(3, 3))),
        ),
        ("[ELSA, [QnA, QnA]]", "[ELSA, [QnA, QnA]]", [dict(type="ELSA"), [dict(type="QnA")] * 2]),
    ],
)
def test_parsing(text, label, mixers):
    assert parse_operator(text) == (label, mixers)


@pytest.mark.parametrize("text", ["", "3", "ELSA(3)", "ELSA(", "a.b()", "f(**x)", "x=", "f(y=1+z)"])
def test_text_that_is_no_operator(text):
    with pytest.raises(UsageError, match=r"operator .* cannot be read; write a mixer such as ELSA"):
        parse_operator(text)


def test_labels_of_the_config_come_first():
    known = dict(ELSA=dict(type="QnA"), other=dict(type="DDF"))
    assert choose_operators(["ELSA"], known) == dict(ELSA=dict(type="QnA"))
    assert choose_operators([], known) == known


def test_operators_of_our_config():
    operators = Config.fromfile(config_path("local_swin_nano_shapes")).operators
    assert len(operators) >= 10
    for cfg in operators.values():
        build_mixer(cfg, 32, 2)
