"""The encoder and the masks of DETR-QnA, whose other parts are mmdet's DETR."""

import runpy
import sys
import warnings
from copy import deepcopy

import pytest
import torch
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from torch import nn

import mmlocal.models
from mmlocal.layers import QnA

pytest.importorskip("mmcv._ext", reason="detectors need mmcv's compiled ops")
pytest.importorskip("mmdet", reason="the detectors are mmdet's")

from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_overlaps
from mmdet.testing import demo_mm_inputs

from mmlocal.models.detectors.detr_qna import QnAEncoderLayer

DIMS = 32
NAMES = ("DETRQnA", "ConditionalDETRQnA")


def build(name: str, **encoder) -> nn.Module:
    """Build a small detector, with maps of stride 8."""
    # Conditional DETR works with 256 channels only.
    dims = 256 if "Conditional" in name else DIMS
    attn = dict(embed_dims=dims, num_heads=4, dropout=0.0)
    ffn_cfg = dict(embed_dims=dims, feedforward_channels=48)
    layer_cfg = dict(self_attn_cfg=attn, ffn_cfg=ffn_cfg)
    cost = dict(type="ClassificationCost", weight=1.0)
    loss = dict(type="CrossEntropyLoss", bg_cls_weight=0.1, class_weight=1.0)
    decoder_cfg = dict(self_attn_cfg=attn, cross_attn_cfg=attn)
    head = "DETRHead"
    if "Conditional" in name:
        decoder_cfg = {
            key: dict(embed_dims=dims, num_heads=4, cross_attn=key == "cross_attn_cfg")
            for key in decoder_cfg
        }
        cost = dict(type="FocalLossCost", weight=2.0)
        loss = dict(type="FocalLoss", loss_weight=2.0)
        head = "ConditionalDETRHead"
    cfg = dict(
        type=f"mmlocal.{name}" if "QnA" in name else name,
        num_queries=5,
        data_preprocessor=dict(type="DetDataPreprocessor"),
        backbone=dict(
            type="mmlocal.QnAViT",
            arch=dict(
                embed_dims=8, attn_depths=[0, 0], qna_depths=[1, 1], attn_heads=[1, 1],
                qna_heads=[1, 2],
            ),
            window_sizes=[7, 7],
            drop_path_rate=0.0,
            out_indices=[1],
        ),
        neck=dict(
            type="ChannelMapper", in_channels=[16], kernel_size=1, out_channels=dims, act_cfg=None
        ),
        encoder=dict(num_layers=4, layer_cfg=layer_cfg) | encoder,
        decoder=dict(
            num_layers=2,
            layer_cfg=decoder_cfg | dict(ffn_cfg=ffn_cfg),
            return_intermediate=True,
        ),
        positional_encoding=dict(num_feats=dims // 2, normalize=True),
        bbox_head=dict(type=head, num_classes=3, embed_dims=dims, loss_cls=loss),
        train_cfg=dict(
            assigner=dict(
                type="HungarianAssigner",
                match_costs=[
                    cost,
                    dict(type="BBoxL1Cost", weight=5.0, box_format="xywh"),
                    dict(type="IoUCost", iou_mode="giou", weight=2.0),
                ],
            )
        ),
        test_cfg=dict(max_per_img=5),
    )  # fmt: skip
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(deepcopy(cfg))
        model.init_weights()
    return model


def emphasise_qna(model: nn.Module) -> None:
    """Enlarge the output of QnA, which starts near zero."""
    torch.manual_seed(1)
    for module in model.encoder.modules():
        if isinstance(module, QnA):
            nn.init.normal_(module.attn_scale_table)
            nn.init.normal_(module.rel_pos_table)


def is_qna(model: nn.Module) -> list[bool]:
    return [isinstance(layer, QnAEncoderLayer) for layer in model.encoder.layers]


def batch(*sizes: tuple[int, int]) -> dict:
    shapes = [(3, *size) for size in sizes]
    return demo_mm_inputs(len(sizes), shapes, num_items=[2] * len(sizes), num_classes=3)


# What is built


@pytest.mark.parametrize("indices", [(), (0, 1), [3, 0], (2,), (1, 2, 3)], ids=str)
def test_order_of_layers(indices):
    model = build("DETRQnA", qna_indices=indices)
    assert is_qna(model) == [i in indices for i in range(4)]
    assert model.encoder.num_layers == 4
    for i, layer in enumerate(model.encoder.layers):
        names = {name for name in model.state_dict() if name.startswith(f"encoder.layers.{i}.")}
        assert names == {f"encoder.layers.{i}.{name}" for name in layer.state_dict()}
        assert (f"encoder.layers.{i}.self_attn.query" in names) == (i in indices)


@pytest.mark.parametrize("name", NAMES)
def test_without_qna_it_is_the_detector_of_mmdet(name):
    """Weights load by name, losses and predictions are the same."""
    stock, ours = build(name.removesuffix("QnA")), build(name, qna_indices=())
    assert type(stock) in type(ours).__mro__
    for parameter in ours.parameters():
        nn.init.zeros_(parameter)
    ours.load_state_dict(stock.state_dict(), strict=True)
    outs = []
    for model in (stock, ours):
        data = model.data_preprocessor(batch((64, 96), (40, 56)), training=True)
        model.train()
        outs.append(model(**data, mode="loss"))
        with torch.no_grad():
            outs[-1]["scores"] = model.eval()(**data, mode="predict")[1].pred_instances.scores
    assert outs[0].keys() == outs[1].keys()
    for key, value in outs[0].items():
        assert torch.equal(outs[1][key], value), key


def test_qna_layers_are_as_the_others_around_the_attention():
    attn = dict(embed_dims=DIMS, num_heads=4, dropout=0.25)
    ffn = dict(embed_dims=DIMS, feedforward_channels=40, ffn_drop=0.125)
    model = build(
        "DETRQnA",
        qna_indices=(1,),
        qna_cfg=dict(kernel_size=5, num_heads=2, num_queries=3),
        layer_cfg=dict(self_attn_cfg=attn, ffn_cfg=ffn, norm_cfg=dict(type="LN", eps=0.5)),
    )
    other, layer = model.encoder.layers[:2]
    assert str(layer.ffn) == str(other.ffn)
    assert str(layer.norms) == str(other.norms)
    assert "eps=0.5" in str(layer.norms)
    assert layer.dropout.p == other.self_attn.dropout_layer.p == 0.25
    qna = layer.self_attn
    assert (qna.kernel_size, qna.num_heads, qna.num_queries) == (5, 2, 3)


def test_default_heads_have_eight_channels():
    (layer, *_) = build("DETRQnA", qna_indices=(0,)).encoder.layers
    assert (layer.self_attn.num_heads, layer.self_attn.kernel_size) == (DIMS // 8, 7)


@pytest.mark.parametrize("name", NAMES)
def test_qna_keeps_its_own_initialisation(name):
    model = build(name, qna_indices=(0, 2))
    for layer in model.encoder.layers:
        if isinstance(layer, QnAEncoderLayer):
            assert not layer.self_attn.rel_pos_table.any()
            assert layer.self_attn.attn_scale_table.std().item() == pytest.approx(0.02, rel=0.2)
    # mmdet's own weights, those of QnA layers included: Xavier, i.e. uniform up to this bound
    weight = model.encoder.layers[0].ffn.layers[1].weight
    assert weight.abs().max().item() == pytest.approx(
        (6 / (model.embed_dims + 48)) ** 0.5, rel=0.01
    )


@pytest.mark.parametrize(
    ("encoder", "error", "message"),
    [
        (dict(qna_indices=(4,)), ValueError, r"qna_indices .* 0 to num_layers - 1 = 3.*\(4,\)"),
        (dict(qna_indices=(-1,)), ValueError, "qna_indices"),
        (dict(qna_indices=(0, 0)), ValueError, "qna_indices must be different"),
        (dict(qna_indices=("qna", "attn")), ValueError, "qna_indices"),
        (dict(qna_indices=(0, 1, 2, 3)), ValueError, "but not all of them"),
        (dict(qna_indices=(0,), num_cp=2), ValueError, "encoder.num_cp must be left out .* got 2"),
        (dict(qna_indices=(0,), qna_cfg=dict(num_heads=5)), ValueError, "num_heads must divide"),
        (
            dict(qna_indices=(0,), qna_cfg=dict(kernel_size=4)),
            ValueError,
            "kernel_size must be a positive odd number, got 4",
        ),
        (dict(qna_indices=(0,), qna_cfg=dict(num_queries=0)), ValueError, "num_queries"),
        (dict(qna_indices=(0,), qna_cfg=dict(stride=2)), TypeError, "stride"),
    ],
    ids=str,
)
def test_errors(encoder, error, message):
    with pytest.raises(error, match=message):
        build("DETRQnA", **encoder)


# What it computes


def test_a_qna_layer_is_local():
    """A token changes its neighbours only, on a map that is not square."""
    attn = dict(embed_dims=DIMS, num_heads=4, dropout=0.0)
    torch.manual_seed(0)
    layer = QnAEncoderLayer(kernel_size=3, self_attn_cfg=attn, ffn_cfg=dict(embed_dims=DIMS)).eval()
    nn.init.normal_(layer.self_attn.attn_scale_table)
    height, width = 5, 8
    query, pos = torch.randn(2, 1, height * width, DIMS)
    changed = query.clone()
    changed[:, 2 * width + 4, 0] += 1
    with torch.no_grad():
        outs = [layer(q, pos, None, map_size=(height, width)) for q in (query, changed)]
        moved = layer(query, pos.flip(1), None, map_size=(height, width))
    differs = (outs[0] != outs[1]).any(dim=2).view(height, width)
    expected = torch.zeros(height, width, dtype=torch.bool)
    expected[1:4, 3:6] = True
    assert torch.equal(differs, expected)
    assert not torch.allclose(outs[0], moved), "the position embedding does not matter"


LAYOUTS = [(0,), (3,), (0, 1), (1, 2, 3), (0, 2)]


def encode(model: nn.Module, feat: torch.Tensor, sizes: list, use_mask: bool = True):
    """Encode images of ``sizes`` on one map of stride 8; returns ``(B, H, W, C)``."""
    batch_size, _, height, width = feat.shape
    metas = [dict(batch_input_shape=(height * 8, width * 8), img_shape=size) for size in sizes]
    samples = [DetDataSample(metainfo=meta) for meta in metas]
    inputs, _ = model.pre_transformer((feat,), samples)
    if not use_mask:
        inputs["feat_mask"] = None
    with torch.no_grad():
        return model.forward_encoder(**inputs)["memory"].view(batch_size, height, width, -1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("indices", LAYOUTS, ids=str)
def test_padding_changes_nothing(name, indices):
    """An image has the same memory alone and among larger images, whatever its padding holds."""
    model = build(name, qna_indices=indices, qna_cfg=dict(kernel_size=5)).double().eval()
    emphasise_qna(model)
    torch.manual_seed(2)
    feat = torch.randn(2, model.encoder.embed_dims, 9, 7, dtype=torch.float64)
    sizes = [(48, 40), (72, 56)]  # 6 x 5 tokens, and all 9 x 7
    alone = encode(model, feat[:1, :, :6, :5].contiguous(), sizes[:1])
    together = encode(model, feat, sizes)
    torch.testing.assert_close(together[:1, :6, :5], alone, rtol=1e-12, atol=1e-12)

    other = feat.clone()
    other[0, :, 6:] = 10 * torch.randn_like(other[0, :, 6:])
    other[0, :, :, 5:] *= -3
    padded_differently = encode(model, other, sizes)
    assert torch.equal(padded_differently[:1, :6, :5], together[:1, :6, :5])
    assert torch.equal(padded_differently[1], together[1])

    # Without the mask it would show.
    unmasked = encode(model, other, sizes, use_mask=False)
    assert (unmasked[:1, :6, :5] - together[:1, :6, :5]).abs().max() > 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_loss_gradients_and_prediction(name):
    """No parameter is left out, so distributed training needs no search for unused ones."""
    model = build(name, qna_indices=(0, 2), qna_cfg=dict(kernel_size=3)).train()
    data = model.data_preprocessor(batch((64, 96), (40, 56)), training=True)
    loss, logs = model.parse_losses(model(**data, mode="loss"))
    loss.backward()
    assert loss.isfinite()
    assert {"loss_cls", "loss_bbox", "loss_iou"} <= logs.keys()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    for index in (0, 2):
        for name_, parameter in model.encoder.layers[index].named_parameters():
            assert parameter.grad.isfinite().all()
            assert parameter.grad.any(), name_

    model.eval()
    with torch.no_grad():
        found = model.test_step(batch((64, 96), (40, 56)))
    for sample, (height, width) in zip(found, [(64, 96), (40, 56)], strict=True):
        boxes = sample.pred_instances.bboxes
        assert boxes.shape == (5, 4)
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([width, height, width, height])).all()
        assert sample.pred_instances.scores.isfinite().all()


def test_it_learns():
    """The model learns the place and the class of a bright square."""
    places = [(4, 4), (36, 36)]
    side = 20
    images = torch.zeros(len(places), 3, 64, 64)
    samples = []
    for label, (image, (x, y)) in enumerate(zip(images, places, strict=True)):
        image[:, y : y + side, x : x + side] = 1
        meta = dict(img_shape=(64, 64), batch_input_shape=(64, 64), scale_factor=(1.0, 1.0))
        sample = DetDataSample(metainfo=meta)
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor([[x, y, x + side, y + side]]).float(),
            labels=torch.tensor([label]),
        )
        samples.append(sample)
    images = 4 * images - 2
    model = build("DETRQnA", qna_indices=(0, 1), qna_cfg=dict(kernel_size=3)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(100):
        loss, _ = model.parse_losses(model(images, samples, mode="loss"))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    model.eval()
    with torch.no_grad():
        found = model(images, samples, mode="predict")
    for sample in found:
        best = sample.pred_instances[sample.pred_instances.scores.argmax(dim=0, keepdim=True)]
        true = sample.gt_instances
        overlap = bbox_overlaps(best.bboxes, true.bboxes).item()
        print(f"score {best.scores.item():.2f}, IoU {overlap:.2f}")
        assert best.labels == true.labels
        assert best.scores > 0.5
        assert overlap > 0.5


# How it is registered


def detectors_registered() -> bool:
    """Whether a fresh import of ``mmlocal.models`` has the detectors."""
    return "detectors" in runpy.run_path(mmlocal.models.__file__)["__all__"]


def test_registered_where_mmdet_is():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert detectors_registered()
    for name in NAMES:
        assert MODELS.get(f"mmlocal.{name}").__name__ == name


def test_left_out_where_mmdet_is_not(monkeypatch):
    monkeypatch.delitem(sys.modules, "mmdet.models")
    monkeypatch.setitem(sys.modules, "mmdet", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not detectors_registered()


def test_a_broken_mmdet_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "mmdet.models", None)
    with pytest.warns(UserWarning, match=r"mmdet does not import: .*mmdet\.models"):
        assert not detectors_registered()
