"""On-policy distillation: the policy writes, and comes to write what its teacher would have written in its place."""

from __future__ import annotations

import functools
import tempfile
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
    speller_weights,
    with_changes,
)

from mnemonist.errors import UserError
from mnemonist.reasoning.attempts import Attempt, Decoding
from mnemonist.reasoning.completions import RowMaker, logits_of, stack
from mnemonist.reasoning.fitting import likelihood_fit
from mnemonist.reasoning.learning import learn
from mnemonist.reasoning.losses import divergence
from mnemonist.reasoning.prompting import InContext
from mnemonist.reasoning.proposing import Material, Policy, Solver
from mnemonist.reasoning.round_folder import put_weights, weights_of
from mnemonist.reasoning.rounds import ROUNDS, Round
from mnemonist.reasoning.sampling import LocalSampler
from mnemonist.reasoning.token_teacher import TokenTeacher
from mnemonist.reasoning.weighing import load_judged
from mnemonist.training import load_checkpoint, train

TASK = VowelTask()
PROBLEMS = problems_of(TASK, 8)
SHOWN = replace(FORMAT, before="!", name="shown")
CONFIG = with_changes(learning_rate=3e-3, save_every=3)


@functools.cache
def teacher_weights() -> dict[str, torch.Tensor]:
    """Of a model that answers "a" where it is shown a mark, and any letter where it is not."""
    model, maker = make_policy(), RowMaker(TOKENIZER)
    put_weights(model, speller_weights())
    rows = [maker.of_text(SHOWN.prompt(question), "=a.") for question in "abcdefgh" for _ in range(8)]
    rows += [maker.of_text(FORMAT.prompt(question), f"={letter}.") for question in "abcdefgh" for letter in "abcdefgh"]
    config = with_changes(batch_size=64, steps=120)
    with tempfile.TemporaryDirectory() as folder:
        train(model, *likelihood_fit(rows, config), config, folder, progress=False)
    return weights_of(model)


def teacher() -> InContext:
    model = make_policy()
    put_weights(model, teacher_weights())
    return InContext(LocalSampler(model, TOKENIZER), FORMAT, SHOWN)


def material() -> Material:
    return Material(TASK, FORMAT, PROBLEMS, teacher=teacher())


def row(**changes: Any) -> Round:
    known: dict[str, Any] = {"iterations": 4, "problems": 16, "decoding": Decoding(max_tokens=6)}
    return replace(ROUNDS["on-policy-distil"], **{**known, **changes})


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_the_policy_comes_to_write_what_its_teacher_would(beta: float, tmp_path: Path) -> None:
    """Without being shown what the teacher is: a context is distilled into weights."""
    policy = speller()
    learn(row(iterations=30, divergence=beta), policy, material(), tmp_path, CONFIG, progress=False)
    found = records(tmp_path)
    assert found[0]["kl"] > 0.1 and found[-1]["kl"] < 0.25 * found[0]["kl"]
    assert found[0]["accuracy"] < 0.6 and sum(one["accuracy"] for one in found[-5:]) / 5 > 0.75
    assert found[-1]["entropy"] < 0.6 * found[0]["entropy"]
    assert {one["clipped"] for one in found} == {0.0}


def test_the_loss_is_the_divergence_at_every_token_that_was_written(tmp_path: Path) -> None:
    temperature = 1.3
    choices = row(iterations=1, problems=5, divergence=0.5, decoding=Decoding(max_tokens=6, temperature=temperature))
    learn(choices, speller(), material(), tmp_path, replace(CONFIG, batch_size=2), progress=False)
    policy, judge, apart = speller().model, teacher().sampler.model.eval(), []  # type: ignore[attr-defined]
    for one in load_judged(tmp_path / "attempts" / "000000.jsonl"):
        question = FORMAT.question_in(one.attempt.prompt)
        shown = [int(token) for token in TOKENIZER.encode(SHOWN.prompt(question), bos=True)]
        with torch.no_grad():
            for n, _ in enumerate(one.attempt.ids):
                written = one.attempt.ids[:n]
                ours = policy(torch.tensor([[*one.attempt.prompt_ids, *written]])).logits[0, -1] / temperature
                theirs = judge(torch.tensor([[*shown, *written]])).logits[0, -1] / temperature
                apart.append(divergence(ours.log_softmax(-1)[None], theirs.log_softmax(-1)[None], 0.5))
    assert records(tmp_path)[0]["kl"] == pytest.approx(float(torch.cat(apart).mean()), rel=1e-4)
    assert records(tmp_path)[0]["loss"] == pytest.approx(float(torch.cat(apart).mean()), rel=1e-4)


def test_the_teacher_stays_as_it_was(tmp_path: Path) -> None:
    given = material()
    model = given.teacher.sampler.model  # type: ignore[union-attr]
    model.train()
    learn(row(), speller(), given, tmp_path, CONFIG, progress=False)
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, teacher_weights()[name]) for name, value in weights_of(model).items())


