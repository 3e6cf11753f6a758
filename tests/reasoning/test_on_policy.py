"""Policy gradients: rewards rise, attempts of the moment are used, and a run that was killed goes on exactly."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sharing_processes import main, run_in_two
from toy_policies import (
    FORMAT,
    TOKENIZER,
    FailingSampler,
    Stop,
    ToySampler,
    VowelTask,
    make_policy,
    problems_of,
    records,
    speller,
    speller_weights,
    with_changes,
)

from mnemonist.errors import CannotGoOn, UserError
from mnemonist.reasoning import policy_gradient
from mnemonist.reasoning.adapters import with_adapters
from mnemonist.reasoning.attempts import Attempt, Decoding
from mnemonist.reasoning.learning import Learned, learn
from mnemonist.reasoning.objective import OBJECTIVES
from mnemonist.reasoning.on_policy import policy_config
from mnemonist.reasoning.proposing import Material, Policy
from mnemonist.reasoning.round_folder import put_weights, wearing, weights_of
from mnemonist.reasoning.rounds import ROUNDS, Round
from mnemonist.reasoning.shuffling import endless, mix
from mnemonist.reasoning.tasks.rows import problem_of
from mnemonist.reasoning.weighing import load_judged
from mnemonist.training import TrainingConfig, load_checkpoint

TASK = VowelTask()
PROBLEMS = problems_of(TASK, 8)
VOWELS = Material(TASK, FORMAT, PROBLEMS)
SHORT = Decoding(max_tokens=6)
CONFIG = with_changes(learning_rate=3e-3, save_every=3)


def row(name: str = "grpo", **changes: Any) -> Round:
    """A small round of the family; changes of the objective's fields reach the objective."""
    objective = OBJECTIVES[name]
    own = {key: changes.pop(key) for key in list(changes) if hasattr(objective, key)}
    known: dict[str, Any] = {"iterations": 4, "problems": 4, "attempts": 8, "decoding": SHORT}
    return replace(ROUNDS[name], **{**known, "objective": replace(objective, **own), **changes})


def run(
    folder: Path,
    round_: Round,
    policy: Policy | None = None,
    *,
    material: Material = VOWELS,
    config: TrainingConfig = CONFIG,
    resume: bool = False,
) -> Learned:
    return learn(round_, policy or speller(), material, folder, config, resume=resume, progress=False)


@pytest.mark.parametrize("name", ["grpo", "dr-grpo", "dapo", "lite-ppo", "gspo"])
def test_rewards_rise(name: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"iterations": 14}
    if name == "gspo":  # whose narrow clips say something from the second step on
        changes |= {"minibatches": 2, "clip_low": 0.1, "clip_high": 0.1}
    if name == "grpo":
        changes |= {"beta": 0.01}
    run(tmp_path, row(name, **changes), config=replace(CONFIG, learning_rate=5e-3))
    rewards = [record["reward"] for record in records(tmp_path)]
    assert sum(rewards[:2]) / 2 < 0.4
    assert sum(rewards[-2:]) / 2 > sum(rewards[:2]) / 2 + 0.25


