"""The multi-task segmentor: training, prediction and all that mmseg's tools expect of a model."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("mmseg")

from mmengine.model import MMDistributedDataParallel, convert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.evaluation import IoUMetric
from mmseg.registry import MODELS as MMSEG_MODELS
from mmseg.structures import SegDataSample
from models.multitask_data import ALL, batch, sample

from mmlocal.models.multitask.head import MultiTaskHead
from mmlocal.models.multitask.preprocessor import MultiTaskDataPreProcessor
from mmlocal.models.multitask.segmentor import MultiTaskSegmentor, restore
from mmlocal.registry import MODELS
from mmlocal.tasks import TASKS

CHANNELS = [8, 16, 32, 64]
BACKBONES = {
    "mmlocal": dict(
        type="mmlocal.ELSASwin",
        arch=dict(embed_dims=8, depths=[1, 1, 2, 1], num_heads=[1, 2, 4, 8], group_width=4),
        drop_path_rate=0.0,
    ),
    "mmseg": dict(
        type="mmseg.SwinTransformer",
        embed_dims=8,
        depths=(1, 1, 1, 1),
        num_heads=(1, 2, 4, 8),
        drop_path_rate=0.0,
    ),
    "mmpretrain": dict(
        type="mmpretrain.ConvNeXt",
        arch=dict(depths=[1, 1, 1, 1], channels=CHANNELS),
        out_indices=(0, 1, 2, 3),
        gap_before_final_norm=False,
        drop_path_rate=0.0,
    ),
}
ITSA = dict(
    type="mmlocal.ITSAHead",
    channels=16,
    interaction=dict(num_steps=2, num_levels=2, num_points=2, position_channels=8, dropout=0.0),
)
PLAIN = dict(type="mmlocal.MultiTaskHead", channels=16)
PREPROCESSOR = dict(
    type="mmlocal.MultiTaskDataPreProcessor",
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
)


def make(head: dict = ITSA, tasks: dict = ALL, backbone: str = "mmlocal", **kwargs):
    torch.manual_seed(0)
    cfg = dict(
        type="mmlocal.MultiTaskSegmentor",
        data_preprocessor=PREPROCESSOR,
        backbone=BACKBONES[backbone],
        decode_head=head | dict(in_channels=CHANNELS, tasks=tasks),
    )
    return MODELS.build(copy.deepcopy(cfg | kwargs))


def without_gradient(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_number_of_parameters():
    """DeMT with Swin-T, 32.07 M as published, and its baseline."""
    tasks = dict(semseg=dict(num_classes=40), depth={}, normals={}, edge={})
    head = dict(type="mmlocal.DeMTHead", in_channels=[96, 192, 384, 768], tasks=tasks)
    model = MultiTaskSegmentor(dict(type="mmseg.SwinTransformer"), head)
    counts = [sum(p.numel() for p in m.parameters()) for m in (model.backbone, model)]
    assert counts == [27_520_698, 32_070_259]


# -------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("head", [PLAIN, ITSA, dict(type="mmlocal.DeMTHead", channels=16)])
def test_train_step(head):
    """All six tasks with ELSA-Swin: losses, gradients, and another model after the step."""
    model = make(head).train()
    before = copy.deepcopy(model.state_dict())
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-3))
    log = model.train_step(batch(ALL, (32, 48), (32, 48)), wrapper)
    assert list(log) == ["loss", *(f"loss_{name}" for name in ALL)]
    torch.testing.assert_close(log["loss"], sum(v for k, v in log.items() if k != "loss"))
    changed = [name for name, value in model.state_dict().items() if (value != before[name]).any()]
    assert {"backbone", "decode_head"} == {name.partition(".")[0] for name in changed}
    first = log["loss"].item()
    data = batch(ALL, (32, 48), (32, 48))
    losses = [model.train_step(copy.deepcopy(data), wrapper)["loss"].item() for _ in range(6)]
    print(f"first step {first:.2f}, then one batch again and again: {losses}")
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("share_backbone", [True, False])
def test_every_parameter_has_a_gradient(backbone, share_backbone):
    if backbone == "mmpretrain":
        pytest.importorskip("mmpretrain")
    tasks = dict(normals={}, semseg=dict(num_classes=3))
    model = make(ITSA, tasks, backbone, share_backbone=share_backbone).train()
    data = model.data_preprocessor(batch(tasks, (32, 48), (32, 48)), training=True)
    sum(model(**data, mode="loss").values()).backward()
    assert without_gradient(model) == []
    backbones = [model.backbone] if share_backbone else list(model.backbone.values())
    assert len(backbones) == (1 if share_backbone else 2)


def test_single_tasks_do_not_touch_each_other():
    """With a backbone per task and plain heads, the tasks train as networks of their own."""
    tasks = dict(depth={}, edge={})
    model = make(PLAIN, tasks, share_backbone=False).train()
    data = model.data_preprocessor(batch(tasks, (32, 32), (32, 32)), training=True)
    model(**data, mode="loss")["loss_edge"].backward()
    names = {name for name, _ in model.named_parameters()}
    assert set(without_gradient(model)) == {name for name in names if ".depth." in name}
    assert {name.split(".")[1] for name in names if name.startswith("backbone.")} == {*tasks}


def test_neck():
    neck = dict(type="mmseg.FPN", in_channels=CHANNELS, out_channels=12, num_outs=4)
    for share_backbone in (True, False):
        model = make(PLAIN, dict(depth={}), neck=neck, share_backbone=share_backbone)
        model.decode_head = MultiTaskHead([12] * 4, dict(depth={}), share_encoder=share_backbone)
        assert model(torch.randn(1, 3, 32, 32))["depth"].shape == (1, 1, 32, 32)


def test_gradient_checkpointing():
    """The same gradients with ``with_cp`` of the backbone."""
    data = make().data_preprocessor(batch(ALL, (32, 32), (32, 32)), training=True)
    grads = []
    for with_cp in (False, True):
        model = make(backbone_cfg := dict(ITSA), backbone="mmlocal").train()
        if with_cp:
            cfg = BACKBONES["mmlocal"] | dict(with_cp=True)
            weights = model.state_dict()
            model = make(backbone_cfg)
            model.backbone = MMSEG_MODELS.build(copy.deepcopy(cfg))
            model.load_state_dict(weights)
            model.train()
        sum(model(**copy.deepcopy(data), mode="loss").values()).backward()
        assert without_gradient(model) == []
        grads.append([parameter.grad for parameter in model.parameters()])
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-4, atol=1e-5)


def test_bfloat16():
    """Losses are computed in float32 under autocast."""
    model = make().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        data = model.data_preprocessor(batch(ALL, (32, 32), (32, 32)), training=True)
        losses = model(**data, mode="loss")
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    sum(losses.values()).backward()
    optimizer.step()
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_sync_batch_norm():
    """mmengine converts every batch norm, for configs with ``sync_bn='torch'``."""
    model = convert_sync_batchnorm(make())
    kinds = {type(m) for m in model.decode_head.modules() if "BatchNorm" in type(m).__name__}
    assert kinds == {nn.SyncBatchNorm}


def distributed(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    model = MMDistributedDataParallel(make().train())
    torch.manual_seed(rank)
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-3))
    for step in range(2):
        data = batch(ALL, (32, 32), (32, 32))
        if rank == 0 and step == 0:  # no person in the images of one process
            for made in data["data_samples"]:
                made.gt_parts_map.data.fill_(255)
        log = model.train_step(data, wrapper)
        assert log["loss"].isfinite()
    torch.save(model.module.state_dict(), f"{folder}/{rank}.pth")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes(tmp_path):
    """Without ``find_unused_parameters``, also if one process has no labels of a task."""
    torch.multiprocessing.spawn(distributed, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pth") for rank in range(2))
    for name, value in first.items():
        if "running" not in name:  # each process has its own statistics
            torch.testing.assert_close(second[name], value, rtol=0, atol=0)


# ------------------------------------------------------------------------------------ prediction


def test_predictions():
    model = make().eval()
    data = batch(ALL, (30, 44), (30, 44))
    labels = [made.gt_normal_map.data.clone() for made in data["data_samples"]]
    with torch.no_grad():
        samples = model.test_step(data)
    for made, normals in zip(samples, labels, strict=True):
        shapes = {name: tuple(made.get(TASKS[name].pred_field).data.shape) for name in ALL}
        assert shapes == dict.fromkeys(ALL, (1, 30, 44)) | dict(normals=(3, 30, 44))
        for name, classes in (("semseg", 5), ("human_parts", 7)):
            prediction = made.get(TASKS[name].pred_field).data
            assert prediction.dtype == torch.int64
            assert 0 <= prediction.min() <= prediction.max() < classes
        for name in ("sal", "edge"):
            prediction = made.get(TASKS[name].pred_field).data
            assert 0 < prediction.min() < prediction.max() < 1
        assert made.pred_depth_map.data.min() >= 0
        length = made.pred_normal_map.data.norm(dim=0)
        torch.testing.assert_close(length, torch.ones(30, 44))
        assert torch.equal(made.gt_normal_map.data, normals)
        assert made.seg_logits.data.shape == (5, 30, 44)
        assert torch.equal(made.seg_logits.data.argmax(0, keepdim=True), made.pred_sem_seg.data)


def test_tensor_mode_and_no_samples():
    model = make().eval()
    images = torch.randn(2, 3, 17, 23)
    with torch.no_grad():
        outputs = model(images)
        samples = model(images, mode="predict")
    assert {name: x.shape[1] for name, x in outputs.items()} == dict(
        semseg=5, human_parts=7, sal=2, depth=1, normals=3, edge=1
    )
    assert all(x.shape[2:] == (17, 23) for x in outputs.values())
    for index, made in enumerate(samples):
        torch.testing.assert_close(made.pred_edge_map.data, outputs["edge"][index].sigmoid())
        expected = outputs["sal"][index].softmax(0)[1:]
        torch.testing.assert_close(made.pred_saliency_map.data, expected)


def test_padding_is_cut_off_and_size_restored():
    """Where a pipeline pads around an image, and the preprocessor then pads the batch."""
    model = make(data_preprocessor=PREPROCESSOR | dict(test_cfg=dict(size_divisor=32))).eval()
    made = sample(ALL, (40, 40), padding_size=(3, 7, 10, 6))
    made.set_metainfo(dict(ori_shape=(24, 30)))
    image = torch.randint(256, (3, 40, 40), dtype=torch.uint8)
    with torch.no_grad():
        (found,) = model.test_step(dict(inputs=[image], data_samples=[made]))
        outputs = model(
            model.data_preprocessor(dict(inputs=[image], data_samples=[made]))["inputs"]
        )
    assert found.metainfo["img_padding_size"] == (0, 24, 0, 24)
    expected = outputs["depth"][0, :, 10:34, 3:33].clamp(min=0)
    torch.testing.assert_close(found.pred_depth_map.data, expected)
    half = restore(outputs["depth"][0], dict(ori_shape=(32, 32)), "depth")
    full = outputs["depth"]
    torch.testing.assert_close(half, F.interpolate(full, (32, 32), mode="bilinear")[0])


@pytest.mark.parametrize(("direction", "component"), [("horizontal", 0), ("vertical", 1)])
def test_flip_is_undone(direction, component):
    logits = torch.randn(3, 4, 5)
    meta = dict(flip=True, flip_direction=direction, padding_size=(1, 0, 0, 2))
    found = restore(logits, meta, "normals")
    expected = logits[:, :2, 1:].flip(2 if direction == "horizontal" else 1)
    expected[component] *= -1
    assert torch.equal(found, expected)
    assert torch.equal(
        restore(logits[:1], meta, "depth"),
        restore(logits, meta, "normals")[:1] * (-1 if component == 0 else 1),
    )


def test_mmseg_metric():
    """mmseg's IoUMetric finds the labels and the prediction."""
    model = make().eval()
    with torch.no_grad():
        samples = model.test_step(batch(ALL, (32, 32), (32, 32)))
    metric = IoUMetric()
    metric.dataset_meta = dict(classes=tuple("abcde"))
    metric.process({}, [made.to_dict() for made in samples])
    assert 0 < metric.evaluate(2)["mIoU"] < 100