def test_logits_beyond_the_tokens_are_left_out() -> None:
    """Families have models of one tokenizer whose logits are padded to different widths."""
    policy, given = speller(), material()
    given.teacher.sampler.model.resize_token_embeddings(TOKENIZER.vocab_size + 61)  # type: ignore[union-attr]
    choices = row()
    wide, narrow = TokenTeacher(choices, policy, given), TokenTeacher(choices, policy, material())
    maker = RowMaker(TOKENIZER)
    losses = []
    for one in (wide, narrow):
        one._prompts = {maker.of_text("b\n", "").prompt: maker.of_text("!b\n", "").prompt}
        batch = one.stack([maker.of_text("b\n", "=a."), replace(maker.of_text("b\n", "=e"), counts=False)])
        losses.append(one.loss(policy.model, batch))
    assert losses[0][0].loss.item() == pytest.approx(losses[1][0].loss.item(), rel=1e-5)
    assert losses[0][0].targets == losses[1][0].targets == 4  # what does not count has no part in it
    assert logits_of(policy.model, stack([maker.of_text("b\n", "=a.")]))[0].shape[0] == 4


def test_a_run_that_was_killed_goes_on_exactly(tmp_path: Path) -> None:
    def outcome(folder: Path) -> tuple[Any, ...]:
        attempts = {path.name: path.read_bytes() for path in sorted((folder / "attempts").iterdir())}
        return records(folder), attempts

    choices = row(iterations=5, minibatches=2, problems=8)
    learn(choices, speller(dropout=0.2), material(), tmp_path / "straight", CONFIG, progress=False)
    for at in (0, 2, 4):
        folder, failing = tmp_path / str(at), speller(dropout=0.2)
        with pytest.raises(Stop):
            stopped = replace(failing, sampler=FailingSampler(failing.model, at))
            learn(choices, stopped, material(), folder, CONFIG, progress=False)
        learn(choices, speller(dropout=0.2), material(), folder, CONFIG, progress=False, resume=True)
        assert outcome(folder) == outcome(tmp_path / "straight")
        one, other = (load_checkpoint(place / "fit" / "checkpoint").model for place in (folder, tmp_path / "straight"))
        assert all(torch.equal(one[name], other[name]) for name in other)


def test_another_teacher_is_another_round(tmp_path: Path) -> None:
    learn(row(iterations=1), speller(), material(), tmp_path, CONFIG, progress=False)
    other = replace(material(), teacher=LocalSampler(make_policy(seed=3), TOKENIZER))
    with pytest.raises(UserError, match="its teacher differ"):
        learn(row(iterations=1), speller(), other, tmp_path, CONFIG, progress=False, resume=True)


# Refusals.


def test_a_teacher_must_tell_what_it_thinks_of_every_token(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="on-policy-distil needs a teacher and has been given none"):
        learn(row(), speller(), Material(TASK, FORMAT, PROBLEMS), tmp_path, CONFIG, progress=False)
    sums = SumTask()
    solver = Solver(sums, problems_of(sums, 4), FORMAT)
    for silent in (solver, ToySampler(make_policy()), InContext(ToySampler(make_policy()), FORMAT, SHOWN)):
        given = replace(material(), teacher=silent)
        with pytest.raises(UserError, match="asks its teacher about every token, which only a model in this process"):
            TokenTeacher(row(), speller(), given)


def test_a_teacher_must_read_the_same_tokens(tmp_path: Path) -> None:
    class Shifted:
        end_ids = frozenset({0})

        def encode(self, text: str) -> list[int]:
            return [1 + byte for byte in text.encode()]

        def decode(self, ids: Sequence[int]) -> str:
            return bytes(token - 1 for token in ids).decode()

    given = replace(material(), teacher=LocalSampler(make_policy(), Shifted()))
    with pytest.raises(UserError, match="reads other tokens than the policy.*take a teacher of the same family"):
        learn(row(), speller(), given, tmp_path / "new", CONFIG, progress=False)
    assert not (tmp_path / "new").exists()


def test_a_teacher_must_have_room_for_what_it_is_shown(tmp_path: Path) -> None:
    shown = replace(FORMAT, before="!" * 60, name="long")
    given = replace(material(), teacher=InContext(teacher().sampler, FORMAT, shown))
    with pytest.raises(UserError, match=r"an attempt at toy-vowel.* has 6\d tokens with its prompt, and the teacher"):
        learn(row(decoding=Decoding(max_tokens=4)), speller(), given, tmp_path, CONFIG, progress=False)


def test_any_sampler_may_draw_even_one_without_log_probabilities(tmp_path: Path) -> None:
    class Silent(ToySampler):
        def sample(self, prompts: Sequence[str], decoding: Decoding, ledger: Any = None) -> list[Attempt]:
            return [replace(one, log_probs=()) for one in super().sample(prompts, decoding)]

    policy = speller()
    silent = Policy(policy.model, TOKENIZER, Silent(policy.model))
    learn(row(iterations=1), silent, material(), tmp_path, CONFIG, progress=False)
    assert records(tmp_path)[0]["kl"] > 0
