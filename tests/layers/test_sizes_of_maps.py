"""One compiled or exported graph serves maps of all sizes, and batches may be empty."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from mmlocal.layers import (
    DepthwiseConv,
    DWNetBlock,
    HaloAttention,
    TransformerBlock,
    WindowAttention,
)

BLOCKS = {
    "window": lambda: TransformerBlock(8, WindowAttention(8, 2, window_size=4, shift=True)),
    "halo": lambda: TransformerBlock(8, HaloAttention(8, 2, block_size=4, halo_size=1)),
    "dwnet": lambda: DWNetBlock(8, DepthwiseConv(8, 2), pad_size_divisor=4),
}
# The first map is padded on both sides, the others on one or none.
SIZES = [(9, 10), (8, 10), (9, 12), (12, 16)]


@pytest.mark.parametrize("name", BLOCKS)
def test_padding_needs_no_graph_of_its_own(name):
    torch.manual_seed(0)
    block = BLOCKS[name]().eval()
    counter = CompileCounter()
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend=counter)
    dims = dict.fromkeys(range(3), torch.export.Dim.AUTO)
    program = torch.export.export(block, (torch.randn(2, 9, 10, 8),), dynamic_shapes=(dims,))
    for size in SIZES:
        x = torch.randn(2, *size, 8)
        expected = block(x)
        for other in (compiled, program.module()):
            torch.testing.assert_close(other(x), expected)
    assert counter.frame_count == 1
