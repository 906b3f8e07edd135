"""Official checkpoints of QnA-ViT become models of ours with the official outputs."""

import hashlib
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from convert_data import relative_error
from mmengine.registry import DefaultScope
from qna_data import (
    CLASSIFIERS,
    PUBLISHED,
    SAMPLE,
    golden_qna,
    nested,
    published_qna,
    train_state,
    write_flax,
)
from torch import nn

from mmlocal.checkpoints import (
    Conversion,
    convert_checkpoint,
    convert_file,
    match_state_dict,
)
from mmlocal.checkpoints.qna import qna_backbone_cfg
from mmlocal.models.backbones import QnAViT
from mmlocal.registry import MODELS
from mmlocal.version import __version__

LIMIT = 1e-5


def convert(params: dict, **options) -> Conversion:
    """Convert parameters under flat official names."""
    return convert_checkpoint(nested(params), MODELS.build, "qna", **options)


def converted_file(content: dict, folder: Path, **options) -> tuple[dict, dict]:
    """Convert an official file; returns ``meta`` and ``state_dict`` of the new file."""
    pytest.importorskip("msgpack", reason="needs msgpack")
    source = write_flax(content, folder / "checkpoint_7")
    _, path = convert_file(source, folder, MODELS.build, "qna", **options)
    content = torch.load(path, weights_only=True)
    assert content.keys() == {"meta", "state_dict"}
    assert all(type(tensor) is torch.Tensor for tensor in content["state_dict"].values())
    return content["meta"], content["state_dict"]


def classifier(meta: dict, state_dict: dict, neck: dict | None = None) -> nn.Module:
    """mmpretrain's classifier with every tensor of a converted file."""
    pretrain = pytest.importorskip("mmpretrain.models", reason="needs mmpretrain")
    num_classes, in_channels = state_dict["head.fc.weight"].shape
    head = dict(num_classes=num_classes, in_channels=in_channels)
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        model = pretrain.ImageClassifier(
            backbone=meta["backbone_cfg"],
            neck=neck or dict(type="mmpretrain.GlobalAveragePooling"),
            head=dict(type="mmpretrain.LinearClsHead", **head),
        )
    model.load_state_dict(state_dict, strict=True)
    return model.eval()


def logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(images.permute(0, 3, 1, 2), mode="tensor")


