"""Learning: tiny policies really learn by every round, an interruption changes nothing, and errors say what to do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_policies import (
    FORMAT,
    TOKENIZER,
    FailingSampler,
    Stop,
    SumTask,
    ToySampler,
    VowelTask,
    make_policy,
    problems_of,
    records,
    speller,
    with_changes,
)

from mnemonist.errors import CannotGoOn, UserError
from mnemonist.reasoning import learning, proposing
from mnemonist.reasoning.adapters import with_adapters
from mnemonist.reasoning.attempts import Attempt, Decoding
from mnemonist.reasoning.learning import learn, learn_recipe, right_and_wrong
from mnemonist.reasoning.proposing import Material, Policy, Solver, measure
from mnemonist.reasoning.round_folder import put_weights, weights_of
from mnemonist.reasoning.rounds import ROUNDS, Round
from mnemonist.reasoning.tasks.rewards import accuracy_reward, format_reward
from mnemonist.reasoning.weighing import load_judged
from mnemonist.training import load_checkpoint

TASK = SumTask()
PROBLEMS = problems_of(TASK, 25)
SHORT = Decoding(max_tokens=8)
VOWELS = Material(VowelTask(), FORMAT, problems_of(VowelTask(), 8), problems_of(VowelTask(), 8))
DISTIL = replace(ROUNDS["distil"], epochs=100, decoding=SHORT)
REST_EM = replace(ROUNDS["rest-em"], attempts=16, keep=3, epochs=12, decoding=replace(SHORT, temperature=0.9))


def material(**changes: Any) -> Material:
    whole = Material(TASK, FORMAT, PROBLEMS, PROBLEMS, teacher=Solver(TASK, PROBLEMS, FORMAT))
    return replace(whole, **changes)


def policy_with(weights: dict[str, torch.Tensor] | None = None) -> Policy:
    model = make_policy()
    put_weights(model, weights or {})
    return Policy(model, TOKENIZER, ToySampler(model))


def accuracy(policy: Policy, temperature: float = 0.0) -> float:
    """Of 10 attempts at every problem."""
    assert policy.sampler is not None
    asked = [problem for problem in PROBLEMS for _ in range(10)]
    prompts = [FORMAT.prompt(problem.question) for problem in asked]
    attempts = policy.sampler.sample(prompts, replace(SHORT, temperature=temperature, seed=11))
    return measure([proposing.weigh(asked, attempts, TASK, FORMAT)])["accuracy"]


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Weights of a policy that knows the format and some of the sums."""
    policy = policy_with()
    learn(replace(DISTIL, epochs=52), policy, material(validation=()), tmp_path_factory.mktemp("warm"), CONFIG)
    return weights_of(policy.model)


CONFIG = with_changes(batch_size=25, warmup_steps=5)


# Every round learns.


def test_a_policy_learns_from_a_teacher(tmp_path: Path) -> None:
    policy = policy_with()
    assert accuracy(policy) == 0
    end = learn(DISTIL, policy, material(), tmp_path, CONFIG, progress=False)
    assert end.validation is not None and end.validation >= 0.9 and end.before == 0
    assert len(load_judged(tmp_path / "base" / "validation.jsonl")) == 25
    assert accuracy(policy) == pytest.approx(end.validation)
    [record] = records(tmp_path)
    assert record["validation"] == end.validation
    assert (record["iteration"], record["accuracy"], record["attempts"]) == (0, 1, 25)
    assert [one.attempt.finish for one in load_judged(tmp_path / "0" / "validation.jsonl")] == ["end"] * 25


def test_a_policy_learns_texts_that_are_given(tmp_path: Path) -> None:
    policy = policy_with()
    pairs = [("2+1\n", "3\n=3."), ("0+4\n", "4\n=4.")]
    given = material(pairs=pairs, validation=())
    learn(replace(ROUNDS["journey"], epochs=60), policy, given, tmp_path, with_changes(batch_size=2), progress=False)
    attempts = policy.sampler.sample([prompt for prompt, _ in pairs], replace(SHORT, temperature=0))  # type: ignore[union-attr]
    assert [(one.prompt, one.text, one.finish) for one in attempts] == [(*pair, "end") for pair in pairs]


