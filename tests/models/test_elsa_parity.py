"""Every golden file in tests/data/elsa: values and gradients of the official code.

The official parameters, and their gradients, come in through ``mmlocal.checkpoints``.
"""

import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mmlocal.checkpoints.elsa import convert_elsa
from mmlocal.layers import ELSA, PatchMerging, TransformerBlock, WindowMSA
from mmlocal.models.backbones import ELSASwin
from mmlocal.ops import elsa_attention
from mmlocal.ops.elsa import BACKENDS

FILES = sorted(Path(__file__).parents[1].joinpath("data", "elsa").glob("*.npz"))
LAYER_LIMIT, MODEL_LIMIT = 1e-5, 1e-4
# Triton has tests of its own.
RUNNING = [b.name for b in BACKENDS if not b.not_supported_reasons(torch.empty(0))]


class Golden:
    """A golden file, and our errors against it."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as arrays:
            self.arrays = {k: torch.from_numpy(v) for k, v in arrays.items() if k != "config"}
            self.config = json.loads(str(arrays["config"]))
        self.name = path.stem
        self.init = self.config.get("init", self.config)
        self.ghost = {"lam": self.init.get("lam", 0), "gamma": self.init.get("gamma", 1)}
        self.errors: dict[str, float] = {}

    def group(self, prefix: str) -> dict[str, torch.Tensor]:
        return {k[len(prefix) :]: v for k, v in self.arrays.items() if k.startswith(prefix)}

    def compare(self, name: str, ours: torch.Tensor, official: torch.Tensor) -> None:
        assert name not in self.errors
        assert ours.shape == official.shape, name
        assert ours.dtype == official.dtype == torch.float32, name
        error = (ours.double() - official.double()).abs().max() / official.abs().max()
        self.errors[name] = error.item()

    def load(self, module: nn.Module) -> nn.Module:
        """Load the official parameters into our module, in eval mode."""
        state_dict = self.group("param.") | self.group("buffer.")
        module.load_state_dict(convert_elsa(state_dict, **self.ghost), strict=True)
        return module.eval()

    def compare_parameter_grads(self, module: nn.Module) -> None:
        """Convert gradients like parameters. A gradient that the file lacks becomes NaN."""
        stored = self.group("grad.")
        assert stored
        params = self.group("param.")
        assert set(stored) <= set(params)
        full = {k: stored.get(k, torch.full_like(v, torch.nan)) for k, v in params.items()}
        official = convert_elsa(full, **self.ghost)
        ours = dict(module.named_parameters())
        assert official.keys() == ours.keys()
        compared = {k: v for k, v in official.items() if not v.isnan().all()}
        split = sum(k.endswith("ghost_head") for k in stored) if all(self.ghost.values()) else 0
        assert len(compared) == len(stored) + split
        for key, grad in compared.items():
            self.compare(f"grad.{key}", ours[key].grad, grad)

    def check(self, limit: float) -> None:
        """Report the worst error, and compare all errors with the limit."""
        worst = max(self.errors, key=self.errors.get)
        print(
            f"parity {self.name}: {len(self.errors)} tensors, worst {self.errors[worst]:.1e} "
            f"({worst}), limit {limit:.0e}"
        )
        assert {k: v for k, v in self.errors.items() if not v <= limit} == {}


def check_op(golden: Golden) -> None:
    config, arrays = golden.config, golden.arrays
    heads, channels, height, width = arrays["features"].shape
    ghosts = [n for n in ("ghost_mul", "ghost_add") if n in arrays]
    inputs = {
        "value": arrays["features"].view(1, -1, height, width),
        "attn": arrays["h_attn"].view(1, -1, height, width),
        **{name: arrays[name].flatten(0, 1) for name in ghosts},
    }
    grads = {
        "value": "grad_features",
        "attn": "grad_h_attn",
        **{name: f"grad_{name}" for name in ghosts},
    }
    for backend in RUNNING:
        leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
        out = elsa_attention(
            **leaves,
            **{k: config[k] for k in ("kernel_size", "dilation", "lam", "gamma")},
            softmax=False,
            backend=backend,
        )
        out = out.view(heads, channels, height, width)
        (out * arrays["cotangent"]).sum().backward()
        golden.compare(f"output of {backend}", out, arrays["output"])
        for name, stored in grads.items():
            grad = leaves[name].grad.view(arrays[stored].shape)
            golden.compare(f"{stored} of {backend}", grad, arrays[stored])
    golden.check(LAYER_LIMIT)


def check_module(golden: Golden, module: nn.Module, limit: float = LAYER_LIMIT, **kwargs) -> None:
    """Compare modules with one input and one output. The official layout of tokens may be flat."""
    golden.load(module)
    x = golden.arrays["input"].clone().requires_grad_()
    out = module(x, **kwargs)
    (out * golden.arrays["cotangent"]).sum().backward()
    golden.compare("output", out, golden.arrays["output"])
    golden.compare("grad_input", x.grad, golden.arrays["grad_input"])
    golden.compare_parameter_grads(module)
    golden.check(limit)


def check_layer(golden: Golden) -> None:
    ours = {"dim": "embed_dims", "dim_qk": "qk_dims", "dim_v": "v_dims"}
    layer = ELSA(**{ours.get(k, k): v for k, v in golden.init.items()})
    assert layer.qk_dims == golden.config["dim_qk_effective"]
    assert layer.v_dims == golden.config["dim_v_effective"]
    assert layer.qk_scale == golden.config["scale_effective"]
    check_module(golden, layer)


def check_block(golden: Golden) -> None:
    init = dict(golden.init)
    dims, mlp_ratio = init.pop("dim"), init.pop("mlp_ratio")
    check_module(golden, TransformerBlock(dims, ELSA(dims, qk_scale=1, **init), mlp_ratio))


def check_window_attention(golden: Golden) -> None:
    init = dict(golden.init)
    layer = WindowMSA(init.pop("dim"), **init)
    check_module(golden, layer, mask=golden.arrays.get("mask"))


def check_patch_merging(golden: Golden) -> None:
    dims = golden.init["dim"]
    size = (golden.config["H"], golden.config["W"])
    flat = nn.Sequential(
        OrderedDict(map=nn.Unflatten(1, size), m=PatchMerging(dims, 2 * dims), out=nn.Flatten(1, 2))
    )
    golden.load(flat.m)
    x = golden.arrays["input"].clone().requires_grad_()
    out = flat(x)
    (out * golden.arrays["cotangent"]).sum().backward()
    golden.compare("output", out, golden.arrays["output"])
    golden.compare("grad_input", x.grad, golden.arrays["grad_input"])
    golden.compare_parameter_grads(flat.m)
    golden.check(LAYER_LIMIT)


def build_backbone(golden: Golden, **kwargs) -> ELSASwin:
    ours = {"embed_dim": "embed_dims", "elsa_kernel": "kernel_size", "ape": "use_abs_pos_embed"}
    init = {ours.get(k, k): v for k, v in golden.init.items()} | kwargs
    arch = {k: init.pop(k) for k in ("embed_dims", "depths", "num_heads", "group_width")}
    return ELSASwin(arch=arch, **init)


def compare_features(golden: Golden, hooked: dict[str, torch.Tensor]) -> None:
    features = golden.group("feat.")
    for name, official in features.items():
        ours = hooked[name]
        if ours.dim() == 4 and official.dim() == 4:
            ours = ours.permute(0, 3, 1, 2)
        elif ours.dim() == 4:
            ours = ours.flatten(1, 2)
        golden.compare(f"feat.{name}", ours, official)


def hook_features(backbone: ELSASwin, after_downsample: bool) -> dict[str, torch.Tensor]:
    hooked = {}
    backbone.patch_embed.register_forward_hook(
        lambda module, args, out: hooked.update({"patch_embed": out})
    )
    for i, stage in enumerate(backbone.stages):
        stage.register_forward_hook(
            lambda module, args, out, i=i: hooked.update({f"layers.{i}": out[after_downsample]})
        )
    return hooked


class Classifier(nn.Module):
    """The parts of the official classification model around the backbone."""

    def __init__(self, backbone: ELSASwin, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.fc = nn.Linear(backbone.num_features[-1], num_classes)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pooled = self.backbone(x)[-1].mean(dim=(2, 3))
        return self.fc(pooled), pooled

    def named_parameters(self, **kwargs):
        """Named as the converted state dict: the backbone has no prefix."""
        yield from self.backbone.named_parameters(**kwargs)
        yield from ((f"head.fc.{k}", v) for k, v in self.fc.named_parameters(**kwargs))

    def load_state_dict(self, state_dict: dict, strict: bool = True):
        head = {k: v for k, v in state_dict.items() if k.startswith("head.")}
        trunk = {k: v for k, v in state_dict.items() if k not in head}
        self.backbone.load_state_dict(trunk, strict=strict)
        self.fc.load_state_dict({k.removeprefix("head.fc."): v for k, v in head.items()})


def check_classification_model(golden: Golden) -> None:
    num_classes, img_size = golden.init.pop("num_classes"), golden.init.pop("img_size")
    last = len(golden.init["depths"]) - 1
    # The official window shrinks to the map when the model is built.
    side = img_size // golden.init["patch_size"] // 2**last
    backbone = build_backbone(
        golden,
        window_size=min(golden.init["window_size"], side),
        fit_window=True,
        out_indices=(last,),
        pretrain_img_size=img_size,
    )
    model = golden.load(Classifier(backbone, num_classes))
    hooked = hook_features(backbone, after_downsample=True)
    logits, hooked["pooled"] = model(golden.arrays["input"])
    (logits * golden.arrays["cotangent"]).sum().backward()
    golden.compare("output", logits, golden.arrays["output"])
    compare_features(golden, hooked)
    golden.compare_parameter_grads(model)
    golden.check(MODEL_LIMIT)


def check_dense_backbone(golden: Golden) -> None:
    out_indices = golden.init.get("out_indices", list(range(len(golden.init["depths"]))))
    backbone = golden.load(build_backbone(golden, out_indices=out_indices))
    hooked = hook_features(backbone, after_downsample=False)
    outs = dict(zip(out_indices, backbone(golden.arrays["input"]), strict=True))
    cotangents = golden.group("cotangent.")
    sum((outs[int(i)] * c).sum() for i, c in cotangents.items()).backward()
    official = golden.group("output.")
    assert {int(i) for i in official} == set(out_indices)
    for i, out in official.items():
        golden.compare(f"output.{i}", outs[int(i)], out)
    compare_features(golden, hooked)
    golden.compare_parameter_grads(backbone)
    golden.check(MODEL_LIMIT)


CHECKS = {
    "elsa_op": check_op,
    "elsa_layer": check_layer,
    "elsa_block": check_block,
    "window_attention": check_window_attention,
    "patch_merging_det": check_patch_merging,
    "cls_model": check_classification_model,
    "det_backbone": check_dense_backbone,
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_parity(path):
    """A file of a new kind has no check and fails."""
    golden = Golden(path)
    CHECKS[golden.config["kind"]](golden)


def test_the_golden_files_are_there():
    assert len(FILES) >= 29
    assert {Golden(path).config["kind"] for path in FILES} == CHECKS.keys()


def test_fit_window_matters_on_a_map_no_larger_than_the_window():
    """The two official models differ in the last stage. Our models differ there and only there."""
    torch.manual_seed(0)
    arch = dict(embed_dims=8, depths=(1, 2), num_heads=(2, 2), group_width=4)
    dense = ELSASwin(arch=arch, out_indices=(0, 1), fit_window=False).eval()
    fitted = ELSASwin(arch=arch, out_indices=(0, 1), fit_window=True).eval()
    fitted.load_state_dict(dense.state_dict())
    with torch.no_grad():
        image = torch.randn(1, 3, 56, 56)  # 7x7 in the last stage
        first, second = zip(dense(image), fitted(image), strict=True)
        assert torch.equal(*first)
        assert not torch.allclose(*second, atol=1e-3)
        image = torch.randn(1, 3, 64, 64)  # 8x8: larger than the window
        for a, b in zip(dense(image), fitted(image), strict=True):
            assert torch.equal(a, b)