@pytest.mark.parametrize("source", [SAMPLE, SAMPLE / "checkpoint_375300"], ids=["folder", "file"])
def test_sample(source, tmp_path):
    """Flax itself wrote this file."""
    pytest.importorskip("msgpack", reason="needs msgpack")
    conversion, path = convert_file(source, tmp_path, MODELS.build, "qna")
    content = torch.load(path, weights_only=True)
    meta, state_dict = content["meta"], content["state_dict"]
    with np.load(SAMPLE / "expected.npz") as file:
        images, expected = torch.from_numpy(file["input"]), torch.from_numpy(file["logits"])
    error = relative_error(logits(classifier(meta, state_dict), images), expected)
    print(f"logits: {error:.1e}")
    assert error <= LIMIT

    assert path.name.startswith("checkpoint_375300-")
    digest = hashlib.sha256((SAMPLE / "checkpoint_375300").read_bytes()).hexdigest()
    assert meta["source"] == dict(system="qna", file="checkpoint_375300", sha256=digest)
    assert meta["mmlocal_version"] == __version__
    assert conversion.left == ["step", "opt_state", "dynamic_scale"]
    # Every parameter is there, one to one.
    lines = (SAMPLE / "tree.txt").read_text().splitlines()
    official = [line for line in lines if line.startswith("params/")]
    assert len(conversion.report.loaded) + len(conversion.heads) == len(official)
    assert conversion.dropped == []


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classification(name, tmp_path):
    params, statistics, config, arrays = golden_qna(name)
    meta, state_dict = converted_file(train_state(params, statistics), tmp_path)
    # Unit length leaves no trace in shapes.
    meta["backbone_cfg"]["normalize_query"] = config["qna_normalize_q"]
    neck = None
    if config["classification_head_type"] != "gap":
        taps = params["ClassificationHead_0/FusedKQnA_0/rpe_bias"].shape[0]
        neck = dict(
            type="mmlocal.QnAPooling",
            in_channels=state_dict["head.fc.weight"].shape[1],
            num_heads=config["qna_heads"][-1],
            map_size=round(taps**0.5),
            add_mean=config["classification_head_type"] == "qnav2",
        )
    model = classifier(meta, state_dict, neck)
    error = relative_error(logits(model, arrays["input"]), arrays["logits"])
    print(f"{name}: {error:.1e}")
    assert error <= LIMIT


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_architecture(name):
    params, statistics, config, _ = golden_qna(name)
    cfg = qna_backbone_cfg(params | statistics)
    depths, heads = config["lsa_layers"], config["lsa_heads"]
    for i in range(len(depths)):  # those that no block uses are not in the checkpoint
        if depths[i] == 0:
            assert cfg["arch"]["attn_heads"][i] >= 1
            heads[i] = cfg["arch"]["attn_heads"][i]
            config["lsa_window"][i] = 7
    expected = dict(
        type="mmlocal.QnAViT",
        arch=dict(
            embed_dims=config["base_dim"],
            attn_depths=tuple(depths),
            qna_depths=tuple(config["qna_layers"]),
            attn_heads=tuple(heads),
            qna_heads=tuple(config["qna_heads"]),
            kernel_size=config["qna_receptive_field"][0],
        ),
        in_channels=3,
        window_sizes=tuple(config["lsa_window"]),
        num_queries=2,
        stem=config["stem_type"],
        downsample_skip=dict(conv1x1="conv", avgpool="avgpool")[config["qna_down_skip"]],
        out_indices=(config["n_stages"] - 1,),
    )
    if config["layer_scale"] is not None:
        expected["layer_scale_init_value"] = 1.0
    assert cfg == expected


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_untold_arguments_are_named(name, tmp_path):
    """The report and the file state the assumed arguments and their values."""
    params, statistics, config, _ = golden_qna(name)
    expected = dict(normalize_query=True, drop_path_rate=0.05)
    if config["layer_scale"] is not None:
        expected["layer_scale_init_value"] = 1.0
    meta, _ = converted_file(train_state(params, statistics), tmp_path)
    assert meta["assumed"] == expected
    values = ", ".join(f"{key}={value}" for key, value in expected.items())
    report = str(convert(params | statistics)).splitlines()
    assert f"assumed, because no weight shows it: {values}" in report


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_shapes(name):
    """Our models of these names expect the official names and shapes."""
    official = published_qna(name)
    conversion = convert(official)
    checkpoint = conversion.checkpoint
    assert checkpoint["meta"]["backbone_cfg"] == dict(
        type="mmlocal.QnAViT",
        arch=name,
        in_channels=3,
        window_sizes=(7, 7, 14, 7),
        num_queries=2,
        stem="patch",
        downsample_skip="conv",
        out_indices=(3,),
    )
    with torch.device("meta"):
        wanted = MODELS.build(dict(type="mmlocal.QnAViT", arch=name, out_indices=(3,))).state_dict()
    found = {k: v.shape for k, v in checkpoint["state_dict"].items() if k.startswith("backbone.")}
    assert found == {f"backbone.{k}": v.shape for k, v in wanted.items()}
    assert conversion.heads == ["head.fc.bias", "head.fc.weight"]
    assert len(checkpoint["state_dict"]) == len(official)


@pytest.mark.parametrize("layout", ["state", "half", "params", "bare"])
def test_layouts(layout, tmp_path):
    """The wrapping of the parameters does not change the result. Dtypes stay the same."""
    params, statistics, _, _ = golden_qna("vit_qnav2_resnetstem")
    if layout == "bare":  # cannot have batch statistics
        params, statistics, _, _ = golden_qna("vit_qnav1_k5")
    dtype = torch.bfloat16 if layout == "half" else torch.float32
    official = {key: value.to(dtype) for key, value in params.items()}
    content = {
        "state": train_state(official, statistics),
        "half": train_state(official, statistics),
        "params": dict(params=nested(official), batch_stats=nested(statistics)),
        "bare": nested(official),
    }[layout]
    _, state_dict = converted_file(content, tmp_path)
    wanted = convert_checkpoint(
        dict(params=nested(official), batch_stats=nested(statistics)), MODELS.build, "qna"
    ).checkpoint["state_dict"]
    assert state_dict.keys() == wanted.keys()
    for key, value in state_dict.items():
        assert torch.equal(value, wanted[key])
        assert value.dtype is wanted[key].dtype
    assert state_dict["head.fc.weight"].dtype is dtype
    assert any(key.startswith("neck.qna.") for key in state_dict)


