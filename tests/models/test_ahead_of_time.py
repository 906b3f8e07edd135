"""A layer without nodes for its ops, compiled ahead of time by AOTInductor."""

import pytest
import torch

from mmlocal.export import plain_forms
from mmlocal.layers import ELSA


@pytest.mark.slow
def test_elsa(tmp_path):
    """The C++ compiler takes nearly all of the time, so it does not optimise."""
    torch.manual_seed(0)
    layer = ELSA(8, 2, kernel_size=3, group_width=4).eval()
    x = torch.randn(2, 6, 10, 8)
    options = {
        "aot_inductor.compile_wrapper_opt_level": "O0",
        "aot_inductor.precompile_headers": False,
    }
    with torch.no_grad():
        expected = layer(x)
        program = torch.export.export(layer, (x,)).run_decompositions(plain_forms())
        path = torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / "model.pt2"), inductor_configs=options
        )
        out = torch._inductor.aoti_load_package(path)(x)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
