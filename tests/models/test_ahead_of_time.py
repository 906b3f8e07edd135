"""Layers that AOTInductor compiles ahead of time, with and without a node for their op."""

import subprocess
import sys
from collections import Counter

import pytest
import torch
from torch import nn

from mmlocal.export import plain_forms
from mmlocal.layers import ELSA, QnA

# It loads the library before and after the import of mmlocal.
LOAD = """
import sys, torch
path, given, result = sys.argv[1:]
try:
    torch._inductor.aoti_load_package(path)
except RuntimeError as error:
    print(error)
import mmlocal.ops
torch.save(torch._inductor.aoti_load_package(path)(torch.load(given)), result)
"""


@pytest.mark.slow
@torch.no_grad()
def test_one_op_in_plain_form_and_one_as_a_node(tmp_path):
    """The library asks PyTorch's dispatcher for the node's op, so mmlocal has to be imported.

    The C++ compiler takes nearly all of the time, so there is one library, not optimised.
    """
    torch.manual_seed(0)
    layers = nn.Sequential(ELSA(8, 2, kernel_size=3, group_width=4), QnA(8, 2, kernel_size=3))
    x = torch.randn(2, 6, 10, 8)
    expected = layers.eval()(x)
    forms = plain_forms()
    del forms[torch.ops.mmlocal.qna_attention.default]
    program = torch.export.export(layers, (x,)).run_decompositions(forms)
    nodes = Counter(str(node.target) for node in program.graph.nodes)
    assert [n for n in nodes if n.startswith("mmlocal.")] == ["mmlocal.qna_attention.default"]
    assert nodes["mmlocal.qna_attention.default"] == 1
    path = torch._inductor.aoti_compile_and_package(
        program,
        package_path=str(tmp_path / "model.pt2"),
        inductor_configs={
            "aot_inductor.compile_wrapper_opt_level": "O0",
            "aot_inductor.precompile_headers": False,
        },
    )
    given, result = str(tmp_path / "given.pt"), str(tmp_path / "result.pt")
    torch.save(x, given)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, path, given, result],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "mmlocal::qna_attention" in done.stdout
    torch.testing.assert_close(torch.load(result), expected, rtol=1e-4, atol=1e-5)