def test_memory_is_not_shared():
    params, _, _, _ = golden_qna("vit_qnav1_k5")
    state_dict = convert(params).checkpoint["state_dict"]
    state_dict["head.fc.bias"].zero_()
    assert params["ClassificationHead_0/head_logits/bias"].any()
    assert all(tensor.is_contiguous() for tensor in state_dict.values())


def test_report():
    params, _, _, _ = golden_qna("vit_qnav1_k5")
    dead = "QnAStage_0/QnA_Block_1/FusedKQnA_0/Wk_b"
    text = str(convert(params | {dead: torch.zeros(1, 8)}))
    assert text.startswith("mmlocal.QnAViT(arch={'embed_dims': 8, ")
    loaded = len(params) - 8
    assert f"backbone: {loaded} loaded; 0 resized; 0 mismatched; 0 missing; 0 unexpected" in text
    assert "heads: 8 kept (head, neck)" in text
    assert f"dropped: 1 unused\n    {dead}" in text


def test_stages_of_one_kind():
    """The model has no window attention, and its last stage has no blocks."""
    params, _, _, _ = golden_qna("vit_gap_64")
    qna = {key: value for key, value in params.items() if not key.startswith("LSA")}
    cfg = convert(qna).checkpoint["meta"]["backbone_cfg"]
    assert cfg["arch"]["attn_depths"] == (0, 0, 0, 0)
    assert cfg["arch"]["qna_depths"] == (1, 1, 1, 0)
    assert cfg["window_sizes"] == (7, 7, 7, 7)
    down = {key: value for key, value in qna.items() if "QnA_Block_1/" not in key}
    down = {key.replace("Block_2_stride", "Block_1_stride"): value for key, value in down.items()}
    assert convert(down).checkpoint["meta"]["backbone_cfg"]["arch"]["qna_heads"] == (2, 4, 8, 16)


*_, RESIZED = golden_qna("resize_finetune_384")
LSA = "LSAStage_{}/MSA_Block_1/MultiHeadSelfAttention_0/RelativePositionalEmbedding_0/rpe_bias"
QNA = "QnAStage_0/QnA_Block_1/FusedKQnA_0/"
OURS = "backbone.stages.0.blocks.0.attn."
WINDOW = "backbone.stages.{}.blocks.{}.attn.w_msa.relative_position_bias_table"


def with_golden_tables() -> tuple[dict, dict]:
    """A small official model with tables that the official code resized, and our options."""
    params, _, _, _ = golden_qna("vit_gap_64")
    # The golden tables of QnA have six columns, resized one by one; this layer has four.
    old = {
        LSA.format(2): RESIZED["old/lsa_rpe_w7"],
        LSA.format(3): RESIZED["old/lsa_rpe_w14"],
        QNA + "rpe_bias": RESIZED["old/qna_rpe_k3"][:, :4],
        QNA + "attn_scale_weights": RESIZED["old/attn_scale_k3"][..., :4],
    }
    assert old.keys() <= params.keys()
    new = {
        WINDOW.format(2, 0): RESIZED["new/lsa_rpe_w7"],
        WINDOW.format(3, 0): RESIZED["new/lsa_rpe_w14"],
        OURS + "rel_pos_table": RESIZED["new/qna_rpe_k3"][:, :4],
        OURS + "attn_scale_table": RESIZED["new/attn_scale_k3"][0, 0, :, :4],
    }
    return params | old, new


