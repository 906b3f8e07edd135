"""Models that AOTInductor compiles ahead of time, with and without nodes for our ops."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from mmlocal.export import plain_forms
from mmlocal.layers import ELSA
from mmlocal.models.backbones import ELSASwin


def compiled(program: torch.export.ExportedProgram, folder: Path) -> str:
    """The C++ compiler takes nearly all of the time, so it does not optimise."""
    options = {
        "aot_inductor.compile_wrapper_opt_level": "O0",
        "aot_inductor.precompile_headers": False,
    }
    return torch._inductor.aoti_compile_and_package(
        program, package_path=str(folder / "model.pt2"), inductor_configs=options
    )


@pytest.mark.slow
@torch.no_grad()
def test_plain_form(tmp_path):
    """No process needs mmlocal to run it."""
    torch.manual_seed(0)
    layer = ELSA(8, 2, kernel_size=3, group_width=4).eval()
    x = torch.randn(2, 6, 10, 8)
    expected = layer(x)
    program = torch.export.export(layer, (x,)).run_decompositions(plain_forms())
    out = torch._inductor.aoti_load_package(compiled(program, tmp_path))(x)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


LOAD = """
import sys, torch
load = lambda: torch._inductor.aoti_load_package(sys.argv[1])
try:
    load()
except RuntimeError as error:
    print(error)
import mmlocal.ops
image, out = sys.argv[2:]
torch.save(load()(torch.load(image)), out)
"""


@pytest.mark.slow
@torch.no_grad()
def test_backbone_with_our_kernels(tmp_path):
    """The library asks PyTorch's dispatcher for the operators, so mmlocal has to be imported."""
    torch.manual_seed(0)
    arch = dict(embed_dims=8, depths=(1, 1), num_heads=(1, 2), group_width=4)
    model = ELSASwin(arch, kernel_size=3, window_size=3, out_indices=(0, 1)).eval()
    image = torch.randn(2, 3, 32, 40)
    expected = model(image)
    program = torch.export.export(model, (image,))
    nodes = Counter(str(node.target) for node in program.graph.nodes)
    assert nodes["mmlocal.elsa_attention.default"] == 1
    path = compiled(program, tmp_path)
    image_file, out_file = tmp_path / "image.pt", tmp_path / "out.pt"
    torch.save(image, image_file)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, path, str(image_file), str(out_file)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "mmlocal::elsa_attention" in done.stdout
    for ours, right in zip(torch.load(out_file), expected, strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-4, atol=1e-5)