def test_mmseg_test_time_augmentation():
    """mmseg's merging of several views finds the logits of semantic segmentation."""
    model = make().eval()
    with DefaultScope.overwrite_default_scope("mmseg"):
        tta = MMSEG_MODELS.build(dict(type="SegTTAModel", module=model))
    view = batch(ALL, (32, 32))
    view["data_samples"][0].set_metainfo(dict(img_path="x.png"))
    flipped = copy.deepcopy(view)
    flipped["inputs"] = [flipped["inputs"][0].flip(2)]
    flipped["data_samples"][0].set_metainfo(dict(flip=True, flip_direction="horizontal"))
    with torch.no_grad():
        (merged,) = tta.test_step({k: [view[k], flipped[k]] for k in view})
        logits = [model.test_step(copy.deepcopy(x))[0].seg_logits.data for x in (view, flipped)]
    expected = sum(x.softmax(0) for x in logits).argmax(0)
    assert torch.equal(merged.pred_sem_seg.data.squeeze(), expected)


def test_mmseg_inference(tmp_path):
    """``init_model`` and ``inference_model`` of mmseg, from a file and for an array."""
    from mmengine.config import Config
    from mmseg.apis import inference_model, init_model

    model = make()
    path = tmp_path / "model.pth"
    meta = dict(dataset_meta=dict(classes=tuple("abcde"), palette=[[i] * 3 for i in range(5)]))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), path)
    cfg = Config(
        dict(
            model=dict(
                type="mmlocal.MultiTaskSegmentor",
                data_preprocessor=PREPROCESSOR,
                backbone=BACKBONES["mmlocal"],
                decode_head=ITSA | dict(in_channels=CHANNELS, tasks=ALL),
                test_cfg=dict(mode="whole"),
            ),
            default_scope="mmseg",
            test_pipeline=[dict(type="LoadImageFromFile"), dict(type="PackSegInputs")],
        )
    )
    image = np.random.default_rng(0).integers(0, 256, (29, 41, 3), dtype=np.uint8)
    with DefaultScope.overwrite_default_scope("mmseg"):  # init_model would leave it set
        loaded = init_model(cfg, str(path), device="cpu")
        found = inference_model(loaded, image)
    assert found.pred_sem_seg.data.shape == (1, 29, 41)
    assert found.pred_normal_map.data.shape == (3, 29, 41)
    assert found.ori_shape == (29, 41)


