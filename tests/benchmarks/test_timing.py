"""Sides take turns, and ratios are those of pairs."""

from __future__ import annotations

import pytest


def test_each_timed_run_follows_an_untimed_one_of_its_own_side():
    from timing import Side, alternate

    done: list[str] = []
    sides = [
        Side(lambda: done.append("ours")),
        Side(lambda: done.append("theirs"), warm=lambda: done.append("a little of theirs")),
    ]

    def clock(work):
        done.append("timed")
        work()
        return float(len(done))

    times = alternate(sides, 2, clock)
    turn = ["ours", "timed", "ours", "a little of theirs", "timed", "theirs"]
    assert done == 2 * turn
    assert times == [[3.0, 9.0], [6.0, 12.0]]


def test_ratios_are_taken_pair_by_pair():
    from timing import ratios, spread

    # The machine slows down by ten between the pairs: ours is twice as fast in each.
    assert ratios([1.0, 10.0, 100.0], [2.0, 20.0, 200.0]) == {"min": 2.0, "median": 2.0, "max": 2.0}
    assert ratios([1.0, 1.0, 4.0], [2.0, 6.0, 4.0]) == {"min": 1.0, "median": 2.0, "max": 6.0}
    assert spread([3.0, 1.0, 2.0, 8.0]) == {"min": 1.0, "median": 2.5, "max": 8.0}
    with pytest.raises(ValueError):
        ratios([1.0, 2.0], [1.0])


def test_the_last_side_is_the_peer_of_the_others(monkeypatch):
    import cpu_measure
    from timing import Side

    monkeypatch.setattr(cpu_measure, "alternate", lambda sides, runs: [[float(n)] * runs for n, _ in enumerate(sides)])
    one, other = cpu_measure.timed(lambda: [Side(list), list, list], runs=2)()
    assert (one.ours, one.theirs) == ([0.0, 0.0], [2.0, 2.0])
    assert (other.ours, other.theirs) == ([1.0, 1.0], [2.0, 2.0])


def test_threads_are_given_back():
    import torch
    from cpu_measure import limited

    before = torch.get_num_threads()
    with pytest.raises(RuntimeError), limited(before + 1):
        assert torch.get_num_threads() == before + 1
        raise RuntimeError
    assert torch.get_num_threads() == before


def test_what_is_not_installed_has_no_version():
    from timing import processor, versions

    found = versions(("torch", "no-such-package"))
    assert found["torch"] and found["no-such-package"] is None and processor()