def test_rest_em_improves_iteration_by_iteration(tmp_path: Path) -> None:
    row = replace(REST_EM, epochs=4, until_worse=False)
    policy = speller()
    end = learn(row, policy, VOWELS, tmp_path, with_changes(batch_size=8, learning_rate=3e-3), progress=False)
    accuracies = [record["accuracy"] for record in records(tmp_path)]  # of what each iteration sampled
    assert accuracies[0] < 0.3
    assert accuracies[2] > accuracies[0] + 0.3
    assert (end.iterations, end.best, end.validation) == (3, 2, 1.0)


def test_of_easy_problems_few_attempts_are_kept(tmp_path: Path) -> None:
    learn(replace(REST_EM, iterations=1, epochs=8), speller(), VOWELS, tmp_path, CONFIG, progress=False)
    right = [one for one in load_judged(tmp_path / "0" / "attempts" / "00000.jsonl") if one.right]
    counts = [sum(one.problem == problem for one in right) for problem in VOWELS.problems]
    kept = sum(min(3, count) for count in counts)
    assert kept < sum(counts)
    assert load_checkpoint(tmp_path / "0" / "fit" / "checkpoint").step == -(-8 * kept // 25)


def test_rest_em_fits_from_the_base_and_keeps_the_best(warm: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """With a learning rate of nearly zero every fit ends at the base, wherever the one before ended."""
    policy = policy_with(warm)
    still, row = with_changes(batch_size=25, learning_rate=1e-12), replace(REST_EM, iterations=2, until_worse=False)
    end = learn(row, policy, material(), tmp_path, still, progress=False)
    assert (end.iterations, end.best) == (2, 1)
    for name, value in weights_of(policy.model).items():
        torch.testing.assert_close(value, warm[name], rtol=0, atol=1e-7)
    # The second iteration sampled with other seeds.
    first, second = (load_judged(tmp_path / str(i) / "attempts" / "00000.jsonl") for i in (0, 1))
    assert [one.attempt.text for one in first] != [one.attempt.text for one in second]


def test_when_validation_falls_the_weights_of_the_best_iteration_are_left(
    warm: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = iter([0.3, 0.4, 0.5, 0.5])
    monkeypatch.setattr(learning, "validate", lambda *arguments: next(accuracies))
    policy = policy_with(warm)
    end = learn(replace(REST_EM, epochs=1), policy, material(), tmp_path, CONFIG, progress=False)
    assert (end.iterations, end.best, end.validation, end.before) == (3, 1, 0.5, 0.3)
    assert [record["kept"] for record in records(tmp_path)] == [True, True, False]
    assert end.checkpoint == tmp_path / "1" / "fit" / "checkpoint"
    best, last = (load_checkpoint(tmp_path / str(i) / "fit" / "checkpoint").model for i in (1, 2))
    assert all(torch.equal(value, best[name]) for name, value in weights_of(policy.model).items())
    assert any(not torch.equal(value, last[name]) for name, value in weights_of(policy.model).items())


def test_where_no_iteration_is_better_the_policy_before_the_first_is_left(
    warm: dict[str, torch.Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One fit at a rate that ruins the policy; going on with it finds the same."""
    policy, ruin = policy_with(warm), replace(CONFIG, learning_rate=1.0, clip_norm=None)
    end = learn(REST_EM, policy, material(), tmp_path, ruin)
    assert (end.iterations, end.best, end.checkpoint) == (1, None, None)
    assert end.validation == pytest.approx(accuracy(policy)) and end.validation > 0
    assert all(torch.equal(value, warm[name]) for name, value in weights_of(policy.model).items())
    assert "no iteration is better in validation than the policy before the first fit" in capsys.readouterr().err
    again = policy_with(warm)
    assert learn(REST_EM, again, material(), tmp_path, ruin, resume=True, progress=False) == end
    assert again.sampler.calls == 0  # type: ignore[union-attr]


def test_without_the_base_a_fit_goes_on_where_the_last_one_ended(warm: dict[str, torch.Tensor], tmp_path: Path) -> None:
    choices = replace(REST_EM, iterations=2, epochs=1, until_worse=False)
    ends = {}
    for name, from_base in (("base", True), ("on", False)):
        policy = policy_with(warm)
        learn(replace(choices, from_base=from_base), policy, material(), tmp_path / name, CONFIG, progress=False)
        ends[name] = sum(float((value - warm[key]).square().sum()) for key, value in weights_of(policy.model).items())
    assert ends["on"] > 1.5 * ends["base"]  # two fits go further than one


def test_preferences_make_right_answers_likelier_than_wrong_ones(tmp_path: Path) -> None:
    row = replace(ROUNDS["dpo"], attempts=32, keep=8, epochs=10, iterations=2, decoding=SHORT)
    learn(row, speller(), VOWELS, tmp_path, with_changes(learning_rate=5e-4), progress=False)
    before, after = (record["accuracy"] / record["parsed"] for record in records(tmp_path))
    assert before < 0.3
    assert after > before + 0.1
    pairs = [json.loads(line) for line in (tmp_path / "0" / "pairs.jsonl").read_text().splitlines()]
    assert len(pairs) > 20
    assert all(pair["chosen"] in ("=a.", "=e.") and pair["rejected"] != pair["chosen"] for pair in pairs)  # as TRL's
    losses = [json.loads(line)["loss"] for line in (tmp_path / "0" / "fit" / "metrics.jsonl").read_text().splitlines()]
    assert losses[0] == pytest.approx(0.6931472, abs=1e-4)  # at its reference a policy prefers nothing
    assert losses[-1] < 0.68


def test_pairs_are_right_above_wrong() -> None:
    group = proposing.weigh(
        [PROBLEMS[0]] * 5, [Attempt("", text) for text in ("=0.", "=1.", "=2.", "=0.", "=3.")], TASK, FORMAT
    )
    texts = [(right.attempt.text, wrong.attempt.text) for right, wrong in right_and_wrong(group, 9)]
    assert texts == [("=0.", "=1."), ("=0.", "=2.")]
    assert len(right_and_wrong(group, 1)) == 1


def test_a_policy_with_adapters_learns_with_them_alone(warm: dict[str, torch.Tensor], tmp_path: Path) -> None:
    policy = policy_with(warm)
    model = with_adapters(policy.model, rank=8, seed=4)
    trained = sum(value.numel() for value in weights_of(model).values())
    assert 0 < trained < 0.5 * sum(value.numel() for value in model.parameters())
    before = accuracy(policy)
    frozen = {name: value.clone() for name, value in model.named_parameters() if not value.requires_grad}
    learn(DISTIL, replace(policy, model=model), material(), tmp_path, CONFIG, progress=False)
    assert accuracy(policy) > before + 0.1  # the sampler of the model itself sees the adapters
    assert all(torch.equal(value, frozen[name]) for name, value in model.named_parameters() if name in frozen)


def test_adapters_follow_from_their_seed() -> None:
    def adapters(seed: int) -> dict[str, torch.Tensor]:
        return weights_of(with_adapters(make_policy(), rank=2, seed=seed))

    one, same, other = adapters(1), adapters(1), adapters(2)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_rounds_follow_one_another_in_a_recipe(tmp_path: Path) -> None:
    cold = replace(ROUNDS["journey"], name="cold")
    rl = replace(ROUNDS["grpo"], name="rl", iterations=2, problems=4, attempts=4, decoding=SHORT)
    recipe = [cold, rl, replace(cold, name="again", from_base=True)]
    given = replace(VOWELS, pairs=[("a\n", "=a."), ("b\n", "=e.")])
    policy, configs = speller(), [with_changes(batch_size=2)]
    ends = learn_recipe(recipe, policy, given, tmp_path, configs, progress=False)
    assert [end.folder.name for end in ends] == ["1-cold", "2-rl", "3-again"]
    # The last one began where the recipe did, so that it ends where the first one did.
    first, middle, last = (load_checkpoint(end.checkpoint).model for end in ends)
    assert all(torch.equal(first[name], last[name]) for name in first)
    assert any(not torch.equal(first[name], middle[name]) for name in first)

    again = speller()
    assert learn_recipe(recipe, again, given, tmp_path, configs, resume=True, progress=False) == ends
    assert all(torch.equal(value, weights_of(policy.model)[name]) for name, value in weights_of(again.model).items())
    with pytest.raises(UserError, match="1-cold already has a round: go on with --resume"):
        learn_recipe(recipe, again, given, tmp_path, configs)
    with pytest.raises(UserError, match="there are 2 configurations for 3 rounds"):
        learn_recipe(recipe, again, given, tmp_path / "x", configs * 2)


# Interruption.


def outcome(folder: Path) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """All that a round has left but clocks: metrics, and the content of every other file."""
    kept = [path for path in sorted(folder.rglob("*.jsonl")) if "fit" not in path.parts]
    return records(folder), {str(path.relative_to(folder)): path.read_bytes() for path in kept}


@pytest.mark.parametrize("name", ["rest-em", "dpo"])
def test_a_round_that_was_stopped_anywhere_goes_on_exactly(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proposing, "SHARD", 18)  # three files an iteration
    row = replace(REST_EM if name == "rest-em" else ROUNDS["dpo"], attempts=6, iterations=2, epochs=2, decoding=SHORT)
    if name == "rest-em":  # whose policy is validated once more, before all else
        validate = learning.validate

        def rising(path: Path, *rest: Any) -> float:
            validate(path, *rest)
            return {"base": 0.1, "0": 0.2, "1": 0.3}[path.parent.name]

        monkeypatch.setattr(learning, "validate", rising)
    straight = speller()
    learn(row, straight, VOWELS, tmp_path / "straight", CONFIG, progress=False)
    expected, weights = outcome(tmp_path / "straight"), weights_of(straight.model)
    assert len(expected[1]) >= 8  # of three files and a validation, twice
    for at in (0, 2, 3, 5, 7):
        failing = speller()
        failing = replace(failing, sampler=FailingSampler(failing.model, at))
        with pytest.raises(Stop):
            learn(row, failing, VOWELS, tmp_path / str(at), CONFIG, progress=False)
        again = speller()
        learn(row, again, VOWELS, tmp_path / str(at), CONFIG, resume=True, progress=False)
        assert outcome(tmp_path / str(at)) == expected
        assert all(torch.equal(value, weights[name]) for name, value in weights_of(again.model).items())


def test_a_finished_round_is_found_finished(warm: dict[str, torch.Tensor], tmp_path: Path) -> None:
    policy, again = policy_with(warm), policy_with(warm)
    row = replace(DISTIL, epochs=1)
    end = learn(row, policy, material(), tmp_path, CONFIG, progress=False)
    assert learn(row, again, material(), tmp_path, CONFIG, resume=True, progress=False) == end
    assert again.sampler.calls == 0  # type: ignore[union-attr]
    assert all(torch.equal(value, weights_of(policy.model)[name]) for name, value in weights_of(again.model).items())


# Errors.


def test_all_wrong_attempts_are_kept_and_it_is_said_what_to_change(tmp_path: Path) -> None:
    policy = policy_with()  # which has learned nothing yet
    with pytest.raises(UserError, match=r"none of the 400 attempts of iteration 0 is right.*take easier problems"):
        learn(REST_EM, policy, material(), tmp_path, CONFIG, progress=False)
    assert len(load_judged(tmp_path / "0" / "attempts" / "00000.jsonl")) == 400
    row = replace(ROUNDS["dpo"], attempts=2, decoding=SHORT)
    with pytest.raises(UserError, match=r"is right where another at its problem is wrong"):
        learn(row, policy, material(), tmp_path / "dpo", CONFIG, progress=False)


class LaterWrong(ToySampler):
    """Draws from the model once; from then on every attempt is wrong."""

    def sample(self, prompts: Sequence[str], decoding: Decoding, ledger: Any = None) -> list[Attempt]:
        drawn = super().sample(prompts, decoding)
        return drawn if self.calls == len(prompts) else [replace(one, text="=b.") for one in drawn]


def test_a_round_that_cannot_go_on_leaves_its_last_iteration(tmp_path: Path) -> None:
    row = replace(REST_EM, until_worse=False)
    policy = speller()
    policy = replace(policy, sampler=LaterWrong(policy.model))
    with pytest.raises(CannotGoOn, match="attempts of iteration 1 is right"):
        learn(row, policy, replace(VOWELS, validation=()), tmp_path, CONFIG, progress=False)
    kept = load_checkpoint(tmp_path / "0" / "fit" / "checkpoint").model
    assert all(torch.equal(value, kept[name]) for name, value in weights_of(policy.model).items())


class Pressed(ToySampler):
    """Draws from the model once; then Ctrl-C is pressed."""

    def sample(self, prompts: Sequence[str], decoding: Decoding, ledger: Any = None) -> list[Attempt]:
        if self.calls:
            torch.nn.init.zeros_(self.model.lm_head.weight)  # type: ignore[arg-type,union-attr]  # amid a step
            raise KeyboardInterrupt
        return super().sample(prompts, decoding)


@pytest.mark.parametrize("name", ["rest-em", "grpo"])
def test_an_interruption_while_attempts_are_drawn_leaves_the_last_iteration(name: str, tmp_path: Path) -> None:
    few = {"attempts": 4, "decoding": SHORT, "problems": 4, "iterations": 2}
    row = replace(REST_EM, until_worse=False, **few) if name == "rest-em" else replace(ROUNDS["grpo"], **few)
    policy, config = speller(), replace(CONFIG, save_every=1, accumulation=1)
    policy = replace(policy, sampler=Pressed(policy.model))
    with pytest.raises(KeyboardInterrupt):
        learn(row, policy, replace(VOWELS, validation=()), tmp_path, config, progress=False)
    [place] = tmp_path.rglob("fit/checkpoint")
    kept = load_checkpoint(place).model
    assert all(torch.equal(value, kept[name]) for name, value in weights_of(policy.model).items())


def test_a_fit_that_diverges_leaves_its_last_step(warm: dict[str, torch.Tensor], tmp_path: Path) -> None:
    policy = policy_with(warm)
    with pytest.raises(CannotGoOn, match=r"diverged at step \d+: the (loss|gradient norm) is (nan|inf)"):
        learn(DISTIL, policy, material(), tmp_path, replace(CONFIG, learning_rate=1e30, clip_norm=None), progress=False)
    kept = load_checkpoint(tmp_path / "0" / "fit" / "checkpoint")
    assert all(torch.equal(value, kept.model[name]) for name, value in weights_of(policy.model).items())


@pytest.mark.parametrize(
    ("row", "changes", "message"),
    [
        (DISTIL, {"teacher": None}, "round distil needs a teacher and has been given none"),
        (REST_EM, {"problems": ()}, "round rest-em needs problems and has been given none"),
        (REST_EM, {"validation": ()}, "needs problems for validation, or until_worse=false"),
        (ROUNDS["journey"], {}, "round journey needs pairs of prompts and completions"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_done(
    row: Round, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        learn(row, policy_with(), material(**changes), tmp_path / "new", CONFIG)
    assert not (tmp_path / "new").exists()


def test_a_run_that_was_refused_leaves_its_folder_to_the_next(tmp_path: Path) -> None:
    row = replace(ROUNDS["grpo"], problems=3, attempts=2)
    with pytest.raises(UserError, match="has 6 attempts, which cannot be cut into 4 x 1 equal parts"):
        learn(row, speller(), VOWELS, tmp_path / "new", with_changes(accumulation=4), progress=False)
    assert not (tmp_path / "new").exists()


def test_a_refusal_of_the_sampler_leaves_the_folder_to_the_next(tmp_path: Path) -> None:
    class Narrow(ToySampler):
        refused = False

        def sample(self, prompts: Sequence[str], decoding: Decoding, ledger: Any = None) -> list[Attempt]:
            if not self.refused:
                self.refused = True
                raise UserError("the prompt is too long")
            return super().sample(prompts, decoding)

    policy = speller()
    policy = replace(policy, sampler=Narrow(policy.model))
    given, row = replace(VOWELS, validation=()), replace(ROUNDS["grpo"], iterations=1, problems=2, decoding=SHORT)
    with pytest.raises(UserError, match="the prompt is too long"):
        learn(row, policy, given, tmp_path, CONFIG, progress=False)
    assert not (tmp_path / "round.json").exists()
    learn(replace(row, attempts=4), policy, given, tmp_path, CONFIG, progress=False)
    assert len(records(tmp_path)) == 1


def test_a_policy_without_a_sampler_cannot_propose(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs a sampler of the policy"):
        learn(REST_EM, Policy(make_policy(), TOKENIZER), material(), tmp_path, CONFIG)


def test_a_folder_of_another_round_is_refused(warm: dict[str, torch.Tensor], tmp_path: Path) -> None:
    row = replace(DISTIL, epochs=1)
    learn(row, policy_with(warm), material(), tmp_path, CONFIG, progress=False)

    def go_on(round_: Round = row, given: Material | None = None, weights: Any = warm, config: Any = CONFIG) -> None:
        learn(round_, policy_with(weights), given or material(), tmp_path, config, resume=True, progress=False)

    go_on(config=replace(CONFIG, save_every=3))  # which decides nothing
    with pytest.raises(UserError, match="is another one: round.epochs was 1, now 2; take the same"):
        go_on(replace(row, epochs=2))
    with pytest.raises(UserError, match="its weights differ"):
        go_on(weights=None)
    with pytest.raises(UserError, match="its problems, validation differ"):
        go_on(given=material(problems=PROBLEMS[:9], validation=PROBLEMS[9:]))
    with pytest.raises(UserError, match="is another one: config.learning_rate was 0.005, now 1.0; take"):
        go_on(config=replace(CONFIG, learning_rate=1.0))
    with pytest.raises(UserError, match="its rewards differ"):
        go_on(given=material(rewards=[accuracy_reward(TASK, FORMAT)]))
    with pytest.raises(UserError, match="already has a round: go on with --resume"):
        learn(row, policy_with(warm), material(), tmp_path, CONFIG)
    with pytest.raises(UserError, match="there is no round in .* to resume; start without --resume"):
        learn(row, policy_with(warm), material(), tmp_path / "new", CONFIG, resume=True)
    path = tmp_path / "round.json"
    path.write_text(path.read_text().replace("mnemonist-round/3", "mnemonist-round/1"))
    with pytest.raises(UserError, match="was begun by another version of mnemonist; finish it with that one"):
        go_on()
    path.write_text("{")
    with pytest.raises(UserError, match=r"round.json is damaged"):
        go_on()


def test_other_rewards_and_other_teachers_are_another_round(warm: dict[str, torch.Tensor], tmp_path: Path) -> None:
    def teacher(weights: Any) -> Material:
        return material(teacher=policy_with(weights).sampler, validation=())

    def paid(worth: float) -> Material:
        return material(rewards=[accuracy_reward(TASK, FORMAT), format_reward(FORMAT, worth)], validation=())

    row, draws = replace(DISTIL, epochs=1), replace(SHORT, temperature=0.9)
    for name, one, other in (("teacher", teacher(warm), teacher(None)), ("rewards", paid(0.5), paid(0.1))):
        chosen = replace(row, attempts=8, decoding=draws)
        learn(chosen, policy_with(warm), one, tmp_path / name, CONFIG, progress=False)
        learn(chosen, policy_with(warm), one, tmp_path / name, CONFIG, resume=True, progress=False)
        with pytest.raises(UserError, match=f"its {name} differ"):
            learn(chosen, policy_with(warm), other, tmp_path / name, CONFIG, resume=True, progress=False)


def test_a_damaged_file_of_attempts_is_refused(warm: dict[str, torch.Tensor], tmp_path: Path) -> None:
    row = replace(DISTIL, epochs=1)
    learn(row, policy_with(warm), material(), tmp_path, CONFIG, progress=False)
    path = tmp_path / "0" / "attempts" / "00000.jsonl"
    path.write_text(path.read_text()[:-30])
    with pytest.raises(UserError, match=r"00000.jsonl is damaged at line 25 .*; delete it to sample again"):
        learn(row, policy_with(warm), material(), tmp_path, CONFIG, resume=True, progress=False)
