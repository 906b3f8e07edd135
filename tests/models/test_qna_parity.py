"""Every golden file in tests/data/qna: values and gradients of the official code.

The official parameters, and their gradients, come in through ``mmlocal.checkpoints``.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mmlocal.checkpoints.qna import convert_qna_vit
from mmlocal.checkpoints.qna_layers import convert_qna_layer, convert_window_attention
from mmlocal.layers import QnA, UpsampleQnA, WindowMSA
from mmlocal.models.backbones import QnAViT
from mmlocal.models.necks import QnAPooling
from mmlocal.ops.qna import BACKENDS

FILES = sorted(Path(__file__).parents[1].joinpath("data", "qna").glob("*.npz"))
LAYER_LIMIT, MODEL_LIMIT = 1e-5, 1e-4
# Against the float32 rounding of the files; the official epsilon and GELU differ by more.
DOUBLE_LIMIT = 1e-6
# Triton has tests of its own.
RUNNING = [b.name for b in BACKENDS if not b.not_supported_reasons(torch.empty(0))]
DTYPES = [torch.float32, torch.float64]


class Golden:
    """A golden file, and our errors against it."""

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        path = next(path for path in FILES if path.stem == name)
        with np.load(path) as arrays:
            self.arrays = {
                k: torch.from_numpy(v).to(torch.bool if v.dtype == bool else dtype)
                for k, v in arrays.items()
                if k != "config"
            }
            self.config = json.loads(str(arrays["config"]))
        self.name, self.dtype = name, dtype
        self.errors: dict[str, float] = {}

    def group(self, prefix: str) -> dict[str, torch.Tensor]:
        return {k[len(prefix) :]: v for k, v in self.arrays.items() if k.startswith(prefix)}

    def compare(self, name: str, ours: torch.Tensor, official: torch.Tensor) -> None:
        assert name not in self.errors
        assert ours.shape == official.shape, name
        assert ours.dtype == self.dtype, name
        scale = official.abs().max()
        if scale < 1e-12:  # what is left of a zero: a window of one token needs no scores
            scale = torch.ones_like(scale)
        self.errors[name] = ((ours - official).abs().max() / scale).item()

    def check(self, limit: float) -> None:
        """Report the worst error, and compare all errors with the limit."""
        if self.dtype == torch.float64:
            limit = DOUBLE_LIMIT
        worst = max(self.errors, key=self.errors.get)
        print(
            f"parity {self.name}: {len(self.errors)} tensors, worst {self.errors[worst]:.1e} "
            f"({worst}), limit {limit:.0e}"
        )
        assert {k: v for k, v in self.errors.items() if not v <= limit} == {}

    def check_layer(self, layer: nn.Module, convert, **kwargs) -> None:
        """Compare the output and all gradients of a module with one input."""
        layer.load_state_dict(convert(self.group("params/")), strict=True)
        layer = layer.to(self.dtype).eval()
        x = self.arrays["input"].clone().requires_grad_()
        out = layer(x, **kwargs)
        self.compare("output", out, self.arrays["output"])
        if "cotangent" in self.arrays:
            (out * self.arrays["cotangent"]).sum().backward()
            self.compare("grad_input", x.grad, self.arrays["grad_input"])
            grads = convert(self.group("grads/"))
            assert grads.keys() == dict(layer.named_parameters()).keys()
            for name, parameter in layer.named_parameters():
                self.compare(f"grad {name}", parameter.grad, grads[name])
        self.check(LAYER_LIMIT)


def names(*prefixes: str) -> list[str]:
    return [path.stem for path in FILES if path.stem.startswith(prefixes)]


def make_qna(config: dict, backend: str | None = None) -> nn.Module:
    assert config["pos_embedding_type"] == "relative_pos"
    kwargs = dict(
        embed_dims=config["in_features"],
        num_heads=config["heads"],
        kernel_size=config["kernel_size"],
        attn_dims=config["features"],
        out_dims=config["out_features"],
        qkv_bias=config["use_bias"],
        normalize_query=config["normalize_q"],
        detach_query_norm=config["qna_normalize_stop_grads"],
        scale_pos_embed=config["scale_rpe_bias"],
        backend=backend,
    )
    if "upsample" in config:
        return UpsampleQnA(scale_factor=config["upsample"], **kwargs)
    return QnA(
        num_queries=config["n_queries"],
        stride=config["stride"],
        padding=config["padding"],
        attn_scale=config["attn_scale"],
        **kwargs,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", RUNNING)
@pytest.mark.parametrize("name", names("qna_", "derived_uqna"))
def test_qna(name, backend, dtype):
    golden = Golden(name, dtype)
    config = golden.config
    zero_bias = {"Wk_b"} & golden.group("params/").keys()
    golden.check_layer(make_qna(config, backend), convert_qna_layer)
    for key in zero_bias:  # of the keys: ours has none, theirs has no effect
        assert golden.group("grads/")[key].abs().max() < 1e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", names("derived_attention"))
def test_attention_maps(name, dtype):
    golden = Golden(name, dtype)
    layer = make_qna(golden.config)
    layer.load_state_dict(convert_qna_layer(golden.group("params/")), strict=True)
    maps = layer.to(dtype).attention_maps(golden.arrays["input"])
    golden.compare("attn", maps.permute(0, 4, 5, 1, 2, 3), golden.arrays["attn"])
    golden.check(LAYER_LIMIT)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", names("mhsa_"))
def test_window_attention(name, dtype):
    golden = Golden(name, dtype)
    config = golden.config
    window = config["window_size"]
    window = (window, window) if isinstance(window, int) else tuple(window)
    layer = WindowMSA(
        config["in_features"],
        config["heads"],
        window,
        qkv_bias=config["use_bias"],
        proj_bias=config["use_bias"],
    )
    if config["output_features"]:  # ours is only ever as wide as its input
        layer.proj = nn.Linear(config["features"], config["output_features"])
    table = {}
    if not config["use_relative_pe"]:
        table = {"relative_position_bias_table": layer.relative_position_bias_table.data.zero_()}

    def convert(params):
        return convert_window_attention(params, config["heads"]) | table

    if table:
        layer.relative_position_bias_table.register_hook(torch.zeros_like)
    mask = {}
    if "mask" in golden.arrays:
        blocked = golden.arrays["mask"]
        mask["mask"] = torch.zeros(blocked.shape, dtype=dtype).masked_fill(blocked, -1e6)
    golden.check_layer(layer, convert, **mask)


def make_vit(config: dict) -> tuple[QnAViT, nn.Module | None]:
    kernel_sizes = set(config["qna_receptive_field"])
    assert len(kernel_sizes) == 1
    arch = dict(
        embed_dims=config["base_dim"],
        attn_depths=config["lsa_layers"],
        qna_depths=config["qna_layers"],
        attn_heads=config["lsa_heads"],
        qna_heads=config["qna_heads"],
        kernel_size=kernel_sizes.pop(),
    )
    backbone = QnAViT(
        arch,
        window_sizes=config["lsa_window"],
        num_queries=config["qna_num_queries"],
        normalize_query=config["qna_normalize_q"],
        stem=config["stem_type"],
        downsample_skip={"conv1x1": "conv", "avgpool": "avgpool"}[config["qna_down_skip"]],
        layer_scale_init_value=config["layer_scale"],
        out_indices=(config["n_stages"] - 1,),
    )
    dims, head = backbone.num_features[-1], config["classification_head_type"]
    neck = None
    if head != "gap":
        side = -(-config["height"] // 4 // 2 ** (config["n_stages"] - 1))
        neck = QnAPooling(dims, config["qna_heads"][-1], side, add_mean=head == "qnav2")
    return backbone, neck


class Classifier(nn.Module):
    def __init__(self, config: dict) -> None:
        super().__init__()
        backbone, neck = make_vit(config)
        self.__dict__["backbone"] = backbone  # its names have no prefix
        for name, child in backbone.named_children():
            self.add_module(name, child)
        self.neck = neck
        self.head = nn.ModuleDict(
            {"fc": nn.Linear(backbone.num_features[-1], config["num_classes"])}
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (x,) = self.backbone(x)
        x = x.mean(dim=(2, 3)) if self.neck is None else self.neck(x)[0]
        return self.head["fc"](x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", names("vit_"))
def test_vit(name, dtype):
    golden = Golden(name, dtype)
    official = golden.group("params/") | golden.group("batch_stats/")
    model = Classifier(golden.config)
    state_dict = convert_qna_vit(official)
    if golden.config["stem_type"] == "resnet":
        state_dict["patch_embed.norm.num_batches_tracked"] = torch.tensor(0)
    model.load_state_dict(state_dict, strict=True)
    model = model.to(dtype).eval()
    model.backbone.eval()

    features = {}
    backbone = model.backbone
    backbone.patch_embed.register_forward_hook(lambda *args: features.update(stem=args[-1]))
    for i, stage in enumerate(backbone.stages):

        def keep(module, inputs, output, i=i):
            features[f"stage{i + 1}_pre_down"] = output

        def keep_out(module, inputs, output, i=i):
            features[f"stage{i + 1}_out"] = output

        stage.blocks.register_forward_hook(keep)
        if stage.downsample is not None:
            stage.downsample.register_forward_hook(keep_out)
    last = getattr(backbone, f"norm{len(backbone.stages) - 1}")
    last.register_forward_hook(lambda *args: features.update(head_norm=args[-1]))

    x = golden.arrays["input"].permute(0, 3, 1, 2).clone().requires_grad_()
    logits = model(x)
    (logits * golden.arrays["cotangent"]).sum().backward()
    golden.compare("logits", logits, golden.arrays["logits"])
    golden.compare("grad_input", x.grad.permute(0, 2, 3, 1), golden.arrays["grad_input"])
    assert len(features) == 2 * len(backbone.stages) + 1
    for name, feature in features.items():
        golden.compare(name, feature, golden.arrays[f"feat/{name}"])

    # Official gradients are stored as their norms: ours have to be named as theirs.
    norms = golden.group("grad_l2/")
    assert norms.keys() == golden.group("params/").keys()
    ours = dict(model.named_parameters())
    for key, norm in norms.items():
        marked = {k: torch.full_like(v, float(k == key)) for k, v in official.items()}
        (name,) = [k for k, v in convert_qna_vit(marked).items() if v.any()]
        golden.compare(f"grad {name}", ours[name].grad.norm(), norm)
    golden.check(MODEL_LIMIT)


def test_every_file_is_used():
    used = names("qna_", "derived_", "mhsa_", "vit_", "resize_")
    assert used == [path.stem for path in FILES]
    assert len(FILES) == 35
