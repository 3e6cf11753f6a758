"""Figures for people."""

from mnemonist.cli.figures import amount, duration


def test_figures_for_people() -> None:
    assert [amount(n) for n in (12, 1234, 1.5e6, 2e9, 3.25e12)] == ["12 ", "1.23 k", "1.5 M", "2 G", "3.25 T"]
    found = [duration(s) for s in (0.2, 119, 120, 7100, 7200, 172_000, 400_000)]
    assert found == ["0 s", "119 s", "2 min", "118 min", "2.0 h", "47.8 h", "4.6 days"]