# ----------------------------------------------------------------------------------- preprocessor


def test_preprocessor_pads_all_labels():
    data = batch(ALL, (20, 30), (24, 26))
    originals = copy.deepcopy(data)
    prepared = MultiTaskDataPreProcessor()(data, training=True)
    assert prepared["inputs"].shape == (2, 3, 24, 30)
    for made, original in zip(prepared["data_samples"], originals["data_samples"], strict=True):
        height, width = original.img_shape
        for name in ALL:
            field = TASKS[name].gt_field
            labels, before = made.get(field).data, original.get(field).data
            assert labels.dtype == before.dtype
            assert labels.shape[-2:] == (24, 30)
            assert torch.equal(labels[:, :height, :width], before)
            assert (labels[:, height:] == 255).all()
            assert (labels[:, :, width:] == 255).all()


def test_preprocessor_in_other_modes():
    fixed = MultiTaskDataPreProcessor(size=(32, 48))
    prepared = fixed(batch(ALL, (20, 30), (24, 26)), training=True)
    assert prepared["inputs"].shape == (2, 3, 32, 48)
    assert all(s.gt_parts_map.shape == (32, 48) for s in prepared["data_samples"])
    data = batch(ALL, (20, 30))
    data["data_samples"][0].set_metainfo(dict(ori_shape=(10, 15)))
    tested = fixed(data)
    assert tested["inputs"].shape == (1, 3, 20, 30)
    assert tested["data_samples"][0].gt_parts_map.shape == (20, 30)
    with pytest.raises(ValueError, match="seg_pad_val must be 255"):
        MultiTaskDataPreProcessor(seg_pad_val=0)


