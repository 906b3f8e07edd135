"""What all tests of the ops share."""

import sys

import pytest
import torch


def _fills(function):
    """The same function, which leaves NaN in the floats that it hands to mmlocal."""

    def empty(*args, **kwargs):
        out = function(*args, **kwargs)
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if caller.partition(".")[0] == "mmlocal" and out.is_floating_point():
            out.fill_(torch.nan)
        return out

    return empty


@pytest.fixture(autouse=True)
def _nothing_is_left_unwritten(monkeypatch):
    """Memory that an op does not write shows up as NaN, not as whatever was there before."""
    for owner, names in (
        (torch, ("empty", "empty_like", "empty_strided")),
        (torch.Tensor, ("new_empty", "new_empty_strided")),
    ):
        for name in names:
            monkeypatch.setattr(owner, name, _fills(getattr(owner, name)))
