"""Refuse batches of one image if BatchNorm follows global pooling."""

from collections.abc import Iterator

from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn

from mmlocal.errors import UsageError
from mmlocal.registry import HOOKS

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
# The start of PyTorch's error when BatchNorm meets one value per channel.
ONE_VALUE = "Expected more than 1 value per channel"
_ADVICE = (
    "set train_dataloader.batch_size=2 or more, or train in several processes with norm_cfg of "
    "type SyncBN"
)


@HOOKS.register_module()
class CheckBatchHook(Hook):
    """Refuse to train on a batch of one image if the model applies BatchNorm to a pooled pixel.

    The pooling branches of PSPNet, UPerNet and DeepLab average an image to one pixel, and then
    apply BatchNorm. BatchNorm needs at least two values per channel, so a batch of one image fails.
    The last batch of an epoch can be such a batch.

    Raises:
        UsageError: a batch will hold one image. This is raised before the first step. The message
            names the layer and the settings to change.
    """

    def before_train(self, runner: Runner) -> None:
        """Check the model and the data loader, which are built by now."""
        number = _smallest_batch(runner)
        name = next(iter(find_pooled_batch_norms(runner.model)), None)
        if number == 1 and name:
            last = runner.train_dataloader.batch_size != 1
            which = "the last batch of an epoch" if last else "a training batch"
            advice = f"{_ADVICE}, or train_dataloader.drop_last=True" if last else _ADVICE
            raise UsageError(
                f"{which} is one image per process, and {name} normalises one pixel per image by "
                f"BatchNorm, which needs two: {advice}"
            )


def find_pooled_batch_norms(model: nn.Module) -> Iterator[str]:
    """Yield the names of the BatchNorm layers in training mode that follow a pooling to one pixel.

    The function finds a pooling and a layer in the same ``nn.Sequential``, as mmseg builds them.

    Args:
        model: model to search.
    """
    names = {module: name for name, module in model.named_modules()}
    for module in model.modules():
        if not isinstance(module, nn.Sequential):
            continue
        pooled = False
        for child in module:
            if isinstance(child, nn.AdaptiveAvgPool2d):
                pooled = child.output_size in (1, (1, 1))
            elif pooled:
                yield from (names[norm] for norm in child.modules() if _needs_two(norm))


def _needs_two(module: nn.Module) -> bool:
    if isinstance(module, nn.SyncBatchNorm) and get_world_size() > 1:
        return False
    return isinstance(module, _BATCH_NORMS) and module.training


def _smallest_batch(runner: Runner) -> int | None:
    """Number of images in the smallest training batch of a process; ``None`` if unknown."""
    loader = runner.train_dataloader
    size = loader.batch_size
    if size is None or size == 1 or loader.drop_last:  # size is None with a batch sampler
        return size
    if isinstance(loader.sampler, InfiniteSampler):
        return size
    loop = runner.train_loop
    if isinstance(loop, IterBasedTrainLoop) and loop.max_iters < len(loader):
        return size
    return len(loader.sampler) % size or size
