"""The fixture of conftest.py bites: memory that mmlocal allocates and leaves alone is NaN."""

import torch

from mmlocal.ops import elsa_attention
from mmlocal.ops.elsa import eager
from mmlocal.ops.layout import new_map, to_layout

ALLOCATIONS = """
like = torch.zeros(2, 3)
results = [
    torch.empty(2, 3),
    torch.empty_like(like),
    torch.empty_strided((2, 3), (3, 1)),
    like.new_empty(2, 3),
    like.new_empty_strided((2, 3), (3, 1)),
]
"""


def test_memory_of_mmlocal_is_filled():
    scope = {"__name__": "mmlocal.ops.somewhere", "torch": torch}
    exec(ALLOCATIONS, scope)
    assert all(x.isnan().all() for x in scope["results"])
    assert torch.empty(3, dtype=torch.int64).shape == (3,)  # has no NaN
    assert new_map(torch.zeros(1, 2, 3, 4), (1, 2, 5, 6)).isnan().all()


def test_a_pixel_that_a_backend_leaves_out_shows(monkeypatch):
    def forward(value, *args):
        out = new_map(value, value.shape)
        out[..., :-1] = to_layout(real(value, *args), value)[..., :-1]
        return out

    real = eager.forward
    monkeypatch.setattr(eager, "forward", forward)
    out = elsa_attention(
        torch.ones(1, 1, 3, 4), torch.zeros(1, 9, 3, 4), kernel_size=3, backend="eager"
    )
    assert out[..., -1].isnan().all()
    assert out[..., :-1].isfinite().all()
