"""A policy, a sampler and tasks of a moment for the tests of learning from one's own attempts."""

from __future__ import annotations

import functools
import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mnemonist.data import ByteTokenizer
from mnemonist.reasoning.attempts import Attempt, Decoding
from mnemonist.reasoning.completions import RowMaker
from mnemonist.reasoning.fitting import likelihood_fit
from mnemonist.reasoning.formats import Format
from mnemonist.reasoning.ledger import Ledger
from mnemonist.reasoning.proposing import Policy
from mnemonist.reasoning.round_folder import put_weights, weights_of
from mnemonist.reasoning.tasks.task import Problem, Split, StepLabel, Verdict
from mnemonist.training import TrainingConfig, train

TOKENIZER = ByteTokenizer()
FORMAT = Format("toy", after="\n", open_answer="=", close_answer=".")
CONFIG = TrainingConfig(
    steps=1000,
    batch_size=16,
    warmup_steps=0,
    learning_rate=5e-3,
    weight_decay=0.0,
    save_every=10,
    log_every=1,
    device="cpu",
)


def make_policy(width: int = 32, layers: int = 2, seed: int = 0, dropout: float = 0.0) -> LlamaForCausalLM:
    """A transformer of some 50 thousand parameters that reads bytes."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=TOKENIZER.vocab_size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        attention_dropout=dropout,
        bos_token_id=TOKENIZER.bos_id,
        eos_token_id=TOKENIZER.eos_id,
        pad_token_id=TOKENIZER.pad_id,
        attn_implementation="eager",
    )
    return LlamaForCausalLM(config)


class ToySampler:
    """Reads everything again for every token; each prompt has a generator of its own."""

    name = "toy"

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.calls = 0
        """Prompts that were sampled so far."""

    @torch.no_grad()
    def sample(self, prompts: Sequence[str], decoding: Decoding, ledger: Ledger | None = None) -> list[Attempt]:
        self.model.eval()
        self.calls += len(prompts)
        draws = [torch.Generator().manual_seed(_mix(decoding.seed, i)) for i in range(len(prompts))]
        read = [[int(token) for token in TOKENIZER.encode(prompt, bos=True)] for prompt in prompts]
        rows, log_probs = [list(row) for row in read], [[] for _ in prompts]
        open_rows = list(range(len(prompts)))
        for _ in range(decoding.max_tokens):
            logits = self._last_logits([rows[i] for i in open_rows])
            log_p = torch.log_softmax(logits / (decoding.temperature or 1.0), -1)
            for place, i in enumerate(open_rows):
                token = _draw(log_p[place], decoding, draws[i])
                rows[i].append(token)
                log_probs[i].append(float(log_p[place, token]))
            open_rows = [i for i in open_rows if rows[i][-1] != TOKENIZER.eos_id]
            if not open_rows:
                break
        attempts = []
        for i, prompt in enumerate(prompts):
            ids = rows[i][len(read[i]) :]
            finish: Any = "end" if ids[-1] == TOKENIZER.eos_id else "length"
            text = TOKENIZER.decode(ids)
            attempts.append(Attempt(prompt, text, tuple(read[i]), tuple(ids), tuple(log_probs[i]), len(ids), finish))
        return attempts

    def _last_logits(self, rows: list[list[int]]) -> torch.Tensor:
        width = max(map(len, rows))
        tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        logits = self.model(input_ids=tokens, attention_mask=mask).logits
        return logits[torch.arange(len(rows)), torch.tensor([len(row) - 1 for row in rows])].float()


class Stop(Exception):
    """A crash, as far as anyone can tell."""


class FailingSampler(ToySampler):
    """Crashes when asked for the so-many-th time."""

    def __init__(self, model: torch.nn.Module, at: int) -> None:
        super().__init__(model)
        self.left = at

    def sample(self, prompts: Sequence[str], decoding: Decoding, ledger: Ledger | None = None) -> list[Attempt]:
        self.left -= 1
        if self.left < 0:
            raise Stop
        return super().sample(prompts, decoding)


def _draw(log_p: torch.Tensor, decoding: Decoding, generator: torch.Generator) -> int:
    if decoding.temperature == 0:
        return int(log_p.argmax())
    return int(torch.multinomial(log_p.exp(), 1, generator=generator))


def _mix(*numbers: int) -> int:
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:7], "big")


@dataclass(frozen=True)
class SumTask:
    """Sums of small digits: ``2+1`` is 3. Its steps are running totals."""

    largest: int = 4
    name: str = "toy-sum"
    difficulties: tuple[int, ...] = (2,)

    def problem(self, split: Split, difficulty: int, index: int) -> Problem:
        one, other = divmod(index % (self.largest + 1) ** 2, self.largest + 1)
        facts = {"numbers": [one, other]}
        return Problem(self.name, split, difficulty, index, f"{one}+{other}", str(one + other), facts)

    def judge(self, problem: Problem, answer: str) -> Verdict:
        if not answer.isdecimal():
            return Verdict(False, parsed=False, reason="it is no number")
        return Verdict(answer == problem.answer, reason="" if answer == problem.answer else "another number")

    def solution(self, problem: Problem) -> list[str]:
        return [problem.answer]

    def moves(self, problem: Problem, steps: Sequence[str]) -> list[str]:
        return [] if steps else [str(n) for n in range(2 * self.largest + 1)]

    def label(self, problem: Problem, steps: Sequence[str]) -> StepLabel:
        right = steps[-1] == problem.answer
        return StepLabel(right, right, True, right, "" if right else "another number")

    def answer_of(self, problem: Problem, steps: Sequence[str]) -> str | None:
        return steps[-1] if steps else None


@dataclass(frozen=True)
class VowelTask:
    """A bandit in text: any answer that is one vowel is right, whatever the question."""

    name: str = "toy-vowel"
    difficulties: tuple[int, ...] = (1,)

    def problem(self, split: Split, difficulty: int, index: int) -> Problem:
        return Problem(self.name, split, difficulty, index, "abcdefgh"[index % 8], "a")

    def judge(self, problem: Problem, answer: str) -> Verdict:
        right = answer in tuple("aeiou")
        return Verdict(right, parsed=bool(answer), reason="" if right else "no vowel")


@dataclass(frozen=True)
class VowelsTask:
    """Three letters, a line each; a path is hopeless from its first consonant on."""

    name: str = "toy-vowels"
    difficulties: tuple[int, ...] = (3,)
    length: int = 3

    def problem(self, split: Split, difficulty: int, index: int) -> Problem:
        return Problem(self.name, split, difficulty, index, f"{index}?", "aaa")

    def judge(self, problem: Problem, answer: str) -> Verdict:
        right = len(answer) == self.length and set(answer) <= set("aeiou")
        return Verdict(right, reason="" if right else "not all are vowels")

    def moves(self, problem: Problem, steps: Sequence[str]) -> list[str]:
        return [] if len(steps) == self.length else list("abcdefgh")

    def label(self, problem: Problem, steps: Sequence[str]) -> StepLabel:
        right = set(steps) <= set("aeiou")
        finished = len(steps) == self.length
        return StepLabel(True, right, finished, finished and right, "" if right else "a consonant")

    def solution(self, problem: Problem) -> list[str]:
        return ["a", "e", "a"]

    def answer_of(self, problem: Problem, steps: Sequence[str]) -> str | None:
        return "".join(steps)


@functools.cache
def speller_weights() -> dict[str, torch.Tensor]:
    """Of a policy that answers any question of `VowelTask` with one of eight letters, each as likely."""
    model, maker = make_policy(), RowMaker(TOKENIZER)
    rows = [maker.of_text(FORMAT.prompt(question), f"={letter}.") for question in "abcdefgh" for letter in "abcdefgh"]
    config = with_changes(batch_size=32, steps=100)
    with tempfile.TemporaryDirectory() as folder:
        train(model, *likelihood_fit(rows, config), config, folder, progress=False)
    return weights_of(model)


def speller(dropout: float = 0.0) -> Policy:
    model = make_policy(dropout=dropout)
    put_weights(model, speller_weights())
    return Policy(model, TOKENIZER, ToySampler(model))


def problems_of(task: Any, count: int, split: Split = "train") -> list[Problem]:
    return [task.problem(split, task.difficulties[0], index) for index in range(count)]


def records(folder: Path) -> list[dict[str, Any]]:
    """What was measured at each step, or iteration, of a round."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def with_changes(**changes: Any) -> TrainingConfig:
    return replace(CONFIG, **changes)


class Told:
    """A cache whose rows are any objects, put where rows of states would be."""

    def __init__(self, rows):
        self.rows = rows

    @property
    def batch_size(self):
        return len(self.rows)

    def batch_extend(self, other):
        self.rows = self.rows + other.rows

    def batch_select_indices(self, indices):
        self.rows = [self.rows[i] for i in indices.tolist()]

    def overwrite(self, rows, other, picks):
        for row, pick in zip(rows, picks, strict=True):
            self.rows[row] = other.rows[pick]

    def shrink(self, sources):
        self.rows = [self.rows[i] for i in sources]
