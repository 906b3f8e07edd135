"""Multi-task heads: outputs of the official DeMT, parameter counts, and wrong arguments."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("mmseg")

from models.multitask_data import ALL, golden_head, sample

from mmlocal.checkpoints.demt import convert_demt
from mmlocal.models.multitask.encoder import MapEncoder
from mmlocal.models.multitask.head import MultiTaskHead
from mmlocal.models.multitask.query_heads import DeMTHead, ITSAHead

NYUD = dict(semseg=dict(num_classes=40), depth={}, normals={}, edge={})
SMALL = dict(num_steps=2, num_levels=2, num_points=2, position_channels=8)
HEADS = {
    MultiTaskHead: {},
    DeMTHead: {},
    ITSAHead: dict(interaction=SMALL),
}


def maps(in_channels: list[int], batch: int = 2, size: tuple[int, int] = (6, 8)) -> list:
    """Random maps of four strides."""
    return [
        torch.randn(batch, channels, max(size[0] >> i, 1), max(size[1] >> i, 1))
        for i, channels in enumerate(in_channels)
    ]


def make(kind: type, tasks: dict = ALL, **kwargs) -> MultiTaskHead:
    torch.manual_seed(0)
    return kind([4, 8, 12, 16], tasks, channels=16, **HEADS[kind], **kwargs)


@pytest.mark.parametrize("name", ["global", "legacy_b1"])
def test_golden(name):
    meta, official, arrays, feats = golden_head()
    tasks = {task: NYUD[task] for task in meta["tasks"]}
    head = DeMTHead(meta["planes"], tasks, channels=meta["dim"], legacy=name != "global")
    missing, unexpected = head.load_state_dict(convert_demt(official), strict=False)
    assert not unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing)
    head.eval()
    if name != "global":
        feats = [x[:1] for x in feats]
    with torch.no_grad():
        outputs = head.predict(feats, meta["inp_shape"])
    assert list(outputs) == meta["tasks"]
    for task, output in outputs.items():
        expected = arrays[f"{name}.{task}"]
        error = (output - expected).abs().max() / expected.abs().max()
        print(f"{name}, {task}: worst error {error:.1e}")
        assert error < 1e-5


@pytest.mark.parametrize(
    ("in_channels", "parameters"),
    [
        ([18, 36, 72, 144], 2_887_498),
        ([96, 192, 384, 768], 4_549_561),
        ([128, 256, 512, 1024], 5_228_581),
    ],
)
def test_number_of_parameters(in_channels, parameters):
    """For the four tasks of NYUD-v2 with HRNet18, Swin-T and Swin-B."""
    with torch.device("meta"):
        head = DeMTHead(in_channels, NYUD)
    assert sum(parameter.numel() for parameter in head.parameters()) == parameters


@pytest.mark.parametrize("align_corners", [False, True])
def test_encoder_is_resize_then_concat_then_linear(align_corners):
    """The papers' order of the steps."""
    torch.manual_seed(0)
    encoder = MapEncoder([4, 12], 16, [1, 3], align_corners).double()
    feats = [x.double() for x in maps([8, 4, 8, 12], size=(12, 20))]
    size = feats[1].shape[2:]
    large = F.interpolate(feats[3], size=size, mode="bilinear", align_corners=align_corners)
    joined = torch.cat([feats[1], large], dim=1).permute(0, 2, 3, 1)
    expected = encoder.norm(encoder.proj(joined)).permute(0, 3, 1, 2)
    torch.testing.assert_close(encoder(feats), expected)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("names", [["normals"], ["edge", "semseg"], list(ALL)])
def test_tasks(kind, names):
    """Any subset in any order: outputs, losses, and gradients of all parameters."""
    tasks = {name: ALL[name] for name in names}
    head = make(kind, tasks)
    feats = maps([4, 8, 12, 16])
    channels = dict(semseg=5, human_parts=7, sal=2, depth=1, normals=3, edge=1)
    outputs = head(feats)
    assert {name: tuple(x.shape) for name, x in outputs.items()} == {
        name: (2, channels[name], 6, 8) for name in names
    }
    samples = [sample(tasks, (23, 31)) for _ in range(2)]
    losses = head.loss(feats, samples, size=(23, 31))
    assert list(losses) == [f"loss_{name}" for name in names]
    sum(losses.values()).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name