def check_tables(state_dict: dict, new: dict, names: list[str]) -> None:
    errors = {name: relative_error(state_dict[name], new[name]) for name in names}
    print({name: f"{error:.1e}" for name, error in errors.items()})
    assert max(errors.values()) <= LIMIT


@pytest.mark.parametrize(
    ("kernel_size", "table"), [(7, OURS + "rel_pos_table"), (5, OURS + "attn_scale_table")]
)
def test_resized_as_by_the_official_code(kernel_size, table, tmp_path):
    params, new = with_golden_tables()
    sizes = dict(kernel_size=kernel_size, window_sizes=(4, 4, 12, 24))
    meta, state_dict = converted_file(train_state(params, {}), tmp_path, **sizes)
    check_tables(state_dict, new, [table, *(name for name in new if "w_msa" in name)])
    assert meta["backbone_cfg"]["window_sizes"] == sizes["window_sizes"]
    assert meta["backbone_cfg"]["arch"]["kernel_size"] == kernel_size
    # All that changes is tables; stage 2 keeps its window.
    same = convert(params).checkpoint["state_dict"]
    changed = {key for key, value in state_dict.items() if value.shape != same[key].shape}
    qna = {k for k in same if k.endswith(("rel_pos_table", "attn_scale_table"))}
    assert changed == qna | {name for name in new if "w_msa" in name}
    assert all(torch.equal(state_dict[key], same[key]) for key in same.keys() - changed)
    model = MODELS.build(meta["backbone_cfg"]).eval()
    backbone = {k[9:]: v for k, v in state_dict.items() if k.startswith("backbone.")}
    model.load_state_dict(backbone, strict=True)
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 96, 96))[0].shape == (1, 128, 3, 3)


def test_resized_when_it_is_loaded(tmp_path):
    """The file serves as pretrained weights of a backbone with other windows."""
    params, new = with_golden_tables()
    meta, state_dict = converted_file(train_state(params, {}), tmp_path)
    (path,) = tmp_path.glob("*.pth")
    cfg = meta["backbone_cfg"]
    for kernel_size, table in ((7, "rel_pos_table"), (5, "attn_scale_table")):
        changes = dict(
            arch=cfg["arch"] | dict(kernel_size=kernel_size),
            window_sizes=(4, 4, 12, 24),
            init_cfg=dict(type="Pretrained", checkpoint=str(path), prefix="backbone."),
        )
        model = MODELS.build(cfg | changes)
        model.init_weights()
        loaded = {f"backbone.{key}": value for key, value in model.state_dict().items()}
        check_tables(loaded, new, [OURS + table, *(name for name in new if "w_msa" in name)])
        weight = "backbone.stages.0.blocks.0.attn.query"
        assert torch.equal(loaded[weight], state_dict[weight])


@pytest.mark.parametrize("name", [key[4:] for key in RESIZED if key.startswith("old/")])
def test_every_golden_table(name):
    """The maps of all heads and queries match. The cubic without anti-aliasing differs."""
    old, new = RESIZED[f"old/{name}"], RESIZED[f"new/{name}"]
    if name.startswith("attn_scale"):
        old, new = old[0, 0], new[0, 0]
    key = "attn_scale_table" if name.startswith("attn") else "rel_pos_table"
    key = "relative_position_bias_table" if name.startswith("lsa") else key
    selected, _ = match_state_dict({key: old}, {key: torch.empty_like(new)}, antialias=True)
    assert relative_error(selected[key], new) <= LIMIT
    if old.shape != new.shape:
        other, _ = match_state_dict({key: old}, {key: torch.empty_like(new)})
        assert relative_error(other[key], new) > 1e-2


def test_published_model_for_384():
    conversion = convert(published_qna("tiny"), kernel_size=7, window_sizes=[7, 7, 24, 12])
    cfg = conversion.checkpoint["meta"]["backbone_cfg"]
    assert cfg["arch"] == "tiny_7x7"
    assert cfg["window_sizes"] == (7, 7, 24, 12)
    shapes = {k: v.shape for k, v in conversion.checkpoint["state_dict"].items()}
    assert shapes[WINDOW.format(2, 0)] == (47**2, 8)
    assert shapes[WINDOW.format(3, 1)] == (23**2, 16)
    assert shapes["backbone.stages.2.downsample.attn.rel_pos_table"] == (49, 128)
    # Six window tables, and two tables of each of the ten QnA layers.
    assert len(conversion.report.resized) == 6 + 2 * 10
    assert len(conversion.report.loaded) == 214 - 2 - 26


