"""Our losses and TRL's on the same batch, by TRL's own trainers; skipped where TRL is not installed.

Run as a program (`python tests/reasoning/test_trl.py`), it prints the values that `test_losses` has pinned.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import loss_cases
import pytest
import torch
from loss_cases import CASES, DIVERGENCES, LENGTHS, LIMIT, REWARDS
from torch import Tensor
from toy_policies import TOKENIZER, make_policy

from mnemonist.reasoning.advantages import advantages, overlong_penalty
from mnemonist.reasoning.completions import Row, RowMaker, read, stack
from mnemonist.reasoning.losses import (
    divergence,
    policy_losses,
    preference_loss,
    sum_over_attempts,
    weighted_likelihood,
)
from mnemonist.reasoning.objective import PolicyObjective

trl = pytest.importorskip("trl", reason="TRL is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's own are not ours to keep

PAIRS = [("2+1\n", "=3."), ("4+4\n", "4\n4\n=8."), ("0+0\n", "=0."), ("1+2\n", "3\n=3.")]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return hugging_face_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def hugging_face_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    TOKENIZER.save(folder)
    # TRL writes the end mark as text, which ours takes for text unless told otherwise.
    return AutoTokenizer.from_pretrained(folder, split_special_tokens=False)


def grpo_trainer(objective: PolicyObjective, tokenizer: Any, folder: Path, **more: Any) -> Any:
    """TRL's trainer with the same choices over a tiny model, ready to be asked for its loss."""
    from datasets import Dataset

    settings = {**loss_cases.trl_settings(objective), "num_generations": 2, "per_device_train_batch_size": 4, **more}
    config = trl.GRPOConfig(str(folder), use_cpu=True, bf16=False, report_to=[], save_strategy="no", **settings)
    given = dict(zip(("a", "b", "c", "d"), REWARDS, strict=True))

    def reward(completions: list[str], **columns: Any) -> list[float]:
        return [given[text[0]] for text in completions]

    policy = make_policy()
    policy.save_pretrained(folder / "policy")  # TRL reads the reference from where the policy came from
    policy.config._name_or_path = str(folder / "policy")
    trainer = trl.GRPOTrainer(
        policy,
        reward,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": ["x", "y"]}),
        processing_class=tokenizer,
    )
    trainer.model.eval()
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def trl_policy_loss(objective: PolicyObjective, tokenizer: Any, folder: Path) -> tuple[float, Tensor]:
    """TRL's loss of the pinned batch and its gradient by log-probabilities, advantages included."""
    trainer = grpo_trainer(objective, tokenizer, folder)
    given = loss_cases.log_probs()
    policy = given["policy"].clone().requires_grad_()
    trainer._get_per_token_logps_and_entropies = lambda *a, **k: (policy, torch.zeros_like(policy), None)
    mask = loss_cases.mask().long()
    inputs = {
        "prompt_ids": torch.ones(4, 1, dtype=torch.long),
        "prompt_mask": torch.ones(4, 1, dtype=torch.long),
        "completion_ids": mask,
        "completion_mask": mask,
        "advantages": trl_advantages(trainer),
        "old_per_token_logps": given["old"],
        "ref_per_token_logps": given["reference"],
        "num_items_in_batch": mask.sum(),
    }
    loss = trainer._compute_loss(trainer.model, inputs)
    return float(loss), torch.autograd.grad(loss, policy)[0]


def trl_advantages(trainer: Any) -> Tensor:
    """What TRL makes of the pinned rewards."""
    trainer.model.train()
    ids = [[ord(letter), TOKENIZER.eos_id] for letter in "abcd"]
    trainer._generate = lambda prompts: ([[1]] * 4, ids, None, list("abcd"), None, {}, None, None)
    found = trainer._generate_and_score_completions([{"prompt": text} for text in "xxyy"])["advantages"]
    trainer.model.eval()
    return found


def our_policy_loss(objective: PolicyObjective) -> tuple[float, Tensor]:
    given, mask = loss_cases.log_probs(), loss_cases.mask()
    policy = given["policy"].clone().requires_grad_()
    advantages_B = advantages(torch.tensor(REWARDS).view(2, 2), objective.advantage).flatten()
    losses = policy_losses(policy, given["old"], advantages_B, mask, objective, given["reference"])
    total = sum_over_attempts(losses.loss_BT, mask, objective.length, LIMIT)
    loss = total.loss / total.targets
    return float(loss), torch.autograd.grad(loss, policy)[0]


