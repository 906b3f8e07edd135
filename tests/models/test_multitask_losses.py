"""The losses of dense tasks: values and gradients of the official code, and empty batches."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("mmseg")

from mmseg.models.losses import CrossEntropyLoss

from mmlocal.models.multitask.losses import (
    BalancedBCELoss,
    BalancedCELoss,
    DepthLoss,
    NormalLoss,
)

GOLDEN = Path(__file__).parents[1] / "data/mtl/mtl_losses.npz"
LOSSES = {
    "semseg_ce": CrossEntropyLoss(avg_non_ignore=True),
    "sal_balanced_ce": BalancedCELoss(),
    "normals_l1": NormalLoss(),
    "depth_l1": DepthLoss(),
    "edge_bce_w0.8": BalancedBCELoss(0.8),
    "edge_bce_w0.95": BalancedBCELoss(0.95),
}


def load(name: str) -> dict[str, Tensor]:
    with np.load(GOLDEN, allow_pickle=False) as arrays:
        keys = [key for key in arrays if key.startswith(f"{name}.")]
        found = {key.removeprefix(f"{name}."): torch.from_numpy(arrays[key]) for key in keys}
    if name not in ("normals_l1", "depth_l1"):
        found["label"] = found["label"].long().squeeze(1)
    return found


def backward(loss: nn.Module, pred: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    pred = pred.clone().requires_grad_()
    value = loss(pred, label, ignore_index=255)
    value.backward()
    return value.detach(), pred.grad


@pytest.mark.parametrize("name", LOSSES)
def test_golden(name):
    golden = load(name)
    value, grad = backward(LOSSES[name], golden["pred"], golden["label"])
    worst = [(value - golden["loss"]).abs(), (grad - golden["grad"]).abs().max()]
    print(f"{name}: worst error {worst[0]:.1e}, of the gradient {worst[1]:.1e}")
    torch.testing.assert_close(value, golden["loss"], rtol=1e-6, atol=0)
    torch.testing.assert_close(grad, golden["grad"], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", LOSSES)
def test_no_valid_pixel(name):
    golden = load(name)
    value, grad = backward(LOSSES[name], golden["pred"], torch.full_like(golden["label"], 255))
    assert value == 0
    assert torch.equal(grad, torch.zeros_like(grad))


@pytest.mark.parametrize("kind", [BalancedBCELoss, BalancedCELoss, DepthLoss, NormalLoss])
def test_weight(kind):
    name = next(name for name, loss in LOSSES.items() if type(loss) is kind)
    golden = load(name)
    once, grad = backward(LOSSES[name], golden["pred"], golden["label"])
    thrice, grad_thrice = backward(kind(loss_weight=3.0), golden["pred"], golden["label"])
    torch.testing.assert_close(thrice, 3 * once)
    torch.testing.assert_close(grad_thrice, 3 * grad)


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_only(label):
    """Only the frequent class occurs: its share is 1, and its weight 0."""
    pred = torch.randn(1, 2, 3, 4)
    value, grad = backward(BalancedCELoss(), pred, torch.full((1, 3, 4), label))
    assert value == 0
    assert torch.equal(grad, torch.zeros_like(grad))


def test_normal_of_length_zero():
    """The gradient of a vector of length 0 is as large as that of one of length 1."""
    label = torch.tensor([0.6, 0.0, -0.8]).view(1, 3, 1, 1)
    value, grad = backward(NormalLoss(), torch.zeros(1, 3, 1, 1), label)
    torch.testing.assert_close(value, torch.tensor(1.4))
    assert grad.abs().max() <= 1
    assert grad[0, 0] < 0 < grad[0, 2]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BalancedBCELoss(1.5), "pos_weight must be in"),
        (lambda: BalancedBCELoss("0.8"), "pos_weight must be a number"),
        (lambda: DepthLoss(float("nan")), "loss_weight must be finite"),
        (lambda: NormalLoss(None), "loss_weight must be a number"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()