def test_heads_keep_their_size():
    params, _, _, _ = golden_qna("vit_qnav1_k5")
    shapes = {k: v.shape for k, v in convert(params).checkpoint["state_dict"].items()}
    resized = convert(params, kernel_size=3).checkpoint["state_dict"]
    assert resized["backbone.stages.0.blocks.1.attn.rel_pos_table"].shape == (9, 2)
    for key, value in resized.items():
        if not key.startswith("backbone."):
            assert value.shape == shapes[key]


def test_impossible_sizes():
    params, _, _, _ = golden_qna("vit_gap_64")
    for options, words in (
        (dict(kernel_size=4), "kernel_size must be a positive odd number, got 4"),
        (dict(kernel_size=0), "kernel_size must be a positive odd number, got 0"),
        (dict(window_sizes=(7, 7)), "window_sizes must have one entry for each of the 4 stages"),
        (dict(window_sizes=(0, 7, 7, 7)), r"window_sizes must be at least 1, got \(0, 7, 7, 7\)"),
        (dict(window_sizes=()), "window_sizes must be at least 1"),
        (dict(ema=True), "QnA-ViT have the options kernel_size, window_sizes, got ema"),
    ):
        with pytest.raises(ValueError, match=words):
            convert(params, **options)


def error_of(params: dict) -> str:
    with pytest.raises(ValueError) as error:
        convert(params)
    return str(error.value)


def test_other_architectures():
    params, _, _, _ = golden_qna("vit_gap_64")
    resnet, _, _, _ = golden_qna("vit_qnav2_resnetstem")
    layer = "QnAStage_0/QnA_Block_1/FusedKQnA_0/"
    block = "LSAStage_2/MSA_Block_1/"
    weight = torch.zeros(16, 16)
    norm = "ClassificationHead_0/LayerNorm_0/"
    for changes, words in (
        # Settings of the official layer that no published model has.
        ({layer + "attn_scale_weights": torch.zeros(1, 1, 1, 4)}, "does not fit the QnA-ViT"),
        ({layer + "attn_scale_weights": None},
         "1 missing (stages.0.blocks.0.attn.attn_scale_table)"),
        ({layer + "rpe_bias": None, layer + "absolute_pos_embedding": torch.zeros(9, 2, 16)},
         f"there is no {layer}rpe_bias"),
        ({layer + "to_v/bias": torch.zeros(16)},
         "1 unexpected (stages.0.blocks.0.attn.value.bias)"),
        # Kernels of several sizes.
        ({"QnAStage_1/QnA_Block_1/FusedKQnA_0/rpe_bias": torch.zeros(25, 8)}, "1 resized"),
        # Blocks that are missing, or there twice.
        ({"QnAStage_0/QnA_Block_3/LayerNorm_0/bias": weight[0]}, "blocks of stage 0 of 4 are"),
        ({"LSAStage_9999999/MSA_Block_1/LayerNorm_0/bias": weight[0]}, "blocks of stage 3 of 10"),
        ({"QnAStage_0/QnA_Block_01/LayerNorm_0/bias": torch.zeros(16)}, "get the same name"),
        ({block + "LayerNorm_0/bias": None}, "1 missing (stages.2.blocks.0.norm1.bias)"),
        ({block + "MultiHeadSelfAttention_0/to_qkv/scale": weight}, "no parameter to_qkv/scale"),
        ({block + "LayerNorm_2/bias": weight[0]}, f"has no parameter {block}LayerNorm_2/bias"),
        ({"StemBlock_0/conv_1x1/mask": weight}, "has no parameter StemBlock_0/conv_1x1/mask"),
        ({"StemBlock_0/conv_1x1/kernel": None}, "there is no StemBlock_0/conv_7x7/kernel"),
        ({"StemBlock_0/conv_1x1/kernel": weight}, "must have 4 dimensions, got (16, 16)"),
        ({"StemBlock_0/conv_1x1/kernel": torch.zeros(4, 4, 3, 0)}, "got (4, 4, 3, 0)"),
        ({LSA.format(3): torch.zeros(8, 4)}, "must hold a square map, got 8 positions"),
        ({norm + "scale": None, norm + "bias": None}, f"there is no {norm}scale"),
        # Entries that are not parameters.
        ({"StemBlock_0/conv_1x1/kernel": torch.zeros(4, 4, 3, 16).int()}, "not arrays of floats"),
        ({"extra": "text"}, "1 of its parameters are not arrays of floats: extra"),
        ({"extra": torch.zeros(1)}, "such a model has no parameter extra"),
    ):  # fmt: skip
        merged = {k: v for k, v in (params | changes).items() if v is not None}
        assert words in error_of(merged), changes.keys()
    # The resnet stem lives in two places of a checkpoint.
    assert "2 missing (patch_embed.norm.running_mean, patch_embed.norm.running_var)" in error_of(
        resnet
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "there is no StemBlock_0/conv_7x7/kernel"),
        (dict(params={}), "there is no StemBlock_0/conv_7x7/kernel"),
        (dict(params=None), "not arrays of floats"),
        (dict(params=torch.zeros(3)), "there is no StemBlock_0/conv_7x7/kernel"),
        ({1: torch.zeros(3)}, "1 in it is not the name of a parameter"),
        ({"a": {"b/c": torch.zeros(3)}}, "'b/c' in a/ is not the name of a parameter"),
        (dict(params={"a": torch.zeros(3)}, batch_stats=3), "not arrays of floats"),
    ],
)
def test_other_contents(content, words):
    with pytest.raises(ValueError, match=words):
        convert_checkpoint(content, MODELS.build, "qna")


