"""The golden files of DWNet, and comparisons with them."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mmlocal.checkpoints.dwnet import convert_dwnet

FOLDER = Path(__file__).parents[1] / "data" / "dwnet"


class Golden:
    """A golden file, and our errors against it.

    ``part`` is the official name of the owner of the parameters in a whole network, and ``ours`` is
    our name of it. Both end with a dot.
    """

    def __init__(self, name: str, part: str = "", ours: str = "") -> None:
        with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as arrays:
            self.arrays = {k: torch.from_numpy(v) for k, v in arrays.items() if k != "meta"}
            self.meta = json.loads(str(arrays["meta"]))
        self.name, self.part, self.ours = name, part, ours
        self.errors: dict[str, float] = {}

    def group(self, prefix: str) -> dict[str, torch.Tensor]:
        """Arrays under ``prefix``, without it."""
        return {k[len(prefix) :]: v for k, v in self.arrays.items() if k.startswith(prefix)}

    def converted(self, prefix: str) -> dict[str, torch.Tensor]:
        """Arrays under ``prefix`` with our names."""
        official = {self.part + k: v for k, v in self.group(prefix).items()}
        return {k.removeprefix(self.ours): v for k, v in convert_dwnet(official).items()}

    def load(self, module: nn.Module) -> None:
        """Load the official parameters into our module."""
        missing = module.load_state_dict(self.converted("param."), strict=False)
        assert missing.unexpected_keys == []
        assert all(key.endswith("num_batches_tracked") for key in missing.missing_keys)

    def compare(self, name: str, ours: torch.Tensor, official: torch.Tensor, limit: float) -> None:
        """Check that the error is at most ``limit``, relative to the largest number or to 1."""
        assert name not in self.errors
        assert ours.shape == official.shape, name
        scale = official.abs().max().clamp(min=1).item()
        self.errors[name] = (ours.double() - official.double()).abs().max().item() / scale
        assert self.errors[name] <= limit, (name, self.errors[name])

    def check(self, module: nn.Module, call, mode: str, dtype: torch.dtype = torch.float64) -> None:
        """Compare outputs, gradients and, in training, running statistics.

        The official code ran in float64, and the files have its results in float32. ``call`` maps
        the input to a list of outputs in the official layout.
        """
        out_limit, grad_limit = {
            torch.float64: (1e-7, 1e-7),
            torch.float32: (1e-5, 3e-4),  # two images give the predictor nearly equal means
        }[dtype]
        self.load(module)
        module.to(dtype).train(mode == "train")
        x = self.arrays["input"].to(dtype).requires_grad_()
        outs = call(x)
        names = [""] if len(outs) == 1 else range(len(outs))
        total = sum(
            (o * self.arrays[f"grad_output{i}"]).sum() for i, o in zip(names, outs, strict=True)
        )
        total.backward()
        for i, out in zip(names, outs, strict=True):
            self.compare(f"output{i}", out, self.arrays[f"{mode}.output{i}"], out_limit)
        if f"{mode}.grad_input" in self.arrays:
            self.compare("grad_input", x.grad, self.arrays[f"{mode}.grad_input"], grad_limit)
        grads = self.converted(f"{mode}.grad.")
        parameters = dict(module.named_parameters())
        assert grads.keys() == parameters.keys()
        for key, grad in grads.items():
            self.compare(f"grad.{key}", parameters[key].grad, grad, grad_limit)
        after = self.converted(f"{mode}.after.")
        buffers = {k: v for k, v in module.named_buffers() if "running" in k}
        assert after.keys() == (buffers.keys() if mode == "train" else set())
        for key, value in after.items():
            self.compare(f"after.{key}", buffers[key], value, out_limit)
        worst = max(self.errors, key=self.errors.get)
        print(
            f"parity {self.name} {mode}: {len(self.errors)} tensors, worst "
            f"{self.errors[worst]:.1e} ({worst})"
        )