@pytest.mark.parametrize("case", CASES)
def test_policy_losses_and_their_gradients_equal_trls(case: str, tokenizer: Any, tmp_path: Path) -> None:
    theirs, their_gradient = trl_policy_loss(CASES[case], tokenizer, tmp_path)
    ours, gradient = our_policy_loss(CASES[case])
    assert ours == pytest.approx(theirs, abs=1e-5)
    torch.testing.assert_close(gradient, their_gradient, rtol=1e-5, atol=1e-6)
    assert gradient.abs().max() > 1e-3


@pytest.mark.parametrize("case", ["grpo", "dapo", "gspo"])
def test_through_a_whole_model_they_have_the_same_gradients(case: str, tokenizer: Any, tmp_path: Path) -> None:
    """From tokens on: padding left of the prompts there and right of all here, one temperature for both."""
    objective, temperature = CASES[case], 0.7
    trainer = grpo_trainer(objective, tokenizer, tmp_path, temperature=temperature)
    model = trainer.model
    rows = [Row((256, *b"2+1"[: 1 + i]), tuple(b"=34567"[: LENGTHS[i]])) for i in range(4)]
    given, widest = loss_cases.log_probs(), max(len(row.prompt) for row in rows)
    inputs: dict[str, Any] = {
        "prompt_ids": torch.tensor([(TOKENIZER.pad_id,) * (widest - len(r.prompt)) + r.prompt for r in rows]),
        "prompt_mask": torch.tensor([[0] * (widest - len(r.prompt)) + [1] * len(r.prompt) for r in rows]),
        "completion_ids": torch.tensor([(*r.completion, *[TOKENIZER.pad_id] * (6 - len(r.completion))) for r in rows]),
        "completion_mask": loss_cases.mask().long(),
        "advantages": torch.tensor([0.7, -0.7, 0.6, -0.5]),
        "num_items_in_batch": loss_cases.mask().sum(),
    }
    with torch.no_grad():
        opinion = read(model, stack(rows), temperature)
    drawn = [opinion.log_probs_BT[i][opinion.mask_BT[i] > 0] for i in range(4)]
    old = torch.zeros(4, 6)
    for i, own in enumerate(drawn):
        old[i, : len(own)] = own + 0.3 * given["old"][i, : len(own)].sin()
    inputs |= {"old_per_token_logps": old, "ref_per_token_logps": old + 0.1}
    loss = trainer._compute_loss(model, inputs)
    loss.backward()
    theirs = [parameter.grad.clone() for parameter in model.parameters()]

    model.zero_grad()
    batch = stack([Row(r.prompt, r.completion, 1.0, tuple(old[i, : LENGTHS[i]].tolist())) for i, r in enumerate(rows)])
    opinion = read(model, batch, temperature)
    losses = policy_losses(
        opinion.log_probs_BT, batch["old"], inputs["advantages"], opinion.mask_BT, objective, batch["old"] + 0.1
    )
    total = sum_over_attempts(losses.loss_BT, opinion.mask_BT, objective.length, LIMIT)
    ours = total.loss / total.targets
    ours.backward()
    assert float(ours) == pytest.approx(float(loss), abs=1e-5)
    for parameter, gradient in zip(model.parameters(), theirs, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_attempts_that_were_cut_off_are_left_out_as_in_trl(tokenizer: Any, tmp_path: Path) -> None:
    trainer = grpo_trainer(loss_cases.OBJECTIVES["dapo"], tokenizer, tmp_path)
    trainer.model.train()
    ids = [
        [ord("a"), TOKENIZER.eos_id],
        [ord("b"), 5, 6],
        [ord("c"), TOKENIZER.eos_id],
        [ord("d"), 7, TOKENIZER.eos_id],
    ]
    trainer._generate = lambda prompts: ([[1]] * 4, ids, None, list("abcd"), None, {}, None, None)
    out = trainer._generate_and_score_completions([{"prompt": text} for text in "xxyy"])
    assert out["completion_mask"].sum(-1).tolist() == [2, 0, 2, 3]
    assert int(out["num_items_in_batch"]) == 7


def test_the_punishment_of_long_attempts_is_trls() -> None:
    from trl.rewards import get_soft_overlong_punishment

    theirs = get_soft_overlong_punishment(20, 4)([[1] * n for n in range(1, 22)])
    assert [-overlong_penalty(n, 20, 0.2) for n in range(1, 22)] == pytest.approx(theirs, abs=1e-12)


def test_preference_losses_equal_trls(tokenizer: Any, tmp_path: Path) -> None:
    loss, gradient = trl_preference_loss(tokenizer, tmp_path)
    policy, reference = preference_inputs()
    total = preference_loss(*policy.sum(-1).chunk(2), *reference, beta=0.1)
    assert float(total.loss / total.targets) == pytest.approx(loss, abs=1e-5)
    torch.testing.assert_close(torch.autograd.grad(total.loss / total.targets, policy)[0], gradient)


def preference_inputs() -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Log-probabilities of two right completions, then two wrong ones; and of the reference, for whole ones."""
    policy = (loss_cases.log_probs()["policy"] * loss_cases.mask()).requires_grad_()
    reference = (loss_cases.log_probs()["reference"] * loss_cases.mask()).sum(-1)
    return policy, (reference[:2], reference[2:])


def trl_preference_loss(tokenizer: Any, folder: Path) -> tuple[float, Tensor]:
    from datasets import Dataset

    config = trl.DPOConfig(str(folder), beta=0.1, use_cpu=True, bf16=False, report_to=[], precompute_ref_log_probs=True)
    data = Dataset.from_dict({"prompt": ["x"], "chosen": ["a"], "rejected": ["b"]})
    trainer = trl.DPOTrainer(make_policy(), args=config, train_dataset=data, processing_class=tokenizer)
    policy, reference = preference_inputs()
    padded = torch.cat([torch.zeros(4, 1), loss_cases.mask()], 1)  # the first token has no prediction
    unused = torch.zeros(4, 6)  # what TRL logs beside the loss

    def model(**inputs: Any) -> Any:
        return SimpleNamespace(log_probs=policy, entropy=unused, mean_logits=unused, is_top1=unused.bool())

    inputs = {
        "input_ids": padded.long(),
        "attention_mask": torch.ones(4, 7, dtype=torch.long),
        "completion_mask": padded.long(),
        "ref_chosen_logps": reference[0],
        "ref_rejected_logps": reference[1],
    }
    loss = trainer._compute_loss(model, inputs, return_outputs=False)
    return float(loss), torch.autograd.grad(loss, policy)[0]


def test_the_likelihood_of_completions_equals_trls(tokenizer: Any, tmp_path: Path) -> None:
    """From texts on: TRL tokenizes, adds the end mark and masks prompts; so do we."""
    loss, model = trl_likelihood(tokenizer, tmp_path)
    maker = RowMaker(TOKENIZER)
    batch = stack([maker.of_text(*pair) for pair in PAIRS])
    opinion = read(model, batch)
    total = weighted_likelihood(opinion.log_probs_BT, opinion.mask_BT, batch["weights"])
    assert float(total.loss / total.targets) == pytest.approx(loss, abs=1e-5)


def trl_likelihood(tokenizer: Any, folder: Path) -> tuple[float, Any]:
    from datasets import Dataset

    config = trl.SFTConfig(
        str(folder),
        use_cpu=True,
        bf16=False,
        report_to=[],
        completion_only_loss=True,
        per_device_train_batch_size=4,
        dataloader_pin_memory=False,
    )
    data = Dataset.from_list([{"prompt": prompt, "completion": completion} for prompt, completion in PAIRS])
    trainer = trl.SFTTrainer(make_policy(), args=config, train_dataset=data, processing_class=tokenizer)
    trainer.model.eval()
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        return float(trainer.compute_loss(trainer.model, batch)), trainer.model


@pytest.mark.parametrize("beta", DIVERGENCES)
def test_divergences_from_a_teacher_equal_trls(beta: float) -> None:
    policy, teacher = loss_cases.logits()
    policy.requires_grad_()
    ours = divergence((policy / 0.7).log_softmax(-1), (teacher / 0.7).log_softmax(-1), beta).mean()
    theirs = trl_divergence(policy, teacher, beta, 0.7)
    assert float(ours) == pytest.approx(float(theirs), abs=1e-6)
    torch.testing.assert_close(*(torch.autograd.grad(loss, policy)[0] for loss in (ours, theirs)), rtol=1e-5, atol=1e-7)


def trl_divergence(policy: Tensor, teacher: Tensor, beta: float, temperature: float = 1.0) -> Tensor:
    from trl.experimental.gkd import GKDTrainer

    return GKDTrainer.generalized_jsd_loss(policy, teacher, beta=beta, temperature=temperature)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        marks = hugging_face_tokenizer(Path(place))
        values = {name: round(trl_policy_loss(row, marks, Path(place))[0], 7) for name, row in CASES.items()}
        values["preference"] = round(trl_preference_loss(marks, Path(place))[0], 7)
        values["likelihood"] = round(trl_likelihood(marks, Path(place))[0], 7)
        values["divergences"] = [round(float(trl_divergence(*loss_cases.logits(), beta)), 7) for beta in DIVERGENCES]
        print(json.dumps({"trl": trl.__version__, **values}, indent=1))