def test_sizes_cost_no_memory():
    """The model that a shape claims is compared, but not made: this one has 10**11 numbers."""
    params, _, _, _ = golden_qna("vit_gap_64")
    params["StemBlock_0/conv_1x1/kernel"] = torch.zeros(()).expand(4, 4, 3, 1 << 16)
    assert "does not fit the QnA-ViT that its shapes describe" in error_of(params)


def test_damaged_trees(tmp_path):
    """Any error in names and shapes gives a conversion or a one-line error, and no file."""
    pytest.importorskip("msgpack", reason="needs msgpack")
    params, statistics, _, _ = golden_qna("vit_qnav2_resnetstem")
    names = sorted(params)
    choice = random.Random(0)

    def remove(tree, key):
        del tree[key]

    def rename(tree, key):
        tree[choice.choice(names).replace("0", "1", 1)] = tree.pop(key)

    def move(tree, key):
        tree[key.rpartition("/")[0]] = tree.pop(key)

    def retype(tree, key):
        tree[key] = choice.choice([None, "text", 3, tree[key].int(), tree[key].bool()])

    def reshape(tree, key):
        shape = [choice.choice([0, 1, 2, 3, 8, 9]) for _ in range(choice.randrange(5))]
        tree[key] = torch.zeros(shape)

    def transpose(tree, key):
        tree[key] = tree[key].flatten() if tree[key].dim() < 2 else tree[key].transpose(0, -1)

    messages = []
    for i in range(60):
        tree = dict(params)
        (remove, rename, move, retype, reshape, transpose)[i % 6](tree, choice.choice(names))
        try:
            source = write_flax(train_state(tree, statistics), tmp_path / "a")
        except TypeError:  # a leaf became a folder of another leaf
            continue
        try:
            convert_file(source, tmp_path / "out", MODELS.build, "qna", dry_run=True)
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 40
    assert all(m.startswith(f"checkpoint {source} cannot be converted: ") for m in messages)
    assert "\n" not in "".join(messages)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_arguments_name_existing_ones():
    """Recovered configs hold arguments of the backbone, and nothing else."""
    cfg = qna_backbone_cfg(golden_qna("vit_qnav2_resnetstem")[0])
    assert isinstance(MODELS.build(cfg), QnAViT)
