"""The learning rate of every step: a straight rise, then half a cosine down.

With `n` the step counted from one, `w` warm-up steps of `N` in all, highest rate `top` and final ratio `r`:

    n <= w:   top n / w
    n >  w:   top (r + (1 - r) (1 + cos(pi (n - w) / (N - w))) / 2)

Step `w` has the highest rate and step `N` exactly `top r`. Cosine decay: Loshchilov and Hutter, SGDR (2017).
"""

import math

from mnemonist.training.configuration import TrainingConfig


def learning_rate(step: int, config: TrainingConfig) -> float:
    """The learning rate of a step, a pure function of its number.

    Args:
        step: steps done before this one: 0 is the first, `config.steps - 1` the last.

    Raises:
        ValueError: the run has no such step.
    """
    if not 0 <= step < config.steps:
        raise ValueError(f"step is {step}; the run has steps 0 to {config.steps - 1}")
    number = step + 1
    if number <= config.warmup:
        return config.learning_rate * number / config.warmup
    progress = (number - config.warmup) / (config.steps - config.warmup)
    ratio = config.final_learning_rate_ratio
    return config.learning_rate * (ratio + (1 - ratio) * (1 + math.cos(math.pi * progress)) / 2)
