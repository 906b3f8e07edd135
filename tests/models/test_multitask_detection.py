"""Detection of objects as one more task of ITSA."""

import pytest
import torch
from mmengine.structures import InstanceData

pytest.importorskip("mmseg")
pytest.importorskip("mmdet")

from mmdet.models.dense_heads import DeformableDETRHead
from multitask_data import sample as make_sample

from mmlocal.models.detectors import InterTaskDETRHead
from mmlocal.models.multitask.detection import ITSADetectionHead, restore_boxes
from mmlocal.models.multitask.query_heads import ITSAHead

SIZE = (32, 40)
TASKS = dict(semseg=dict(num_classes=5), depth={}, edge={})
INTERACTION = dict(num_steps=2, num_levels=2, num_points=2, position_channels=8, num_heads=2)
QUERIES = dict(num_queries=6, num_heads=2, num_points=2)


def make_head(**detection) -> ITSADetectionHead:
    torch.manual_seed(0)
    head = ITSADetectionHead(
        in_channels=[8, 16],
        channels=16,
        tasks=TASKS,
        num_heads=2,
        interaction=INTERACTION,
        detection=dict(
            type="mmlocal.InterTaskDETRHead", num_classes=3, queries=QUERIES, **detection
        ),
    )
    head.init_weights()
    return head


def make_samples(number: int) -> list:
    return [make_sample(TASKS, SIZE) for _ in range(number)]


def make_feats(batch: int = 2) -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randn(batch, 8, 8, 10), torch.randn(batch, 16, 4, 5)]


def with_objects(samples: list, counts: tuple[int, ...] = (2, 0)) -> list:
    for sample, count in zip(samples, counts, strict=True):
        boxes = torch.tensor([[2.0, 3, 20, 30], [10, 4, 38, 18]])[:count]
        labels = torch.tensor([0, 2])[:count]
        sample.gt_instances = InstanceData(bboxes=boxes, labels=labels)
    return samples


def test_the_head_gets_its_sizes_from_the_block():
    head = make_head().detection
    assert isinstance(head, InterTaskDETRHead)
    assert isinstance(head, DeformableDETRHead)
    assert head.embed_dims == 24  # the positions are channels
    assert head.num_pred_layer == len(head.queries.layers) == 2
    assert head.queries.layers[0].attention.num_maps == 6


def test_losses_reach_every_parameter():
    head = make_head()
    samples = with_objects(make_samples(2))
    losses = head.loss(make_feats(), samples, size=SIZE)
    names = [f"loss_{task}" for task in TASKS]
    kinds = [f"{layer}{kind}" for layer in ("", "d0.") for kind in ("cls", "bbox", "iou")]
    assert set(losses) == {*names, *(f"loss_detection_{kind}" for kind in kinds)}
    sum(loss.sum() for loss in losses.values()).backward()
    assert [name for name, p in head.named_parameters() if p.grad is None] == []


def test_batch_without_objects():
    head = make_head()
    samples = with_objects(make_samples(2), (0, 0))
    losses = head.loss(make_feats(), samples, size=SIZE)
    total = sum(loss.sum() for loss in losses.values())
    assert torch.isfinite(total)
    total.backward()
    assert [name for name, p in head.named_parameters() if p.grad is None] == []


def test_dense_tasks_do_not_read_the_queries():
    head = make_head().eval()
    plain = ITSAHead([8, 16], TASKS, num_heads=2, interaction=INTERACTION, channels=16).eval()
    weights = {k: v for k, v in head.state_dict().items() if not k.startswith("detection.")}
    plain.load_state_dict(weights)
    outputs = head.predict(make_feats(), SIZE)
    for name, logits in plain.predict(make_feats(), SIZE).items():
        assert torch.equal(outputs[name], logits)


def test_losses_of_the_detection_reach_the_pyramids():
    head = make_head()
    _, pyramids = head.forward_with_pyramids(make_feats())
    samples = with_objects(make_samples(2))
    sum(head.detection.loss_of_pyramids(pyramids, samples, SIZE).values()).sum().backward()
    for step in head.interaction.steps:
        assert any(p.grad.abs().sum() > 0 for p in step.pyramid.parameters())


