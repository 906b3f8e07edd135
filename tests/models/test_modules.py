"""The modules in the backbones support hooks, pruning, norms of weights and wrappers."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from mmlocal.layers import PatchEmbed, UpsampleQnA
from mmlocal.layers.learned_queries import QueryScores
from mmlocal.layers.projected_attention import ProjectedAttention
from mmlocal.models.autoencoders import AutoEncoder
from mmlocal.models.backbones import VOLO, ELSASwin, GhostDeiT, QnAViT

ELSA_ARCH = dict(embed_dims=12, depths=(1, 2), num_heads=(3, 3), group_width=4)
QNA_ARCH = dict(embed_dims=8, attn_depths=(0, 1), qna_depths=(1, 1), attn_heads=(1, 2),
                qna_heads=(2, 4))  # fmt: skip
DEIT_ARCH = dict(embed_dims=12, num_layers=2, num_heads=3)
VOLO_ARCH = dict(embed_dims=12, depths=(1, 1), num_heads=(3, 4), stem_dims=8)
# Those that have a weight matrix, or several.
KINDS = (nn.Linear, nn.Conv2d, QueryScores, ProjectedAttention)


def elsa(**kwargs) -> nn.Module:
    settings = dict(kernel_size=3, window_size=3, lam=1, drop_path_rate=0.0, out_indices=(0, 1))
    return ELSASwin(ELSA_ARCH, **settings, **kwargs)


def elsa_with_dropout() -> nn.Module:
    return elsa(drop_rate=0.1, attn_drop_rate=0.1)


def qna(**kwargs) -> nn.Module:
    settings = dict(window_sizes=(3, 3), drop_path_rate=0.0, out_indices=(0, 1))
    return QnAViT(QNA_ARCH, **settings, **kwargs)


def qna_with_resnet_stem() -> nn.Module:
    return qna(stem="resnet", downsample_skip="avgpool")


def deit() -> nn.Module:
    return GhostDeiT(DEIT_ARCH, patch_size=4, pretrain_img_size=16, drop_path_rate=0.0)


def volo() -> nn.Module:
    settings = dict(pretrain_img_size=32, drop_path_rate=0.0, out_indices=(0, 1))
    return VOLO(VOLO_ARCH, with_cls_token=True, **settings)


def upsample() -> nn.Module:
    layer = UpsampleQnA(12, 3, qkv_bias=True)
    return nn.Sequential(PatchEmbed(3, 12), layer)


def auto_encoder() -> nn.Module:
    return AutoEncoder(num_layers=2, embed_dims=8, num_heads=2)


backbones = pytest.mark.parametrize("build", [elsa, qna_with_resnet_stem, deit, volo])
IMAGE = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))


def make(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return build()


def outputs(model: nn.Module) -> tuple[Tensor, ...]:
    return flat(model(IMAGE))


def flat(outs: Tensor | tuple) -> tuple[Tensor, ...]:
    return (outs,) if isinstance(outs, Tensor) else tuple(x for out in outs for x in flat(out))


def train(model: nn.Module, steps: int = 2) -> None:
    """Fails if a step needs the graph of the step before, or a parameter gets no gradient."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = sum((out * torch.linspace(-1, 2, out.numel()).view(out.shape).sin()).sum()
                   for out in outputs(model))  # fmt: skip
        loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
        optimizer.step()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "build", [elsa, elsa_with_dropout, qna, qna_with_resnet_stem, deit, volo, auto_encoder]
)
def test_every_child_is_called(build, training):
    model = make(build).train(training)
    called = set()
    names = set()
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) and name != "data_preprocessor":
            names.add(name)
            module.register_forward_hook(lambda *args, name=name: called.add(name))
    outputs(model)
    assert called == names


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("build", [elsa, qna, qna_with_resnet_stem, deit, volo, auto_encoder])
def test_what_a_hook_stores_is_not_overwritten(build, training):
    """Inputs and outputs that a hook stores stay the same, with and without gradients."""
    model = make(build).train(training)
    stored = []

    def hook(module, args, output):
        for x in (*args, output):
            if isinstance(x, Tensor):
                stored.append((type(module).__name__, x, x.detach().clone()))

    for module in model.modules():
        module.register_forward_hook(hook)
    with torch.set_grad_enabled(training):
        outputs(model)
    assert len(stored) > 20
    for name, x, copied in stored:
        assert torch.equal(x, copied), name


