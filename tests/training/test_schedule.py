"""The learning rate equals its formula where that can be worked out by hand."""

import pytest

from mnemonist.training.configuration import TrainingConfig
from mnemonist.training.schedule import learning_rate

CONFIG = TrainingConfig(steps=12, warmup_steps=4, learning_rate=8.0, final_learning_rate_ratio=0.25)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 2.0),  # a quarter of the way up
        (1, 4.0),
        (3, 8.0),  # end of the warm-up: the top
        (5, 2.0 + 6.0 * (1 + 2**-0.5) / 2),  # a quarter of the way down: cos 45 degrees
        (7, 5.0),  # half way down: the middle of 8 and 2
        (11, 2.0),  # last step: exactly the final rate
    ],
)
def test_values_by_hand(step: int, expected: float) -> None:
    assert learning_rate(step, CONFIG) == pytest.approx(expected, rel=1e-12)


def test_it_rises_then_falls() -> None:
    rates = [learning_rate(step, CONFIG) for step in range(CONFIG.steps)]
    assert rates[:4] == sorted(rates[:4])
    assert rates[3:] == sorted(rates[3:], reverse=True)


def test_without_warm_up_and_with_nothing_else() -> None:
    falling = TrainingConfig(steps=2, warmup_steps=0, learning_rate=8.0, final_learning_rate_ratio=0.0)
    assert [learning_rate(step, falling) for step in range(2)] == pytest.approx([4.0, 0.0])
    rising = TrainingConfig(steps=2, warmup_steps=2, learning_rate=8.0)
    assert [learning_rate(step, rising) for step in range(2)] == [4.0, 8.0]


@pytest.mark.parametrize("step", [-1, 12])
def test_a_step_outside_the_run_is_refused(step: int) -> None:
    with pytest.raises(ValueError, match="the run has steps 0 to 11"):
        learning_rate(step, CONFIG)