def test_targets_are_fractions_of_the_input():
    """A perfect box has no loss, whatever size the sample's meta information names."""
    head = make_head().detection
    samples = with_objects(make_samples(1), (1,))
    samples[0].set_metainfo(dict(img_shape=(7, 9)))
    x0, y0, x1, y1 = samples[0].gt_instances.bboxes[0].tolist()
    box = torch.tensor([(x0 + x1) / 80, (y0 + y1) / 64, (x1 - x0) / 40, (y1 - y0) / 32])
    with torch.no_grad():
        for branch in head.reg_branches:  # the box itself, whatever the query is
            branch[-1].weight.zero_()
            branch[-1].bias.copy_(box.logit())
        head.queries.reference_points.weight.zero_()
        head.queries.reference_points.bias.zero_()
    losses = head.loss_of_pyramids(
        [(torch.randn(1, 3 * 80 + 3 * 20, 24), [(8, 10)] * 3 + [(4, 5)] * 3)] * 2,
        samples,
        SIZE,
    )
    assert losses["loss_detection_bbox"].item() == pytest.approx(0, abs=1e-5)
    assert losses["loss_detection_iou"].item() == pytest.approx(0, abs=1e-5)


def test_objects_are_missing():
    samples = make_samples(2)
    with pytest.raises(ValueError, match=r"needs gt_instances.*ann_file"):
        make_head().loss(make_feats(), samples, size=SIZE)


@pytest.mark.parametrize("label", [-1, 3, 4])
def test_labels_that_are_no_class(label):
    """mmdet takes label 3 of 3 classes for the background, and fails on others without a reason."""
    samples = with_objects(make_samples(2))
    samples[0].gt_instances.labels[1] = label
    message = rf"from 0 to 2, got {label} for an image; check decode_head\.detection\.num_classes"
    with pytest.raises(ValueError, match=message):
        make_head().loss(make_feats(), samples, size=SIZE)


@pytest.mark.parametrize("flip", [None, "horizontal", "vertical"])
def test_boxes_return_to_the_image(flip):
    """Boxes of an image that was enlarged, flipped, padded by the pipeline and the batch."""
    original = torch.tensor([[3.0, 2, 10, 8], [0, 0, 20, 15]])
    boxes = original * torch.tensor([1.5, 2, 1.5, 2])  # of 15x20 pixels, as 30x30
    if flip == "horizontal":
        boxes[:, [0, 2]] = 30 - boxes[:, [2, 0]]
    if flip == "vertical":
        boxes[:, [1, 3]] = 30 - boxes[:, [3, 1]]
    boxes += torch.tensor([4.0, 1, 4, 1])
    objects = InstanceData(bboxes=boxes, scores=torch.ones(2), labels=torch.arange(2))
    meta = dict(
        padding_size=(4, 6, 1, 3),
        img_padding_size=(0, 10, 0, 14),
        ori_shape=(15, 20),
        flip=flip is not None,
        flip_direction=flip,
    )
    found = restore_boxes(objects, meta, (48, 50))
    torch.testing.assert_close(found.bboxes, original)
    assert found.labels.tolist() == [0, 1]


def test_boxes_stay_inside_the_image():
    objects = InstanceData(
        bboxes=torch.tensor([[-5.0, -5, 60, 60]]), scores=torch.ones(1), labels=torch.zeros(1)
    )
    found = restore_boxes(objects, dict(ori_shape=(32, 40)), (32, 40))
    assert found.bboxes.tolist() == [[0, 0, 40, 32]]


def test_fewer_pairs_than_mmdet_takes():
    """mmdet takes the best 100 pairs of a query and a class, and here there are 18."""
    objects = make_head().eval().predict(make_feats(), SIZE)["detection"]
    assert [len(x.bboxes) for x in objects] == [18, 18]


def test_autocast():
    """Boxes are float32, since half precision would round pixels of large images."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        objects = make_head().eval().predict(make_feats(), SIZE)["detection"]
    assert {x.bboxes.dtype for x in objects} == {torch.float32}


def test_no_classes():
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        InterTaskDETRHead(0, embed_dims=8, num_maps=2, num_layers=1)
