import pytest
import torch

from mmlocal.analysis import measure

CPU = torch.device("cpu")


def test_calls_take_turns(monkeypatch):
    order = []
    monkeypatch.setattr(measure, "_MAX_REPEATS", 1)
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    samples = measure.time_interleaved(calls, CPU, rounds=4)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab" + "abc"
    assert {name: len(values) for name, values in samples.items()} == dict.fromkeys("abc", 4)


def test_slow_calls_sit_out(monkeypatch):
    monkeypatch.setattr(measure, "_MAX_SECONDS", 0.0)
    assert len(measure.time_interleaved({"slow": lambda: None}, CPU, rounds=9)["slow"]) == 3
    assert len(measure.time_interleaved({"slow": lambda: None}, CPU, rounds=2)["slow"]) == 2


def test_summary():
    assert measure.summarise([0.004, 0.001, 0.002, 0.003, 0.1]) == pytest.approx(
        dict(quartile1_ms=2, median_ms=3, quartile3_ms=4, min_ms=1, samples=5)
    )
    assert measure.summarise([0.5])["quartile3_ms"] == 500


@torch.library.custom_op("mmlocal_tests::temporary", mutates_args=())
def temporary(x: torch.Tensor, size: int) -> torch.Tensor:
    return x + x.new_ones(size, 1000).sum(dim=0)


@pytest.mark.parametrize("size", [10, 500])
def test_peak_memory_inside_an_operator(size):
    """The temporaries of an operator count, in addition to all other tensors of the call."""
    x = torch.ones(1000)

    def call():
        kept = torch.zeros(3000)
        return kept, temporary(x, size)

    call()
    assert measure.peak_memory(call, CPU) == 4 * (3000 + 1000 * size + 1000)


def test_peak_memory():
    def call():
        first = torch.zeros(1000, dtype=torch.float64)
        second = first.neg()
        del first
        return second[:10].clone()

    call()
    assert measure.peak_memory(call, CPU) == 16000
    assert measure.peak_memory(lambda: None, CPU) == 0
