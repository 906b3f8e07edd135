"""Every golden file of VOLO's networks: values and gradients of the official code.

The official parameters, and their gradients, come in through ``mmlocal.checkpoints``. Our side runs
in float64 and the files hold float32, so an error is the rounding of the files.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmlocal.checkpoints import convert_checkpoint
from mmlocal.checkpoints.volo import convert_volo
from mmlocal.layers import ClassAttentionBlock, OutlookAttention, TransformerBlock, exchange_box
from mmlocal.models.backbones import VOLO
from mmlocal.registry import MODELS

DATA = Path(__file__).parents[1] / "data" / "volo"
LIMIT = 1e-6


class Golden:
    """A golden file, and our errors against it."""

    def __init__(self, name: str) -> None:
        with np.load(DATA / f"{name}.npz") as arrays:
            self.meta = json.loads(str(arrays["meta"]))
            self.arrays = {k: torch.from_numpy(v) for k, v in arrays.items() if k != "meta"}
        self.name = name
        self.errors: dict[str, float] = {}

    def double(self, name: str) -> Tensor:
        return self.arrays[name].double()

    def group(self, prefix: str) -> dict[str, Tensor]:
        return {k[len(prefix) :]: v for k, v in self.arrays.items() if k.startswith(prefix)}

    def compare(self, name: str, ours: Tensor, official: Tensor) -> None:
        assert name not in self.errors
        assert ours.shape == official.shape, name
        error = (ours - official.double()).abs().max() / official.abs().max()
        self.errors[name] = error.item()

    def compare_grads(self, module: nn.Module, official: dict[str, Tensor]) -> None:
        ours = {name: parameter.grad for name, parameter in module.named_parameters()}
        assert ours.keys() == official.keys()
        for name, grad in official.items():
            self.compare(f"grad.{name}", ours[name], grad)

    def check(self) -> None:
        worst = max(self.errors, key=self.errors.get)
        print(
            f"parity {self.name}: {len(self.errors)} tensors, worst {self.errors[worst]:.1e} "
            f"({worst}), limit {LIMIT:.0e}"
        )
        assert {k: v for k, v in self.errors.items() if not v <= LIMIT} == {}


class ClassBlock(nn.Module):
    """The official interface: one tensor of all tokens, in and out."""

    def __init__(self, *args) -> None:
        super().__init__()
        self.block = ClassAttentionBlock(*args)

    def forward(self, tokens: Tensor) -> Tensor:
        cls_token, x = tokens[:, :1], tokens[:, 1:]
        return torch.cat((self.block(cls_token, x), x), dim=1)


def check_block(golden: Golden, block: nn.Module, whole: nn.Module) -> None:
    block.load_state_dict(golden.group("param."), strict=True)
    whole.double().eval()
    x = golden.double("input").requires_grad_()
    out = whole(x)
    (out * golden.double("grad_output")).sum().backward()
    golden.compare("output", out, golden.arrays["eval.output"])
    golden.compare("grad_input", x.grad, golden.arrays["eval.grad_input"])
    golden.compare_grads(block, golden.group("eval.grad."))
    golden.check()


def test_outlooker_block():
    golden = Golden("volo_outlooker_block")
    dims, heads, ratio = (golden.meta[k] for k in ("dim", "num_heads", "mlp_ratio"))
    windows = {k: golden.meta[k] for k in ("kernel_size", "padding", "stride")}
    block = TransformerBlock(dims, OutlookAttention(dims, heads, **windows), ratio)
    check_block(golden, block, block)


def test_class_block():
    golden = Golden("volo_class_block")
    whole = ClassBlock(*(golden.meta[k] for k in ("dim", "num_heads", "mlp_ratio")))
    check_block(golden, whole.block, whole)


class Classifier(nn.Module):
    """The backbone with the two heads of the official model. It names all parts as converted."""

    def __init__(self, golden: Golden) -> None:
        super().__init__()
        meta = golden.meta
        arch = dict(
            embed_dims=meta["embed_dims"][0],
            depths=meta["layers"],
            num_heads=meta["num_heads"],
            mlp_ratio=meta["mlp_ratios"][0],
            stem_dims=meta["stem_hidden_dim"],
        )
        self.backbone = VOLO(
            arch,
            pretrain_img_size=meta["img_size"],
            with_cls_token=True,
            drop_path_rate=0.0,
            out_indices=(3,),
        )
        dims, classes = meta["embed_dims"][-1], meta["num_classes"]
        self.head = nn.ModuleDict(
            dict(fc=nn.Linear(dims, classes), aux_fc=nn.Linear(dims, classes))
        )
        weights = self._names(convert_volo(golden.group("param.")))
        missing, unexpected = self.load_state_dict(weights, strict=False)
        assert unexpected == []
        assert all(name.endswith(".num_batches_tracked") for name in missing)
        self.double()

    @staticmethod
    def _names(converted: dict[str, Tensor]) -> dict[str, Tensor]:
        return {k if k.startswith("head.") else f"backbone.{k}": v for k, v in converted.items()}

    def forward(self, x: Tensor, mix_box: list[int] | None = None) -> tuple[Tensor, Tensor]:
        """Logits of the class token, and of all tokens as ``(B, H, W, classes)``."""
        ((featmap, cls_token),) = self.backbone(x, mix_box)
        return self.head.fc(cls_token), self.head.aux_fc(featmap.permute(0, 2, 3, 1))


def test_network():
    golden = Golden("volo_net")
    model = Classifier(golden).eval()
    hooked = {}
    model.backbone.stages[-1].register_forward_hook(
        lambda module, args, out: hooked.update(tokens=out[0])
    )
    x = golden.double("input").requires_grad_()
    x_cls, x_aux = model(x)
    out = x_cls + 0.5 * x_aux.flatten(1, 2).amax(dim=1)
    (out * golden.double("grad_output")).sum().backward()
    golden.compare("output", out, golden.arrays["eval.output"])
    golden.compare("x_cls", x_cls, golden.arrays["eval.x_cls"])
    golden.compare("x_aux", x_aux.flatten(1, 2), golden.arrays["eval.x_aux"])
    golden.compare("tokens", hooked["tokens"].flatten(1, 2), golden.arrays["eval.tokens"])
    golden.compare("grad_input", x.grad, golden.arrays["eval.grad_input"])
    grads = golden.group("eval.grad.")
    official = {k: v for k, v in golden.group("param.").items() if "running" not in k}
    assert grads.keys() == official.keys()
    golden.compare_grads(model, model._names(convert_volo(grads)))
    golden.check()


def test_mix_token():
    """In training, with batch statistics. The official model un-mixes the token logits only."""
    golden = Golden("volo_net")
    model = Classifier(golden).train()
    box = golden.arrays["train_mix.bbox"].tolist()
    x_cls, x_aux = model(golden.double("input"), box)
    golden.compare("x_cls", x_cls, golden.arrays["train_mix.x_cls"])
    x_aux = exchange_box(x_aux, box).flatten(1, 2)
    golden.compare("x_aux", x_aux, golden.arrays["train_mix.x_aux"])
    golden.check()


def compare_with_timm(theirs: nn.Module, **options: int) -> None:
    """Convert timm's weights, and compare the logits of a random batch."""
    for name, parameter in theirs.named_parameters():  # no zeros and no ones
        if parameter.dim() == 1:
            nn.init.normal_(parameter, mean="norm" in name or ".conv." in name, std=0.1)
    theirs.double().eval()
    conversion = convert_checkpoint(theirs.state_dict(), MODELS.build, "volo", **options)
    state_dict = conversion.checkpoint["state_dict"]
    backbone = MODELS.build(conversion.checkpoint["meta"]["backbone_cfg"]).double().eval()
    weights = {k: v for k, v in state_dict.items() if k.startswith("backbone.")}
    backbone.load_state_dict({k.removeprefix("backbone."): v for k, v in weights.items()})

    def head(name: str, x: Tensor) -> Tensor:
        parts = (state_dict[f"head.{name}.{part}"] for part in ("weight", "bias"))
        return nn.functional.linear(x, *parts)

    image = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        (out,) = backbone(image)
        if backbone.with_cls_token:
            tokens = head("aux_fc", out[0].flatten(2).mT)
            logits = head("fc", out[1]) + 0.5 * tokens.amax(dim=1)
        else:
            logits = head("fc", out.mean(dim=(2, 3)))
        expected = theirs(image)
    error = ((logits - expected).abs().max() / expected.abs().max()).item()
    print(f"timm: {error:.1e}")
    assert error <= 1e-12


@pytest.fixture(scope="module")
def timm_models():
    return pytest.importorskip("timm.models", reason="needs timm")


def test_timm(timm_models):
    """The whole network of a published model, in float64."""
    torch.manual_seed(0)
    compare_with_timm(timm_models.create_model("volo_d1_224", img_size=64, num_classes=7))


def test_timm_without_class_token(timm_models):
    torch.manual_seed(0)
    model = timm_models.volo.VOLO(
        layers=[1, 2, 1],
        img_size=64,
        embed_dims=[8, 16, 16],
        num_heads=[2, 4, 4],
        downsamples=(True, False, False),
        outlook_attention=(True, False, False),
        stem_hidden_dim=8,
        num_classes=7,
        global_pool="avg",
        post_layers=None,
        use_aux_head=False,
    )
    compare_with_timm(model, num_heads=4)