def test_losses_and_their_weights():
    """Each task's loss is that of the papers, on logits of the size of the images."""
    head = make(MultiTaskHead).eval()
    feats, samples = maps([4, 8, 12, 16]), [sample(ALL, (23, 31)) for _ in range(2)]
    losses = head.loss(feats, samples, size=(23, 31))
    weights = dict(semseg=1, human_parts=2, sal=5, depth=1, normals=10, edge=50)
    assert {name: loss.loss_weight for name, loss in head.losses.items()} == weights
    assert head.losses["edge"].pos_weight == 0.8
    logits = head.predict(feats, (23, 31))
    labels = torch.stack([s.gt_depth_map.data for s in samples])
    expected = (logits["depth"] - labels)[labels != 255].abs().mean()
    torch.testing.assert_close(losses["loss_depth"], expected)
    labels = torch.stack([s.gt_sem_seg.data for s in samples]).squeeze(1)
    expected = F.cross_entropy(logits["semseg"], labels, ignore_index=255)
    torch.testing.assert_close(losses["loss_semseg"], expected)


def test_own_loss():
    cfg = dict(type="mmlocal.BalancedBCELoss", pos_weight=0.95, loss_weight=7.0)
    dice = dict(type="mmseg.DiceLoss", loss_weight=0.5)
    tasks = dict(edge=dict(loss=cfg), semseg=dict(num_classes=4, loss=dice))
    head = make(MultiTaskHead, tasks)
    assert head.losses["edge"].pos_weight == 0.95
    assert head.losses["edge"].loss_weight == 7
    losses = head.loss(maps([4, 8, 12, 16]), [sample(tasks, (9, 9))] * 2, size=(9, 9))
    assert 0 < losses["loss_semseg"] <= 0.5


def test_unlabelled_batch():
    """The loss is 0, and each parameter has a gradient, so no other process waits for it."""
    head = make(ITSAHead)
    samples = [sample(ALL, (9, 9)) for _ in range(2)]
    for made in samples:
        for name in made.keys():  # noqa: SIM118
            made.get(name).data.fill_(255)
    losses = head.loss(maps([4, 8, 12, 16]), samples, size=(9, 9))
    assert all(loss == 0 for loss in losses.values())
    sum(losses.values()).backward()
    for parameter in head.parameters():
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))


@pytest.mark.parametrize("kind", HEADS)
def test_an_encoder_per_task(kind):
    """With equal encoders and maps, nothing changes; the maps of a task reach this task."""
    shared, own = make(kind).eval(), make(kind, share_encoder=False).eval()
    weights = shared.state_dict()
    for name in ALL:
        for key in list(weights):
            if key.startswith("encoder.") and not key.startswith(
                tuple(f"encoder.{n}" for n in ALL)
            ):
                weights[key.replace("encoder.", f"encoder.{name}.")] = weights[key]
    own.load_state_dict({k: v for k, v in weights.items() if k in own.state_dict()})
    feats = maps([4, 8, 12, 16])
    with torch.no_grad():
        expected = shared(feats)
        found = own(dict.fromkeys(ALL, feats))
        torch.testing.assert_close(found, expected)
        changed = own(dict.fromkeys(ALL, feats) | dict(depth=maps([4, 8, 12, 16])))
    assert not torch.allclose(changed["depth"], expected["depth"])
    if kind is MultiTaskHead:
        torch.testing.assert_close(changed["edge"], expected["edge"])
    else:
        assert not torch.equal(changed["edge"], expected["edge"])


@pytest.mark.parametrize("theirs", HEADS)
@pytest.mark.parametrize("ours", HEADS)
def test_checkpoint_of_another_head(theirs, ours):
    weights = {f"decode_head.{key}": value for key, value in make(theirs).state_dict().items()}
    model = nn.Module()
    model.decode_head = make(ours)
    if theirs is ours:
        model.load_state_dict(weights)
        return
    message = f"{ours.__name__} cannot take the checkpoint, which is of another head"
    with pytest.raises(ValueError, match=message):
        model.load_state_dict(weights, strict=False)


def test_checkpoint_of_other_tasks():
    """Heads of other tasks load in part, but not where tasks attend to each other by maps."""
    weights = make(DeMTHead).state_dict()
    head = make(DeMTHead, dict(depth={}, edge={}))
    head.load_state_dict(weights, strict=False)
    assert torch.equal(head.conv_outs.depth.weight, weights["conv_outs.depth.weight"])
    weights = make(ITSAHead).state_dict()
    with pytest.raises(ValueError, match="of another head or of other tasks"):
        make(ITSAHead, dict(depth={}, edge={})).load_state_dict(weights, strict=False)
    without = {key: value for key, value in weights.items() if not key.startswith("interaction")}
    with pytest.raises(ValueError, match="of another head"):
        make(ITSAHead).load_state_dict(without, strict=False)