def test_every_step_is_measured(tmp_path: Path) -> None:
    end = run(tmp_path, row(epochs=2, minibatches=2, iterations=2))
    found = records(tmp_path)
    assert [(record["step"], record["iteration"]) for record in found] == [(n + 1, n // 4) for n in range(8)]
    assert (end.iterations, end.best, end.interrupted, end.validation) == (2, 1, False, None)
    attempts = load_judged(tmp_path / "attempts" / "000001.jsonl")
    assert found[7]["attempts"] == len(attempts) == 32
    assert found[7]["accuracy"] == pytest.approx(sum(one.right for one in attempts) / 32)
    assert found[7]["length"] == pytest.approx(sum(one.attempt.tokens for one in attempts) / 32)
    # On the policy that drew them, ratios are 1 and the reference is near; later neither.
    assert found[0]["clipped"] == 0 and found[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert max(record["clipped"] for record in found[1:]) > 0
    assert found[7]["kl"] > 1e-3
    assert 0.3 < found[0]["entropy"] < 2  # one letter of eight, and four tokens that are nearly certain


def test_attempts_are_drawn_by_the_policy_of_the_moment(tmp_path: Path) -> None:
    """Ratios of 1 at every first step of an iteration: drawn by the very weights that are fitted."""
    run(tmp_path, row("lite-ppo", iterations=3, minibatches=2, clip_low=1e-3, clip_high=1e-3))
    clipped = [record["clipped"] for record in records(tmp_path)]
    assert clipped[0] == clipped[2] == clipped[4] == 0
    assert min(clipped[1], clipped[3], clipped[5]) > 0


def test_every_iteration_draws_anew(tmp_path: Path) -> None:
    one = replace(VOWELS, problems=PROBLEMS[:1])
    run(tmp_path, row(iterations=2, problems=1), material=one, config=replace(CONFIG, learning_rate=1e-12))
    first, second = (load_judged(tmp_path / "attempts" / f"00000{n}.jsonl") for n in (0, 1))
    assert [one.attempt.log_probs for one in first] != [one.attempt.log_probs for one in second]


def test_every_attempt_is_read_once_in_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    original = policy_gradient.read

    def read(model: Any, batch: Any, temperature: float, **asked: bool) -> Any:
        seen.extend(
            tuple(tokens[mask > 0].tolist()) for tokens, mask in zip(batch["tokens"], batch["attention"], strict=True)
        )
        return original(model, batch, temperature, **asked)

    monkeypatch.setattr(policy_gradient, "read", read)
    choices = row("dr-grpo", iterations=1, minibatches=4, epochs=2)
    run(tmp_path, choices, config=replace(CONFIG, accumulation=2, learning_rate=1e-9))
    attempts = load_judged(tmp_path / "attempts" / "000000.jsonl")
    expected = sorted((*one.attempt.prompt_ids, *one.attempt.ids) for one in attempts)
    assert sorted(seen[:32]) == sorted(seen[32:]) == expected
    assert seen[:32] != seen[32:]


@pytest.mark.parametrize(
    ("problems", "batch_size", "accumulation", "world", "expected"),
    [
        (8, 100, 1, 1, 1),
        (8, 16, 1, 1, 2),
        (8, 16, 1, 2, 1),
        (8, 15, 1, 1, 4),  # the next that cuts 32 evenly
        (8, 8, 8, 1, 8),
        (6, 4, 4, 1, 8),  # a multiple of what was asked for
        (6, 1, 1, 3, 8),
    ],
)
def test_few_attempts_are_read_at_a_time(
    problems: int, batch_size: int, accumulation: int, world: int, expected: int
) -> None:
    config = replace(CONFIG, batch_size=batch_size, accumulation=accumulation)
    found = policy_config(row(problems=problems, attempts=4), 99, config, world)
    assert (found.batch_size, found.accumulation) == (4 * problems, expected)


def test_the_penalty_holds_the_policy_near_its_reference(tmp_path: Path) -> None:
    distance = {}
    for beta in (0.001, 5.0):
        run(tmp_path / str(beta), row(beta=beta, iterations=16, attempts=4))
        distance[beta] = records(tmp_path / str(beta))[-1]["kl"]
    assert distance[5.0] < 0.3 * distance[0.001]


def test_a_reference_weighs_no_more_than_what_is_trained(tmp_path: Path) -> None:
    """With adapters, and with a policy that has moved before: the reference is not the model without them."""
    policy = speller()
    model = with_adapters(policy.model, rank=2, seed=1)
    moved = {name: value + 0.03 * torch.randn_like(value) for name, value in weights_of(model).items()}
    put_weights(model, moved)
    run(tmp_path, row(beta=0.1, iterations=2, minibatches=2), replace(policy, model=model))
    kl = [record["kl"] for record in records(tmp_path)]
    assert kl[0] == pytest.approx(0, abs=1e-5) and kl[1] > 0
    ended = weights_of(model)
    assert any(not torch.equal(ended[name], value) for name, value in moved.items())


def test_a_model_wears_weights_for_a_while() -> None:
    model, other = make_policy(dropout=0.5).train(), make_policy(seed=5)
    ids = torch.arange(8)[None]
    own, worn = ({name: value.detach().clone() for name, value in one.named_parameters()} for one in (model, other))
    with torch.no_grad(), pytest.raises(KeyError), wearing(model, worn):
        assert not model.training
        assert torch.equal(model(ids).logits, other.eval()(ids).logits)
        raise KeyError
    assert model.training
    assert all(torch.equal(value, own[name]) and value.requires_grad for name, value in model.named_parameters())
    model(ids).logits.sum().backward()  # what wears no more learns as before
    assert all(value.grad is not None for value in model.parameters())


# Dynamic sampling and attempts that are cut off.


class Scripted:
    """A reward for every attempt, by the problem's number alone: some groups teach nothing."""

    def __init__(self, teaching: Sequence[str]) -> None:
        self.teaching = set(teaching)

    def __call__(self, problem: Sequence[str], **columns: Any) -> list[float]:
        questions = [problem_of({"problem": one}).question for one in problem]
        return [float(i % 2) if question in self.teaching else 0.0 for i, question in enumerate(questions)]


class Spelling(ToySampler):
    """Draws from the model for the first so many times; from then on every attempt is the same text."""

    def __init__(self, model: torch.nn.Module, times: int, text: str) -> None:
        super().__init__(model)
        self.times, self.text = times, text

    def sample(self, prompts: Sequence[str], decoding: Decoding, ledger: Any = None) -> list[Attempt]:
        drawn = super().sample(prompts, decoding)
        self.times -= 1
        return drawn if self.times >= 0 else [replace(one, text=self.text) for one in drawn]


def spelling(times: int, text: str) -> Policy:
    policy = speller()
    return replace(policy, sampler=Spelling(policy.model, times, text))


def test_groups_that_teach_nothing_are_replaced(tmp_path: Path) -> None:
    material = replace(VOWELS, rewards=[Scripted("abcd")])
    run(tmp_path, row("dapo", iterations=2, problems=4, attempts=2), material=material)
    for iteration in (0, 1):
        drawn = load_judged(tmp_path / "attempts" / f"{iteration:06}.jsonl")
        questions = [one.problem.question for one in drawn[::2]]
        assert len(questions) in (4, 8, 12, 16)
        assert sum(question in "abcd" for question in questions) >= 4
    assert [path.name for path in sorted((tmp_path / "attempts").iterdir())] == ["000000.jsonl", "000001.jsonl"]
    found = records(tmp_path)
    assert found[0]["zero_variance"] == pytest.approx(
        1
        - sum(one.problem.question in "abcd" for one in load_judged(tmp_path / "attempts" / "000000.jsonl"))
        / found[0]["attempts"]
    )


def test_when_nothing_teaches_it_is_said_and_kept(tmp_path: Path) -> None:
    material = replace(VOWELS, rewards=[Scripted("")])
    choices = row("dapo", problems=4, attempts=2, draws=3)
    with pytest.raises(UserError, match=r"none of the 12 problems of iteration 0 .* take easier or harder problems"):
        run(tmp_path, choices, material=material)
    assert len(load_judged(tmp_path / "attempts" / "000000.jsonl")) == 24
    # Without dynamic sampling such a step is taken, and is a step of zero.
    policy = speller()
    run(tmp_path / "plain", row("dr-grpo", iterations=1), policy, material=material)
    assert records(tmp_path / "plain")[0]["zero_variance"] == 1
    assert all(torch.equal(value, speller_weights()[name]) for name, value in weights_of(policy.model).items())


def test_a_run_ends_well_where_everything_is_right(tmp_path: Path) -> None:
    """After two iterations, between two checkpoints; and going on with it finds it ended."""
    choices = row("dapo", attempts=16, draws=1, iterations=9)
    policy = spelling(3, "=a.")
    material = replace(VOWELS, validation=PROBLEMS)
    end = run(tmp_path, choices, policy, material=material)
    asked = load_judged(tmp_path / "base" / "validation.jsonl")  # before all else, and by going on not again
    assert end.before == pytest.approx(sum(one.right for one in asked) / 8) and end.before < 1
    assert (end.iterations, end.best, end.interrupted, end.validation) == (2, 1, False, 1.0)
    assert end.checkpoint == tmp_path / "fit" / "checkpoint"
    kept = load_checkpoint(end.checkpoint)
    assert kept.step == 2
    assert all(torch.equal(value, kept.model[name]) for name, value in weights_of(policy.model).items())
    again = spelling(0, "=b.")
    assert run(tmp_path, choices, again, material=material, resume=True) == end
    assert again.sampler.calls == 0  # type: ignore[union-attr]
    assert all(torch.equal(value, kept.model[name]) for name, value in weights_of(again.model).items())


def test_a_run_may_have_nothing_to_learn_from_the_start(tmp_path: Path) -> None:
    policy = spelling(0, "=a.")
    end = run(tmp_path, row("dapo"), policy)
    assert (end.iterations, end.best, end.checkpoint, end.interrupted) == (0, None, None, False)
    assert all(torch.equal(value, speller_weights()[name]) for name, value in weights_of(policy.model).items())


def test_a_run_that_cannot_go_on_keeps_its_last_step(tmp_path: Path) -> None:
    policy = spelling(2, "=b.")
    with pytest.raises(CannotGoOn, match="none of the 4 problems of iteration 2 has attempts of different worth"):
        run(tmp_path, row("dapo", attempts=16, draws=1, iterations=9), policy)
    kept = load_checkpoint(tmp_path / "fit" / "checkpoint")
    assert kept.step == 2
    assert all(torch.equal(value, kept.model[name]) for name, value in weights_of(policy.model).items())


def test_a_minibatch_whose_attempts_were_all_cut_off_is_passed_over(tmp_path: Path) -> None:
    second = endless(4, mix(CONFIG.seed, "minibatch", 0, 0), 0, 4)[1::2]

    class Cut(ToySampler):
        def sample(self, prompts: Sequence[str], decoding: Decoding, ledger: Any = None) -> list[Attempt]:
            drawn = super().sample(prompts, decoding)
            return [replace(one, finish="length" if i in second else "end") for i, one in enumerate(drawn)]

    policy = speller()
    choices = row("dapo", iterations=1, problems=1, attempts=4, minibatches=2, dynamic=False)
    one = replace(VOWELS, problems=PROBLEMS[:1], rewards=[Scripted("abcdefgh")])
    run(tmp_path, choices, replace(policy, sampler=Cut(policy.model)), material=one)
    assert [record["grad_norm"] > 0 for record in records(tmp_path)] == [True, False]


def test_a_minibatch_without_attempts_is_passed_over(tmp_path: Path) -> None:
    """One group teaches where four were wanted, so that two minibatches of four have nothing to read."""
    material = replace(VOWELS, problems=PROBLEMS[:4], rewards=[Scripted("a")])
    choices = row("dr-grpo", iterations=1, attempts=2, minibatches=4, draws=1, dynamic=True)
    run(tmp_path, choices, material=material)
    assert [record["grad_norm"] > 0 for record in records(tmp_path)] == [True, True, False, False]


def test_attempts_that_were_cut_off_do_not_count(tmp_path: Path) -> None:
    choices = row("dapo", iterations=1, dynamic=False, decoding=Decoding(max_tokens=2))
    with pytest.raises(UserError, match=r"every attempt of iteration 0 was cut off at 2 tokens.*raise max_tokens"):
        run(tmp_path, choices)
    run(tmp_path / "kept", replace(choices, objective=replace(choices.objective, skip_overlong=False)))  # type: ignore[type-var]
    assert records(tmp_path / "kept")[0]["truncated"] == 1


def test_attempts_that_were_cut_off_have_no_part_in_the_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    masks: list[float] = []
    original = policy_gradient.sum_over_attempts

    def spy(loss: torch.Tensor, mask: torch.Tensor, *rest: Any) -> Any:
        masks.extend(mask.sum(-1).tolist())
        return original(loss, mask, *rest)

    monkeypatch.setattr(policy_gradient, "sum_over_attempts", spy)
    # Four tokens are just enough for most attempts of a policy that sometimes strays.
    decoding = Decoding(max_tokens=4, temperature=1.3)
    run(tmp_path, row("dapo", iterations=1, dynamic=False, attempts=16, decoding=decoding))
    attempts = load_judged(tmp_path / "attempts" / "000000.jsonl")
    lengths = [0 if one.attempt.finish == "length" else one.attempt.tokens for one in attempts]
    assert 0 < lengths.count(0) < len(lengths)
    assert sorted(masks) == sorted(lengths)


# Interruption.


def outcome(folder: Path) -> tuple[list[dict[str, Any]], dict[str, bytes], dict[str, torch.Tensor]]:
    attempts = {path.name: path.read_bytes() for path in sorted((folder / "attempts").iterdir())}
    return records(folder), attempts, load_checkpoint(folder / "fit" / "checkpoint").model


@pytest.mark.parametrize("name", ["grpo", "dapo"])
def test_a_run_that_was_killed_goes_on_exactly(name: str, tmp_path: Path) -> None:
    """Checkpoints every third step, two steps an iteration, dropout: it stops in the middle of iterations too."""
    choices = row(name, iterations=5, minibatches=2, problems=2, attempts=4)
    run(tmp_path / "straight", choices, speller(dropout=0.2))
    straight = outcome(tmp_path / "straight")
    assert len(straight[0]) == 10
    for at in (0, 1, 2, 4):
        folder = tmp_path / str(at)
        failing = speller(dropout=0.2)
        with pytest.raises(Stop):
            run(folder, choices, replace(failing, sampler=FailingSampler(failing.model, at)))
        run(folder, choices, speller(dropout=0.2), resume=True)
        found = outcome(folder)
        assert found[:2] == straight[:2]
        assert all(torch.equal(found[2][key], straight[2][key]) for key in straight[2])


def test_attempts_of_weights_that_are_lost_are_forgotten(tmp_path: Path) -> None:
    choices = row(iterations=6)
    failing = speller()
    with pytest.raises(Stop):
        run(tmp_path, choices, replace(failing, sampler=FailingSampler(failing.model, 5)))
    names = [path.name for path in sorted((tmp_path / "attempts").iterdir())]
    assert names == [f"{n:06}.jsonl" for n in range(5)]  # the checkpoint is of step 3
    kept = tmp_path / "attempts" / "000003.jsonl"
    lost = tmp_path / "attempts" / "000004.jsonl"
    before = kept.read_bytes()
    lost.write_text("of weights that nobody has")
    policy = speller()
    run(tmp_path, choices, policy, resume=True)
    assert kept.read_bytes() == before
    assert len(load_judged(lost)) == 32
    assert policy.sampler.calls == 2 * 32  # type: ignore[union-attr]  # iterations 4 and 5 alone


def test_damaged_attempts_are_refused(tmp_path: Path) -> None:
    choices = row(iterations=6)
    failing = speller()
    with pytest.raises(Stop):
        run(tmp_path, choices, replace(failing, sampler=FailingSampler(failing.model, 4)))
    path = tmp_path / "attempts" / "000003.jsonl"
    path.write_text(path.read_text()[:-9])
    with pytest.raises(UserError, match=r"000003.jsonl is damaged at line 32 .*; delete it to sample again"):
        run(tmp_path, choices, resume=True)
    path.unlink()
    run(tmp_path, choices, resume=True)
    assert len(records(tmp_path)) == 6


def test_a_sampler_without_log_probabilities_is_refused(tmp_path: Path) -> None:
    class Silent(ToySampler):
        def sample(self, prompts: Sequence[str], decoding: Decoding, ledger: Any = None) -> list[Attempt]:
            return [replace(one, log_probs=()) for one in super().sample(prompts, decoding)]

    policy = speller()
    with pytest.raises(UserError, match="a policy gradient needs the tokens and log-probabilities of every attempt"):
        run(tmp_path, row(), Policy(policy.model, TOKENIZER, Silent(policy.model)))


def test_two_processes_share_the_work_and_take_the_same_steps(tmp_path: Path) -> None:
    first, second = run_in_two(tmp_path / "two")
    assert first == second
    found = records(tmp_path / "two")
    assert [(record["step"], record["attempts"]) for record in found] == [(1, 12), (2, 12), (3, 12), (4, 12)]
    attempts = load_judged(tmp_path / "two" / "attempts" / "000000.jsonl")
    assert len({one.attempt.log_probs for one in attempts}) > 8  # each process drew with a seed of its own
    # One process that is given the attempts of the first iteration takes the same steps.
    (tmp_path / "one" / "attempts").mkdir(parents=True)
    shutil.copy(tmp_path / "two" / "attempts" / "000000.jsonl", tmp_path / "one" / "attempts")
    main(str(tmp_path / "one"))
    for alone, together in zip(records(tmp_path / "one")[:2], found[:2], strict=True):
        assert together == pytest.approx(alone, rel=1e-3, abs=1e-6)
