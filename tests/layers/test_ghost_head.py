import pytest
import torch

from mmlocal.layers import ELSA, GhostHead


@pytest.mark.parametrize("gamma", [0, 0.3])
@pytest.mark.parametrize("lam", [0, 0.5, 2])
def test_filters_of_elsa(lam, gamma):
    """With a map for each channel it is the ghost head of ELSA, which the op applies."""
    torch.manual_seed(0)
    elsa = ELSA(12, 3, kernel_size=3, group_width=4, lam=lam, gamma=gamma)
    head = GhostHead(12, 9, lam, gamma)
    assert (head.mul is None, head.add is None) == (lam == 0, gamma == 0)
    if lam:
        elsa.ghost_mul.data = head.mul.data.view(12, 3, 3)
    if gamma:
        elsa.ghost_add.data = head.add.data.view(12, 3, 3)
    maps = torch.rand(2, 3, 9, 4, 5)
    expected = elsa.ghost_filters(maps, range(12))
    out = head(maps, torch.arange(9)[:, None, None])
    torch.testing.assert_close(out, expected if lam or gamma else maps)


def test_several_maps_for_each_head():
    """Maps of a window, whose weights lie at the offsets that an index names."""
    torch.manual_seed(0)
    head = GhostHead(6, 5, lam=1, gamma=0.5).double()
    maps = torch.rand(2, 3, 3, 3, dtype=torch.float64)
    index = torch.tensor([[2, 3, 4], [1, 2, 3], [0, 1, 2]])
    out = head(maps, index)
    assert out.shape == (2, 6, 3, 3)
    for g in range(6):
        for i in range(3):
            for j in range(3):
                offset = j - i + 2
                expected = head.mul[g, offset] * maps[:, g // 2, i, j] + 0.5 * head.add[g, offset]
                torch.testing.assert_close(out[:, g, i, j], expected)


def test_initial_tables():
    torch.manual_seed(0)
    head = GhostHead(96, 49)
    assert abs(head.mul.mean().item()) < 0.05
    assert abs(head.mul.std().item() - 1) < 0.05
    assert abs(head.add.std().item() - 0.02) < 0.002
    assert (GhostHead(96, 49, lam=0.5).mul >= 0).all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 9), ValueError, "num_maps must be at least 1, got 0"),
        ((6, 2.5), TypeError, "num_offsets must be an integer, got 2.5"),
        ((6, 9, float("inf")), ValueError, "lam must be finite, got inf"),
        ((6, 9, 1, "1"), TypeError, "gamma must be a number, got '1'"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        GhostHead(*arguments)
