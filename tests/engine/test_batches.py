"""Batches of one image are refused exactly if PyTorch cannot train on them."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.registry import DefaultScope
from torch import nn
from torch.utils.data import DataLoader

from mmlocal.engine.batches import ONE_VALUE, CheckBatchHook, find_pooled_batch_norms
from mmlocal.errors import UsageError

BN = dict(type="BN")
HEAD = dict(in_channels=8, channels=8, num_classes=3, norm_cfg=BN)
LEVELS = HEAD | dict(in_channels=[8, 8, 8, 8], in_index=[0, 1, 2, 3])
# Heads of mmseg, and whether they normalise one pixel per image by batch.
HEADS = {
    "PSPHead": (HEAD, True),
    "UPerHead": (LEVELS, True),
    "ASPPHead": (HEAD, True),
    "DepthwiseSeparableASPPHead": (HEAD | dict(c1_in_channels=8, c1_channels=4), True),
    "FCNHead": (HEAD, False),
    "GCHead": (HEAD, False),
    "DAHead": (HEAD | dict(pam_channels=4), False),
    "SegformerHead": (LEVELS, False),
    "PSPHead without small scales": (HEAD | dict(pool_scales=(2, 3)), False),
    "PSPHead without norm": (HEAD | dict(norm_cfg=None), False),
    "PSPHead with GN": (HEAD | dict(norm_cfg=dict(type="GN", num_groups=2)), False),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_of_mmseg(name):
    pytest.importorskip("mmcv._ext", reason="mmseg needs the compiled ops of mmcv")
    decode_heads = pytest.importorskip("mmseg.models.decode_heads")
    settings, refused = HEADS[name]
    with DefaultScope.overwrite_default_scope("mmseg"):
        head = getattr(decode_heads, name.partition(" ")[0])(**settings).train()
    assert bool(list(find_pooled_batch_norms(head))) == refused
    maps = [torch.rand(1, 8, 16 // 2**i, 16 // 2**i) for i in range(4)]
    if settings["in_channels"] == 8 and "c1_channels" not in settings:
        maps = maps[:1]
    elif "c1_channels" in settings:
        head.in_index = 0
    if refused:
        with pytest.raises(ValueError, match=ONE_VALUE):
            head(maps)
    else:
        head(maps)


def test_layers_that_do_not_train_are_no_matter():
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    assert list(find_pooled_batch_norms(model)) == ["2"]
    model[2].eval()
    assert not list(find_pooled_batch_norms(model))


def check(number: int, batch_size: int, epochs: bool = True, max_iters: int = 99, **loader) -> None:
    """Train on a number of images."""
    sampler = (DefaultSampler if epochs else InfiniteSampler)(list(range(number)))
    images = torch.zeros(number, 1)
    runner = SimpleNamespace(
        model=nn.Sequential(nn.AdaptiveAvgPool2d((1, 1)), nn.BatchNorm2d(3)),
        train_dataloader=DataLoader(images, batch_size, sampler=sampler, **loader),
        train_loop=SimpleNamespace(max_iters=max_iters),
    )
    CheckBatchHook().before_train(runner)


def test_batch_of_one():
    for epochs in (True, False):
        with pytest.raises(UsageError, match=r"a training batch is one image.* 1 normalises .*=2"):
            check(4, 1, epochs)
        check(4, 2, epochs)


def test_last_batch_of_one():
    with pytest.raises(UsageError, match=r"the last batch of an epoch is one image.*drop_last"):
        check(5, 2)
    check(5, 2, drop_last=True)
    check(5, 2, epochs=False)
    check(5, 3)
