"""Labels of steps: the truth, and what a policy's own completions make of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from toy_policies import FORMAT, VowelsTask, problems_of

from mnemonist.reasoning.attempts import Attempt, Decoding
from mnemonist.reasoning.ledger import Ledger
from mnemonist.reasoning.step_labels import (
    Labelled,
    attempt_labels,
    gold_labels,
    path_labels,
    random_path,
    rollout_labels,
    text_labels,
)

TASK = VowelsTask()
PROBLEM = TASK.problem("train", 3, 0)


class HalfRight:
    """Finishes a path with its own letters, or with consonants, by turns."""

    name = "half"

    def __init__(self) -> None:
        self.prompts: list[str] = []

    def sample(self, prompts: Sequence[str], decoding: Decoding, ledger: Ledger | None = None) -> list[Attempt]:
        self.prompts = list(prompts)
        assert ledger is not None
        ledger.charge(generated=len(prompts), calls=len(prompts))
        texts = []
        for n, prompt in enumerate(prompts):
            begun = "".join(prompt.split("\n")[1:])
            texts.append("=" + (begun + ("aaa" if n % 2 else "xxx"))[:3] + ".")
        return [Attempt(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]


def test_gold_labels_are_the_truth_about_every_step() -> None:
    assert gold_labels(TASK, PROBLEM, ["a", "b", "e"]) == Labelled(PROBLEM, ("a", "b", "e"), (1.0, 0.0, 0.0))
    assert gold_labels(TASK, PROBLEM, ["e", "a"]).labels == (1.0, 1.0)


@pytest.mark.parametrize(("hard", "first"), [(False, (0.5, 0.0, 0.0)), (True, (1.0, 0.0, 0.0))])
def test_rollouts_say_how_often_a_path_comes_out_right(hard: bool, first: tuple[float, ...]) -> None:
    sampler, ledger = HalfRight(), Ledger()
    paths = [(PROBLEM, ["a", "b", "e"]), (PROBLEM, ["a", "e", "e"])]
    found = rollout_labels(sampler, TASK, FORMAT, paths, Decoding(), count=4, hard=hard, ledger=ledger)
    assert [one.labels for one in found] == [first, (first[0], first[0], 1.0)]
    assert [one.steps for one in found] == [("a", "b", "e"), ("a", "e", "e")]
    assert len(sampler.prompts) == ledger.generated_tokens == 6 * 4
    assert sampler.prompts[4:8] == ["0?\na\nb\n"] * 4


def test_random_paths_begin_well_and_go_astray() -> None:
    paths = [random_path(TASK, problem, seed=1) for problem in problems_of(TASK, 60)]
    assert all(len(path) == 3 for path in paths)
    labels = [gold_labels(TASK, PROBLEM, path).labels for path in paths]
    assert {sum(one) for one in labels} == {0, 1, 2, 3}
    assert paths == [random_path(TASK, problem, seed=1) for problem in problems_of(TASK, 60)]
    assert paths != [random_path(TASK, problem, seed=2) for problem in problems_of(TASK, 60)]


def test_the_end_of_a_text_is_a_step_that_is_right_or_not() -> None:
    def told(text: str) -> tuple[tuple[str, ...], tuple[float, ...]]:
        found = text_labels(TASK, FORMAT, PROBLEM, text)
        assert found is not None
        return found.steps, found.labels

    assert told("a\n\ne\ni\n=aei.") == (("a", "e", "i", "=aei."), (1.0, 1.0, 1.0, 1.0))
    assert told("a\nx\n=axx.") == (("a", "x", "=axx."), (1.0, 0.0, 0.0))
    assert told("=aei.") == (("=aei.",), (1.0,)) and told("=aei") == (("=aei",), (0.0,))
    assert told("a\ne") == (("a", "e"), (1.0, 1.0))
    assert text_labels(TASK, FORMAT, PROBLEM, " \n\n") is None


def test_a_policy_is_asked_and_its_attempts_are_told_the_truth_about() -> None:
    sampler, ledger = HalfRight(), Ledger()
    found = attempt_labels(sampler, TASK, FORMAT, [PROBLEM, PROBLEM], Decoding(), count=2, ledger=ledger)
    assert [(one.steps, one.labels) for one in found] == [(("=xxx.",), (0.0,)), (("=aaa.",), (1.0,))] * 2
    assert ledger.generated_tokens == 4


def test_paths_come_with_the_answers_they_lead_to() -> None:
    problems = problems_of(TASK, 20)
    for one, problem in zip(path_labels(TASK, FORMAT, problems, seed=1), problems, strict=True):
        path = random_path(TASK, problem, seed=1)
        answer = TASK.answer_of(problem, path)
        assert list(one.steps) == path + ([] if answer is None else [f"={answer}."])
        assert one.labels[:3] == gold_labels(TASK, problem, path).labels
        assert answer is None or one.labels[3] == one.labels[2]


def test_labelled_paths_are_rows_of_trl() -> None:
    row = Labelled(PROBLEM, ("a", "b"), (0.75, 0.25)).to_row(FORMAT)
    assert row == {"prompt": "0?\n", "completions": ["a", "b"], "labels": [True, False]}


@pytest.mark.parametrize("wrong", [((), ()), (("a",), ()), (("a",), (1.5,))])
def test_labels_that_fit_no_steps_are_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="each needs one from 0 to 1"):
        Labelled(PROBLEM, *wrong)