@pytest.mark.parametrize("names", [["depth", "semseg", "edge"], ["semseg", "depth", "normals"]])
def test_checkpoint_of_tasks_in_another_order(names):
    """ITSA's weights among tasks have places instead of names."""
    tasks = dict(semseg=dict(num_classes=5), depth={}, edge={})
    others = {name: tasks.get(name, {}) for name in names}
    weights = make(ITSAHead, tasks).state_dict()
    make(ITSAHead, tasks).load_state_dict(weights)
    message = rf"belong to semseg, depth, edge there, in this order, and to {', '.join(names)} here"
    with pytest.raises(ValueError, match=message):
        make(ITSAHead, others).load_state_dict(weights, strict=False)
    make(DeMTHead, others).load_state_dict(make(DeMTHead, tasks).state_dict(), strict=False)
    # A file with sorted names does not tell the order.
    make(ITSAHead, tasks).load_state_dict(dict(sorted(weights.items())))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(tasks=dict(colour={})), ValueError, "unknown task 'colour'; there are semseg"),
        (dict(tasks={}), ValueError, "tasks must name at least one of"),
        (dict(tasks=["depth"]), TypeError, "tasks must be a dict of tasks and their options"),
        (dict(tasks=dict(depth=None)), TypeError, "tasks.depth must be a dict"),
        (dict(tasks=dict(depth=dict(weight=2))), ValueError, "num_classes and loss, got 'weight'"),
        (dict(tasks=dict(semseg={})), ValueError, "tasks.semseg must have num_classes"),
        (dict(tasks=dict(semseg=dict(num_classes=1))), ValueError, "must be at least 2, got 1"),
        (dict(tasks=dict(sal=dict(num_classes=2))), ValueError, "tasks.sal must not have num_cl"),
        (dict(in_channels=[4, 8]), ValueError, "one entry for each map of in_index, got 2 and 3"),
        (dict(in_channels=[1, 2, 3]), ValueError, "must have a sum of at least 8"),
        (dict(in_index=[-1, 0, 1]), ValueError, "in_index must be at least 0"),
        (dict(channels=0), ValueError, "channels must be at least 1"),
        (dict(align_corners=0), TypeError, "align_corners must be True or False"),
        (dict(num_heads=3), ValueError, "num_heads must divide embed_dims"),
        (dict(interaction=dict(num_points=0)), ValueError, "num_points must be at least 1"),
        (dict(interaction=dict(num_levels=0)), ValueError, "num_levels must be at least 1"),
        (dict(legacy=True), TypeError, "legacy"),
    ],
)
def test_bad_arguments(change, error, message):
    arguments = dict(in_channels=[4, 8, 12], in_index=[0, 1, 2], tasks=dict(depth={}), channels=16)
    with pytest.raises(error, match=message):
        ITSAHead(**arguments | change)


def test_wrong_maps():
    head = MultiTaskHead([8, 12], dict(depth={}), channels=16, in_index=[1, 2])
    with pytest.raises(ValueError, match="in_index of the head names map 2, but the backbone ret"):
        head(maps([4, 8]))
    with pytest.raises(ValueError, match=r"channels of the maps that in_index names, \[8, 16\]"):
        head(maps([4, 8, 16]))


def test_wrong_labels():
    head, feats = make(MultiTaskHead), maps([4, 8, 12, 16])
    samples = [sample(ALL, (9, 9)), sample(ALL, (9, 9))]
    del samples[1].gt_saliency_map
    with pytest.raises(ValueError, match=r"task 'sal' has no labels .*gt_saliency_map"):
        head.loss(feats, samples, size=(9, 9))
    samples[1] = sample(ALL, (9, 9))
    samples[1].gt_sem_seg.data[0, 3, 4] = 5
    with pytest.raises(
        ValueError, match=r"from 0 to 4, or 255 .* got 5; check tasks\.semseg\.num_"
    ):
        head.loss(feats, samples, size=(9, 9))
    samples[1] = sample(ALL, (9, 9))
    samples[1].gt_edge_map.data[0, 3, 4] = -1
    with pytest.raises(ValueError, match=r"gt_edge_map, .* from 0 to 1, or 255 .* got -1$"):
        head.loss(feats, samples, size=(9, 9))
    samples[1] = sample(ALL, (9, 8))
    with pytest.raises(ValueError, match=r"gt_sem_seg, .* size of the images .* 9x9, got 9x8"):
        head.loss(feats, samples, size=(9, 9))
