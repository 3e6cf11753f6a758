"""Settings that cannot work are refused with the value and what is allowed, before torch is needed."""

import dataclasses
import inspect
import re
import subprocess
import sys

import pytest

from mnemonist.errors import UserError
from mnemonist.training.configuration import HeldOutConfig, TrainingConfig


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("steps", 0, "a whole number from 1"),
        ("steps", 2.0, "a whole number from 1"),
        ("batch_size", True, "a whole number from 1"),
        ("row_length", -1, "a whole number from 1"),
        ("accumulation", 0, "a whole number from 1"),
        ("save_every", 0, "a whole number from 1"),
        ("log_every", 0, "a whole number from 1"),
        ("warmup_steps", -1, "a whole number from 0"),
        ("seed", -1, "a whole number from 0"),
        ("learning_rate", 0.0, "a number above 0"),
        ("learning_rate", float("nan"), "a number above 0"),
        ("final_learning_rate_ratio", 1.5, "a number from 0 to 1"),
        ("weight_decay", -0.1, "a number from 0"),
        ("betas", (0.9, 1.0), "two numbers from 0 to below 1"),
        ("betas", (0.9,), "two numbers from 0 to below 1"),
        ("clip_norm", 0.0, "a number above 0, or None"),
        ("clip_norm", float("inf"), "a number above 0, or None"),
        ("device", "gpu", "one of auto, cpu, cuda"),
    ],
)
def test_a_value_out_of_range_is_named(field: str, value: object, allowed: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"{field} is {value!r}; it must be {allowed}")):
        dataclasses.replace(TrainingConfig(), **{field: value})


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("share", 1, "a number from 0 to below 1"),
        ("share", -0.1, "a number from 0 to below 1"),
        ("share", float("nan"), "a number from 0 to below 1"),
        ("every", 0, "a whole number from 1"),
        ("rows", 0, "a whole number from 1"),
        ("seed", -1, "a whole number from 0"),
    ],
)
def test_a_value_of_held_out_text_that_is_out_of_range_is_named(field: str, value: object, allowed: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"held_out.{field} is {value!r}; it must be {allowed}")):
        HeldOutConfig(**{field: value})


def test_text_is_held_out_from_one_place() -> None:
    with pytest.raises(UserError, match=r"held_out.data is other.txt and held_out.share 0.1: .* leave one of them out"):
        HeldOutConfig(data="other.txt", share=0.1)
    assert [HeldOutConfig(**one).given for one in ({}, {"rows": 3}, {"share": 0}, {"data": "a"})] == [
        False, False, True, True,
    ]  # fmt: skip


def test_values_that_contradict_each_other_are_both_named() -> None:
    with pytest.raises(UserError, match="batch_size is 10 and accumulation 4"):
        TrainingConfig(batch_size=10, accumulation=4)
    with pytest.raises(UserError, match="warmup_steps is 11; the run has only 10 steps"):
        TrainingConfig(steps=10, warmup_steps=11)


def test_a_warm_up_that_is_left_open_fits_the_run() -> None:
    assert [TrainingConfig(steps=steps).warmup for steps in (1, 50, 199, 200, 1000)] == [0, 25, 99, 100, 100]
    assert TrainingConfig(steps=50).for_steps(300, seed=4) == TrainingConfig(steps=300, seed=4)
    chosen = TrainingConfig(warmup_steps=70)
    assert (chosen.warmup, chosen.for_steps(80).warmup, chosen.for_steps(50).warmup) == (70, 70, 50)


def test_the_border_cases_are_allowed() -> None:
    TrainingConfig(steps=1, warmup_steps=1, batch_size=1, weight_decay=0, betas=(0.0, 0.0), clip_norm=None)


@pytest.mark.parametrize("kind", [TrainingConfig, HeldOutConfig])
def test_every_field_says_what_it_is_for(kind: type) -> None:
    fields = dataclasses.fields(kind)
    assert len(fields) <= 15
    source = inspect.getsource(kind)
    for field in fields:
        assert re.search(rf'^    {field.name}: .*\n    """\w', source, re.MULTILINE), field.name


def test_neither_the_package_nor_its_settings_import_torch() -> None:
    program = (
        "import sys, mnemonist.training, mnemonist.training.configuration, mnemonist.training.schedule;"
        "sys.exit('torch' in sys.modules or 'train' not in dir(mnemonist.training))"
    )
    path = {"PYTHONPATH": ":".join(sys.path)}
    assert subprocess.run([sys.executable, "-c", program], env=path, timeout=60).returncode == 0