@backbones
def test_backward_hooks(build):
    model, seen = make(build), set()
    modules = {n: m for n, m in model.named_modules() if isinstance(m, KINDS)}
    for name, module in modules.items():
        module.register_full_backward_hook(lambda module, *grads, name=name: seen.add(name))
    sum(out.sum() for out in outputs(model)).backward()
    assert seen == set(modules)


@pytest.mark.parametrize("with_cp", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("build", [elsa, qna, deit, volo])
def test_pruned_layers_train(build, with_cp):
    model = make(build)
    for module in list(model.modules()):
        if isinstance(module, KINDS):
            prune.l1_unstructured(module, "weight", amount=0.5)
        if hasattr(module, "with_cp"):
            module.with_cp = with_cp
    pruned = [module for module in model.modules() if hasattr(module, "weight_mask")]
    assert any(isinstance(module, KINDS[2:]) for module in pruned) or build in (deit, volo)
    train(model, steps=3)
    before = outputs(model)
    for module in pruned:
        mask = module.weight_mask == 0
        assert mask.any()
        assert not module.weight_orig.grad[mask].any()
        module.weight_orig.data[mask] += 100  # what is pruned has no say
    for ours, expected in zip(outputs(model), before, strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize(
    "norm",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        nn.utils.spectral_norm,
        pytest.param(
            nn.utils.weight_norm, marks=pytest.mark.filterwarnings("ignore::FutureWarning")
        ),
    ],
    ids=["weight", "spectral", "old-spectral", "old-weight"],
)
@pytest.mark.parametrize("build", [elsa, qna_with_resnet_stem, deit, volo, upsample])
def test_norms_of_weights(build, norm):
    model = make(build)
    expected = outputs(model)
    for module in list(model.modules()):
        if isinstance(module, KINDS):
            norm(module)
    if "weight_norm" in norm.__name__:  # spectral norms change what is computed
        for ours, theirs in zip(outputs(model), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    train(model)


class LoRA(nn.Module):
    """A wrapper as libraries have it. It holds the layer but has none of its attributes."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.down, self.up = copy.deepcopy(layer), copy.deepcopy(layer)
        self.factor = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.factor * (self.down(x) - 2 * self.up(x))


@backbones
def test_wrapped_layers(build):
    model = make(build)
    expected = outputs(model)
    wrapped = []
    for name, module in list(model.named_modules()):
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, LoRA(module))
            wrapped.append(name)
    assert len(wrapped) > 8
    for ours, theirs in zip(outputs(model), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    train(model)
    factors = [module.factor for module in model.modules() if isinstance(module, LoRA)]
    assert len(factors) == len(wrapped)
    assert all(factor != 0 for factor in factors)


@pytest.mark.parametrize("build", [elsa, qna, deit, volo])
def test_symbolic_tracing_is_refused_in_words(build):
    """Both errors name ``torch.export``, which the tests of each backbone cover."""
    message = r"proxy of torch.fx.symbolic_trace.* use torch\.export\.export or torch\.compile"
    with pytest.raises(TypeError, match=message):
        torch.fx.symbolic_trace(make(build))
    message = r"torch\.jit\.script cannot compile \w+; use torch\.export\.export or torch\.compile"
    for model in (make(build), nn.Sequential(make(build))):
        with pytest.raises(RuntimeError, match=message):
            torch.jit.script(model)
