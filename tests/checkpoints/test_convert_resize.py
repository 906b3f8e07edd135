"""Bias tables and position embeddings of another size are interpolated; nothing else is."""

import pytest
import torch
import torch.nn.functional as F

from mmlocal.checkpoints import match_state_dict
from mmlocal.models.backbones import ELSASwin

TABLE, EMBED = "stages.1.blocks.0.attn.w_msa.relative_position_bias_table", "absolute_pos_embed"
ARCH = dict(embed_dims=8, depths=(1, 1), num_heads=(1, 2), group_width=4)


def make(window_size: int, size: int, **kwargs) -> ELSASwin:
    return ELSASwin(
        arch=ARCH,
        window_size=window_size,
        use_abs_pos_embed=True,
        pretrain_img_size=size,
        out_indices=(0, 1),
        **kwargs,
    )


def match(name: str, source: tuple, target: tuple, dtype=torch.float32):
    torch.manual_seed(0)
    tensor = torch.randn(source).to(dtype)
    selected, report = match_state_dict({name: tensor}, {name: torch.zeros(target)})
    return tensor, selected.get(name), report


@pytest.mark.parametrize(("old", "new"), [(7, 12), (12, 7), (2, 7), (7, 1), (1, 3)])
def test_table(old, new):
    shapes = ((2 * old - 1) ** 2, 3), ((2 * new - 1) ** 2, 3)
    table, resized, report = match(TABLE, *shapes)
    assert report.resized == [f"{TABLE}: {shapes[0]} for {shapes[1]}"]
    assert report.loaded == report.mismatched == report.missing == []
    # Each head is a map of its own over the offsets (row, column).
    for head in range(3):
        one = table[:, head].view(1, 1, 2 * old - 1, 2 * old - 1)
        size = (2 * new - 1, 2 * new - 1)
        wanted = F.interpolate(one, size, mode="bicubic", align_corners=False)
        assert torch.allclose(resized[:, head], wanted.flatten(), atol=1e-6)
    # The offset 0 keeps its bias: it is in the middle of both maps.
    assert torch.allclose(resized[len(resized) // 2], table[len(table) // 2], atol=1e-6)


def test_rows_stay_rows():
    row, column = torch.meshgrid(torch.arange(13.0), torch.arange(13.0), indexing="ij")
    planes = torch.stack((row, column), -1).view(169, 2)
    selected, _ = match_state_dict({TABLE: planes}, {TABLE: torch.zeros(23 * 23, 2)})
    rows, columns = selected[TABLE].view(23, 23, 2).unbind(-1)
    for rising in (rows, columns.t()):
        assert (rising[3:-3].diff(dim=0) > 0.4).all()
        assert torch.allclose(rising, rising[:, :1].expand(23, 23), atol=1e-5)


def test_position_embedding():
    embed, resized, report = match(EMBED, (1, 8, 4, 4), (1, 8, 6, 3))
    wanted = F.interpolate(embed, (6, 3), mode="bicubic", align_corners=False)
    assert torch.equal(resized, wanted)
    assert report.resized == [f"{EMBED}: (1, 8, 4, 4) for (1, 8, 6, 3)"]


@pytest.mark.parametrize(
    ("name", "source", "target"),
    [
        ("stages.0.downsample.pos_embed", (1, 4, 3, 3), (1, 4, 2, 5)),
        ("stages.2.blocks.1.mix.own_table", (9, 4), (25, 4)),
    ],
)
def test_names_of_other_layers(name, source, target):
    """The end of a name decides its kind, so a new layer needs no entry in a list."""
    _, resized, _ = match(name, source, target)
    assert resized.shape == target


def test_dtype_is_kept():
    _, resized, _ = match(TABLE, (9, 2), (25, 2), torch.float16)
    assert resized.dtype is torch.float16


@pytest.mark.parametrize(
    ("name", "source", "target"),
    [
        (TABLE, (169, 3), (529, 4)),  # other heads
        (TABLE, (15, 3), (25, 3)),  # no square window
        (TABLE, (25, 3), (15, 3)),
        (TABLE, (3, 169), (529, 3)),
        (TABLE, (169,), (529, 3)),
        (EMBED, (1, 8, 4, 4), (1, 16, 4, 4)),  # other channels
        (EMBED, (1, 16, 8), (1, 8, 6, 6)),  # tokens
        ("stages.0.blocks.0.attn.ghost_add", (8, 5, 5), (8, 7, 7)),
        ("a_table", (9, 2, 2), (25, 2, 2)),  # no table of two dimensions
        ("a_table", (), (25, 2)),
        ("patch_embed.proj.weight", (8, 3, 2, 2), (8, 3, 4, 4)),
        ("relative_position_bias_table.weight", (169, 3), (529, 3)),
    ],
)
def test_what_does_not_resize(name, source, target):
    _, resized, report = match(name, source, target)
    assert resized is None
    assert report.resized == []
    assert report.mismatched == [f"{name}: {source} for {target}"]


def test_equal_shapes_are_loaded_as_they_are():
    table, same, report = match(TABLE, (169, 3), (169, 3))
    assert same is table
    assert report.loaded == [TABLE]
    assert report.resized == []


def test_report_in_words():
    state_dict = {TABLE: torch.zeros(9, 2), "a": torch.zeros(1), "b": torch.zeros(2)}
    target = {TABLE: torch.zeros(25, 2), "b": torch.zeros(3), "c": torch.zeros(1)}
    _, report = match_state_dict(state_dict, target)
    assert str(report) == (
        f"0 loaded; 1 resized ({TABLE}: (9, 2) for (25, 2)); 1 mismatched (b: (2,) for (3,)); "
        "1 missing (c); 1 unexpected (a)"
    )


def test_pretrained_for_another_window_and_size(tmp_path):
    source = make(window_size=2, size=32)
    path = str(tmp_path / "weights.pth")
    torch.save({f"backbone.{key}": value for key, value in source.state_dict().items()}, path)
    init_cfg = dict(type="Pretrained", checkpoint=path, prefix="backbone.")
    model = make(window_size=4, size=64, init_cfg=init_cfg)
    model.init_weights()
    expected, report = match_state_dict(source.state_dict(), model.state_dict())
    assert len(report.resized) == 2
    for key, value in model.state_dict().items():
        assert torch.equal(value, expected[key]), key
    assert model.absolute_pos_embed.requires_grad
    assert model.absolute_pos_embed.shape == (1, 8, 16, 16)
