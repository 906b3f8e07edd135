"""Token labelling: mixed tokens, targets from label maps, the loss and the prediction."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("mmpretrain")

from mmpretrain.structures import DataSample

from mmlocal.checkpoints.volo import convert_volo
from mmlocal.models.backbones import VOLO
from mmlocal.models.classifiers import TokenLabelClassifier
from mmlocal.models.classifiers.token_label import box_of_share
from mmlocal.models.heads import TokenLabelHead
from mmlocal.models.heads.token_targets import pool_label_maps

GOLDEN = Path(__file__).parents[1] / "data/volo/volo_net.npz"
CLASSES = 9
SMOOTHING = 0.1


def samples(labels: list[int], **fields: Tensor) -> list[DataSample]:
    made = [DataSample().set_gt_label(label) for label in labels]
    for name, values in fields.items():
        for sample, value in zip(made, values, strict=True):
            sample.set_field(value, name)
    return made


def label_maps(batch: int, size: int = 5, top: int = 3) -> Tensor:
    """Maps of ``top`` different classes in each place."""
    generator = torch.Generator().manual_seed(1)
    shape = (batch, CLASSES, size, size)
    classes = torch.rand(shape, generator=generator).argsort(1)[:, :top]
    logits = torch.randn(classes.shape, generator=generator)
    return torch.stack([4 * logits, classes.float()], 1).half()


BOXES = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.1, 0.35, 0.52, 0.9], [0.3, 0.0, 0.35, 0.08]])

# ------------------------------------------------------------------------------------ rectangles


@pytest.mark.parametrize("size", [(14, 14), (5, 8), (1, 1)])
def test_rectangle(size):
    """Against the official arithmetic, written with NumPy."""
    height, width = size
    for share in (0.0, 0.07, 0.5, 0.51, 0.98, 1.0):
        cut_h, cut_w = (int(side * np.sqrt(1.0 - share)) for side in size)
        for row in range(height):
            for column in range(width):
                expected = (
                    np.clip(row - cut_h // 2, 0, height),
                    np.clip(column - cut_w // 2, 0, width),
                    np.clip(row + cut_h // 2, 0, height),
                    np.clip(column + cut_w // 2, 0, width),
                )
                assert box_of_share(size, share, (row, column)) == expected


class Backbone(nn.Module):
    """Counts how it is called, and returns fixed features."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6))
        self.boxes: list = []

    def grid_size(self, height: int, width: int) -> tuple[int, int]:
        return -(-height // 16), -(-width // 16)

    def forward(self, x: Tensor, mix_box: tuple | None = None) -> tuple:
        self.boxes.append(mix_box)
        batch = len(x)
        grid = self.grid_size(*x.shape[2:])
        featmap = torch.randn(batch, 6, *grid, generator=torch.Generator().manual_seed(0))
        return ((featmap, self.weight[:batch]),)


def classifier(**more) -> TokenLabelClassifier:
    head = TokenLabelHead(num_classes=CLASSES, in_channels=6)
    return TokenLabelClassifier(Backbone(), head, data_preprocessor=nn.Identity(), **more)


def test_drawn_rectangles():
    """Each one comes from an even share and centre; the same seed gives the same ones."""
    model = classifier()
    torch.manual_seed(0)
    boxes = [model.draw_box(224, 224 - 32) for _ in range(2000)]
    torch.manual_seed(0)
    assert boxes[:9] == [model.draw_box(224, 224 - 32) for _ in range(9)]
    torch.manual_seed(1)
    assert boxes[:9] != [model.draw_box(224, 224 - 32) for _ in range(9)]
    areas, expected = [], []
    for top, left, bottom, right in boxes:
        assert 0 <= top <= bottom <= 14
        assert 0 <= left <= right <= 12
        areas.append((bottom - top) * (right - left))
    for share in (np.arange(100) + 0.5) / 100:
        for row in range(14):
            for column in range(12):
                top, left, bottom, right = box_of_share((14, 12), share, (row, column))
                expected.append((bottom - top) * (right - left))
    print(f"mean area {np.mean(areas):.2f}, expected {np.mean(expected):.2f}")
    assert np.mean(areas) == pytest.approx(np.mean(expected), abs=2.5)


def test_when_tokens_are_mixed():
    images, labels = torch.rand(2, 3, 64, 48), samples([1, 2])
    model = classifier().train()
    model.loss(images, labels)
    model.eval().loss(images, labels)
    model(images)
    (box, *others) = model.backbone.boxes
    assert len(box) == 4
    assert others == [None, None]
    model = classifier(mix_token=False).train()
    model.loss(images, labels)
    assert model.backbone.boxes == [None]


# --------------------------------------------------------------------------------------- targets


def pooled(logits: np.ndarray, box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """RoIAlign of torchvision by loops: the mean of bilinear samples in each bin."""
    _, height, width = logits.shape
    left, top = box[0] * width - 0.5, box[1] * height - 0.5
    sides = max(box[3] * height - 0.5 - top, 1), max(box[2] * width - 0.5 - left, 1)
    out = np.zeros((len(logits), *size))
    counts = [math.ceil(side / bins) for side, bins in zip(sides, size, strict=True)]
    for i in range(size[0]):
        for j in range(size[1]):
            for a in range(counts[0]):
                for b in range(counts[1]):
                    y = top + sides[0] / size[0] * (i + (a + 0.5) / counts[0])
                    x = left + sides[1] / size[1] * (j + (b + 0.5) / counts[1])
                    y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
                    y0, x0 = int(y), int(x)
                    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
                    dy, dx = y - y0, x - x0
                    out[:, i, j] += (
                        (1 - dy) * (1 - dx) * logits[:, y0, x0]
                        + (1 - dy) * dx * logits[:, y0, x1]
                        + dy * (1 - dx) * logits[:, y1, x0]
                        + dy * dx * logits[:, y1, x1]
                    )
    return out / (counts[0] * counts[1])


def targets_by_loops(maps: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    targets = []
    for label_map, box in zip(maps.double().numpy(), boxes.numpy(), strict=True):
        logits = np.zeros((CLASSES, *label_map.shape[2:]))
        for place in np.ndindex(label_map.shape[1:]):
            logits[int(label_map[1][place]), place[1], place[2]] = label_map[0][place]
        scores = np.exp(pooled(logits, box.astype(np.float64), size))
        scores /= scores.sum(0)
        off = SMOOTHING / CLASSES
        targets.append(scores * (1 - SMOOTHING + off) + off)
    return torch.from_numpy(np.stack(targets))


@pytest.mark.parametrize("size", [(1, 1), (4, 3), (14, 14)])
def test_pooled_maps(size):
    maps = label_maps(3)
    ours = pool_label_maps(maps, BOXES, CLASSES, size, SMOOTHING)
    torch.testing.assert_close(
        ours.double(), targets_by_loops(maps, BOXES, size), rtol=0, atol=1e-5
    )
    # As in the official code, more than 1.
    sums = ours.sum(1)
    torch.testing.assert_close(sums, torch.full_like(sums, 1 + SMOOTHING / CLASSES))


def test_whole_image_in_its_own_size():
    maps = label_maps(2)
    ours = pool_label_maps(maps, BOXES[:1].expand(2, 4), CLASSES, (5, 5))
    logits = torch.zeros(2, CLASSES, 5, 5).scatter_(1, maps[:, 1].long(), maps[:, 0].float())
    torch.testing.assert_close(ours, logits.softmax(1))


def test_exchanged_axes():
    """The official order hands (top, left, bottom, right) over as (x1, y1, x2, y2)."""
    maps = label_maps(3)
    ours = pool_label_maps(maps, BOXES, CLASSES, (4, 4), swap_axes=True)
    theirs = pool_label_maps(maps, BOXES[:, [1, 0, 3, 2]], CLASSES, (4, 4))
    assert torch.equal(ours, theirs)
    plain = pool_label_maps(maps, BOXES, CLASSES, (4, 4))
    assert torch.equal(ours[0], plain[0])  # a square
    assert not torch.allclose(ours[1], plain[1], atol=0.05)


# ------------------------------------------------------------------------------------------ loss


def soft_cross_entropy(scores: Tensor, target: Tensor) -> Tensor:
    return -(target * scores.log_softmax(-1)).sum(-1).mean()


def one_hot(labels: list[int]) -> Tensor:
    """Smoothed as timm does: two values."""
    off = SMOOTHING / CLASSES
    target = torch.full((len(labels), CLASSES), off, dtype=torch.float64)
    for row, label in enumerate(labels):
        target[row, label] = 1 - SMOOTHING + off
    return target


def expected_loss(
    cls_score: Tensor,
    aux_score: Tensor,
    labels: list[int],
    box: tuple | None = None,
    maps: Tensor | None = None,
    use_ground_truth: bool = False,
) -> tuple[Tensor, Tensor]:
    """The loss in float64; ``aux_score`` is ``(B, H, W, classes)``, and not yet un-mixed."""
    batch, height, width, _ = aux_score.shape
    truth = one_hot(labels)
    if maps is None:
        target, aux_target = truth, truth[:, None].expand(-1, height * width, -1)
    else:
        target = targets_by_loops(maps, BOXES[:batch], (1, 1)).flatten(1)
        aux_target = targets_by_loops(maps, BOXES[:batch], (height, width))
        aux_target = aux_target.flatten(2).transpose(1, 2)
    if use_ground_truth:
        for row, label in enumerate(labels):
            ratio = 0.5 if target[row].argmax() == label else 0.9
            target[row] = ratio * target[row] + (1 - ratio) * truth[row]
    if box is not None:
        unmixed = aux_score.clone()
        for row in range(box[0], box[2]):
            for column in range(box[1], box[3]):
                unmixed[:, row, column] = aux_score[:, row, column].flip(0)
        aux_score = unmixed
        share = 1 - (box[2] - box[0]) * (box[3] - box[1]) / (height * width)
        target = share * target + (1 - share) * target.flip(0)
    return (
        soft_cross_entropy(cls_score, target),
        0.5 * soft_cross_entropy(aux_score.flatten(1, 2), aux_target),
    )


@pytest.mark.parametrize("use_ground_truth", [False, True])
@pytest.mark.parametrize("with_maps", [False, True])
@pytest.mark.parametrize("box", [None, (1, 0, 3, 2), (0, 0, 4, 3), (2, 2, 2, 2)])
def test_loss(box, with_maps, use_ground_truth):
    torch.manual_seed(0)
    head = TokenLabelHead(CLASSES, 6, use_ground_truth=use_ground_truth).double()
    featmap, cls_token = torch.randn(3, 6, 4, 3).double(), torch.randn(3, 6).double()
    maps = label_maps(3) if with_maps else None
    fields = dict(token_labels=maps, token_box=BOXES) if with_maps else {}
    labels = [4, 0, 8]
    if with_maps:  # one label that agrees with its map, and others that do not
        best = targets_by_loops(maps, BOXES, (1, 1)).flatten(1).argmax(1).tolist()
        labels = [best[0], (best[1] + 1) % CLASSES, (best[2] + 4) % CLASSES]
    found = head.loss(((featmap, cls_token),), samples(labels, **fields), mix_box=box)
    expected = expected_loss(
        *(head.fc(cls_token), head.aux_fc(featmap.permute(0, 2, 3, 1)), labels, box, maps),
        use_ground_truth=use_ground_truth and with_maps,
    )
    assert found.keys() == {"loss_cls", "loss_aux"}
    torch.testing.assert_close(tuple(found.values()), expected, rtol=1e-6, atol=0)
    sum(found.values()).backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_weights_of_the_loss():
    feats = ((torch.randn(2, 6, 4, 3), torch.randn(2, 6)),)
    head = TokenLabelHead(CLASSES, 6)
    plain = head.loss(feats, samples([1, 2]))
    head.cls_weight, head.dense_weight = 0.25, 2.0
    other = head.loss(feats, samples([1, 2]))
    torch.testing.assert_close(other["loss_cls"], 0.25 * plain["loss_cls"])
    torch.testing.assert_close(other["loss_aux"], 4 * plain["loss_aux"])


def test_scores_in_place_of_labels():
    """A batch augmentation that only erases leaves one-hot scores."""
    feats = ((torch.randn(2, 6, 4, 3), torch.randn(2, 6)),)
    head = TokenLabelHead(CLASSES, 6)
    scored = samples([1, 2])
    for sample in scored:
        sample.set_gt_score(torch.eye(CLASSES)[sample.gt_label.item()])
    assert head.loss(feats, scored) == head.loss(feats, samples([1, 2]))


# ------------------------------------------------------------------------------- whole classifier


def test_golden_network(monkeypatch):
    """Logits of the official code: the prediction, and the loss with a given rectangle."""
    with np.load(GOLDEN) as arrays:
        meta = json.loads(str(arrays["meta"]))
        golden = {k: torch.from_numpy(v) for k, v in arrays.items() if k != "meta"}
    arch = dict(
        embed_dims=meta["embed_dims"][0],
        depths=meta["layers"],
        num_heads=meta["num_heads"],
        mlp_ratio=meta["mlp_ratios"][0],
        stem_dims=meta["stem_hidden_dim"],
    )
    backbone = VOLO(
        arch, pretrain_img_size=64, with_cls_token=True, drop_path_rate=0.0, out_indices=(3,)
    )
    head = TokenLabelHead(CLASSES, meta["embed_dims"][-1])
    model = TokenLabelClassifier(backbone, head, data_preprocessor=nn.Identity())
    official = {k.removeprefix("param."): v for k, v in golden.items() if k.startswith("param.")}
    weights = {
        name if name.startswith("head.") else f"backbone.{name}": value
        for name, value in convert_volo(official).items()
    }
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    model.double()
    images = golden["input"].double()

    model.train()
    box = tuple(golden["train_mix.bbox"].tolist())
    monkeypatch.setattr(model, "draw_box", lambda height, width: box)
    losses = model(images, samples([2, 5]), mode="loss")
    # The stored logits of tokens are un-mixed, so we mix them for the restatement.
    aux_score = golden["train_mix.x_aux"].double().unflatten(1, (4, 4))
    mixed = aux_score.clone()
    rows, columns = slice(box[0], box[2]), slice(box[1], box[3])
    mixed[:, rows, columns] = aux_score[:, rows, columns].flip(0)
    expected = expected_loss(golden["train_mix.x_cls"].double(), mixed, [2, 5], box)
    torch.testing.assert_close(tuple(losses.values()), expected, rtol=1e-6, atol=0)

    backbone.load_state_dict(  # training has moved the running statistics
        {k.removeprefix("backbone."): v for k, v in weights.items() if "running" in k}, strict=False
    )
    model.eval()
    with torch.no_grad():
        scores = model(images)
        first, second = model(images, samples([2, 5]), mode="predict")
    torch.testing.assert_close(scores, golden["eval.output"].double(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(first.pred_score, scores[0].softmax(0))
    assert first.pred_label.item() == scores[0].argmax().item()
    assert second.gt_label.item() == 5


def test_compiled():
    """In one graph; the prediction is the same."""
    arch = dict(embed_dims=16, depths=(1, 1, 1, 1), num_heads=(2, 4, 4, 4), stem_dims=8)
    backbone = VOLO(arch, pretrain_img_size=48, with_cls_token=True, out_indices=(3,))
    head = TokenLabelHead(CLASSES, 32)
    model = TokenLabelClassifier(backbone, head, data_preprocessor=nn.Identity()).eval()
    images = torch.rand(2, 3, 48, 40)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), model(images))


# ------------------------------------------------------------------------------------- bad input

FEATS = ((torch.zeros(2, 6, 4, 3), torch.zeros(2, 6)),)


def test_map_of_only_some_images():
    mixed = samples([1, 2], token_labels=label_maps(2), token_box=BOXES[:2])
    del mixed[0].token_labels
    with pytest.raises(ValueError, match=r"all samples of a batch or none .* got 1 of 2"):
        TokenLabelHead(CLASSES, 6).loss(FEATS, mixed)


def test_maps_of_different_shapes():
    maps = [label_maps(1)[0], label_maps(1, size=6)[0]]
    with pytest.raises(ValueError, match=r"one shape, got \[\(2, 3, 5, 5\), \(2, 3, 6, 6\)\]"):
        TokenLabelHead(CLASSES, 6).loss(
            FEATS, samples([1, 2], token_labels=maps, token_box=BOXES[:2])
        )


@pytest.mark.parametrize("wrong", [-1, 9, 700])
def test_map_of_other_classes(wrong):
    maps = label_maps(2)
    maps[1, 1, 0, 2, 2] = wrong
    with pytest.raises(ValueError, match=f"classes from 0 to num_classes - 1 = 8, got .*{wrong}"):
        TokenLabelHead(CLASSES, 6).loss(
            FEATS, samples([1, 2], token_labels=maps, token_box=BOXES[:2])
        )


@pytest.mark.parametrize("feats", [(torch.zeros(2, 6, 4, 3),), ((torch.zeros(2, 6),),)])
def test_no_class_token(feats):
    with pytest.raises(ValueError, match="build the backbone with with_cls_token=True"):
        TokenLabelHead(CLASSES, 6)(feats)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_classes=0), "num_classes must be at least 1, got 0"),
        (dict(cls_weight=-1.0), "must not be negative, nor both be 0, got -1.0 and 0.5"),
        (dict(cls_weight=0, dense_weight=0), "nor both be 0, got 0 and 0"),
        (dict(label_smooth_val=1.0), "label_smooth_val must be"),
    ],
)
def test_bad_numbers(options, message):
    with pytest.raises(ValueError, match=message):
        TokenLabelHead(**{"num_classes": CLASSES, "in_channels": 6, **options})


def test_backbone_that_cannot_mix():
    head = TokenLabelHead(CLASSES, 6)
    with pytest.raises(TypeError, match=r"as mmlocal\.VOLO, got Identity; set mix_token=False"):
        TokenLabelClassifier(nn.Identity(), head, data_preprocessor=nn.Identity())
    TokenLabelClassifier(nn.Identity(), head, mix_token=False, data_preprocessor=nn.Identity())
    with pytest.raises(TypeError, match="mix_token must be"):
        TokenLabelClassifier(nn.Identity(), head, mix_token="yes", data_preprocessor=nn.Identity())
