"""Backbones compiled ahead of time by AOTInductor, with one node for each op and without any."""

import pytest
import torch

from mmlocal.export import plain_forms
from mmlocal.models.backbones import ELSASwin


@pytest.mark.slow
@pytest.mark.parametrize("plain", [False, True])
def test_elsa_swin(plain, tmp_path):
    torch.manual_seed(0)
    arch = dict(embed_dims=8, depths=(1,), num_heads=(2,), group_width=4)
    model = ELSASwin(arch, kernel_size=3, out_indices=(0,)).eval()
    image = torch.randn(2, 3, 24, 40)
    with torch.no_grad():
        expected = model(image)
        program = torch.export.export(model, (image,))
        if plain:
            program = program.run_decompositions(plain_forms())
        path = torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / "model.pt2")
        )
        outs = torch._inductor.aoti_load_package(path)(image)
    for out, right in zip(outs, expected, strict=True):
        torch.testing.assert_close(out, right, rtol=1e-4, atol=1e-5)