def test_labels_of_another_size_stay():
    """The preprocessor must not hide them: the loss refuses them."""
    model = make(PLAIN, dict(depth={})).train()
    data = batch(dict(depth={}), (20, 30), (24, 26))
    data["data_samples"][0].gt_depth_map = PixelData(data=torch.ones(1, 10, 15))
    with pytest.raises(ValueError, match="gt_depth_map, the labels of the task 'depth', must have"):
        model(**model.data_preprocessor(data, training=True), mode="loss")


# ------------------------------------------------------------------------------------- arguments


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"test_cfg\.mode must be 'whole'"):
        make(test_cfg=dict(mode="slide"))
    with pytest.raises(ValueError, match=r"use backbone\.init_cfg"):
        make(pretrained="weights.pth")
    with pytest.raises(TypeError, match="share_backbone must be True or False"):
        make(share_backbone=1)
    model = make(PLAIN, dict(depth={}))
    with pytest.raises(ValueError, match=r"task 'depth' has no labels .* lacks gt_depth_map"):
        model.loss(torch.randn(1, 3, 32, 32), [SegDataSample()])


def test_resume(tmp_path):
    """A copy that loads the weights and the state of the optimizer goes on alike."""
    torch.manual_seed(0)
    batches = [batch(ALL, (32, 32), (32, 32)) for _ in range(3)]

    def run(model: MultiTaskSegmentor, wrapper: OptimWrapper, data: list) -> Tensor:
        for one in data:
            log = model.train_step(copy.deepcopy(one), wrapper)
        return log["loss"]

    model = make().train()
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9))
    run(model, wrapper, batches[:2])
    torch.save([model.state_dict(), wrapper.state_dict()], tmp_path / "state.pth")
    expected = run(model, wrapper, batches[2:])
    other = make().train()
    again = OptimWrapper(torch.optim.SGD(other.parameters(), lr=1e-3, momentum=0.9))
    weights, state = torch.load(tmp_path / "state.pth")
    other.load_state_dict(weights)
    again.load_state_dict(state)
    torch.testing.assert_close(run(other, again, batches[2:]), expected, rtol=0, atol=0)
