"""Attempts sampled in this process, and by `generate` of transformers, side by side in one process.

    python benchmarks/sampling.py            # half an hour on two cores; --quick takes a minute and means little

The model is a Llama of the shape of SmolLM2-135M with random weights. Where attempts are of equal length nobody idles,
and what is compared is the cost of a step. Where they end at random, `generate` waits for the longest of each batch.
What an attempt ends at is one of many end marks, each as likely as any other token, so both sides draw lengths from
the same distribution, if not the same lengths; hence seconds for a token written, not for the work.

The same model is also adopted (`mnemonist.models.adopt`), and then writes through layers of ours; and with weights in
bfloat16 on both sides, where ours computes in float32 and theirs in bfloat16, or on one, ours beside ours in float32.
"""

from __future__ import annotations

import argparse
import copy
import logging
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import numpy as np
import torch
from cpu_measure import Group, Measure, Pairs, Row
from one_group import measured
from timing import Side, Work, alternate
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from mnemonist.models import LanguageModel, adopt
from mnemonist.models.hugging_face import MnemonistForCausalLM
from mnemonist.reasoning.attempts import Decoding
from mnemonist.reasoning.sampling import LocalSampler

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Sizes:
    """Of the work that is measured."""

    layers: int = 30
    vocabulary: int = 49152
    batch: int = 16
    prompt: int = 32
    equal: int = 128
    """Tokens of every attempt where they are of equal length."""
    longest: int = 256
    """Tokens of an attempt at most where they end at random."""
    mean: int = 64
    """Tokens after which they end on average, but for the limit."""
    ragged: int = 64
    """Attempts that end at random."""
    alone: int = 64
    """Tokens of an attempt that is written alone."""
    runs: int = 5


QUICK = Sizes(layers=4, prompt=16, equal=24, longest=48, mean=16, ragged=48, alone=16)


class Numbers:
    """A tokenizer for prompts that are random tokens: their text is their numbers."""

    end_ids: frozenset[int] = frozenset()

    def encode(self, text: str) -> list[int]:
        return [int(number) for number in text.split()]

    def decode(self, ids: Any) -> str:
        return "".join(f"{number} " for number in ids)


def smollm_shaped(sizes: Sizes) -> LlamaForCausalLM:
    """A Llama as wide as SmolLM2-135M, and as deep unless the sizes say less."""
    config = LlamaConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=sizes.layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def ours(model: PreTrainedModel, prompts: torch.Tensor, tokens: int, ends: list[int], batch: int) -> Work:
    """All prompts in one call; returns how many tokens were written."""
    sampler = LocalSampler(model, Numbers(), batch, end_ids=ends)
    texts = [Numbers().decode(row.tolist()) for row in prompts]
    seeds = iter(range(10**6))

    def work() -> int:
        attempts = sampler.sample(texts, Decoding(max_tokens=tokens, seed=next(seeds)))
        return sum(attempt.tokens for attempt in attempts)

    return work


def adopted(model: PreTrainedModel, prompts: torch.Tensor, tokens: int, ends: list[int], batch: int) -> Work:
    """As `ours`, of the same model as a list of our blocks."""
    return ours(MnemonistForCausalLM.from_language_model(taken_over(model)), prompts, tokens, ends, batch)


def adopted_halves(model: PreTrainedModel, prompts: torch.Tensor, tokens: int, ends: list[int], batch: int) -> Work:
    """As `adopted`, its matrices in bfloat16."""
    own = taken_over(model).matrices_to(torch.bfloat16)
    return ours(MnemonistForCausalLM.from_language_model(own), prompts, tokens, ends, batch)


def taken_over(model: PreTrainedModel) -> LanguageModel:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return adopt(folder).eval()


def theirs(model: PreTrainedModel, prompts: torch.Tensor, tokens: int, ends: list[int], batch: int) -> Work:
    """Batch after batch."""
    pad = int(prompts.max()) + 1
    settings = {"do_sample": True, "top_k": 0, "max_new_tokens": tokens, "pad_token_id": pad}

    def work() -> int:
        written = 0
        for rows in prompts.split(batch):
            out = model.generate(rows, attention_mask=torch.ones_like(rows), eos_token_id=ends or None, **settings)[
                :, rows.shape[1] :
            ]
            ended = torch.isin(out, torch.tensor(ends, dtype=torch.int64))
            before = ended.cumsum(1) - ended.long() == 0  # up to the first end mark, which is counted
            written += int(before.sum())
        return written

    return work


def their_halves(model: PreTrainedModel, prompts: torch.Tensor, tokens: int, ends: list[int], batch: int) -> Work:
    """As `theirs`, all of it in bfloat16."""
    return theirs(copy.deepcopy(model).to(torch.bfloat16), prompts, tokens, ends, batch)


def seconds_a_token(work: Work) -> float:
    """Of one run of work that returns how many tokens it wrote."""
    began = time.perf_counter()
    tokens = work()
    assert isinstance(tokens, int)
    return (time.perf_counter() - began) / tokens


def compared(
    sizes: Sizes,
    count: int,
    tokens: int,
    ends: int,
    mine: Callable[..., Work] = ours,
    other: Callable[..., Work] = theirs,
) -> Pairs:
    """Seconds a token of both; the untimed runs before write two tokens."""
    model = smollm_shaped(sizes)
    random = torch.Generator().manual_seed(1)
    prompts = torch.randint(sizes.vocabulary // 2, sizes.vocabulary - 1, (count, sizes.prompt), generator=random)
    marks = [int(i) for i in np.linspace(0, sizes.vocabulary // 2 - 1, ends)]
    sides = [
        Side(make(model, prompts, tokens, marks, sizes.batch), make(model, prompts[: sizes.batch], 2, [], sizes.batch))
        for make in (mine, other)
    ]
    return Pairs(*alternate(sides, sizes.runs, seconds_a_token))


def sampling(sizes: Sizes) -> Group:
    """All that is measured."""
    text = (
        f"A Llama of the shape of SmolLM2-135M ({sizes.layers} layers, random weights, float32 unless said otherwise), "
        f"batch {sizes.batch}, prompts of {sizes.prompt} tokens, temperature 1. Seconds for a token that is part of an "
        "attempt."
    )
    equal = Row(f"{sizes.batch} attempts of {sizes.equal} tokens", "generate of transformers", 1.0)
    ragged = Row(
        f"{sizes.ragged} attempts of {sizes.mean} tokens on average",
        "generate of transformers, batch after batch",
        1.5,
        f"geometric lengths, at most {sizes.longest}",
    )
    alone = Row(f"one attempt of {sizes.alone} tokens, the model adopted", "generate of transformers", 1.2)
    adopted_equal = Row(f"{equal.name}, the model adopted", "generate of transformers", 1.2)
    chance = round(sizes.vocabulary / sizes.mean)
    return Group(
        "Sampling",
        text,
        (
            Measure((equal,), lambda: [compared(sizes, sizes.batch, sizes.equal, 0)]),
            Measure((ragged,), lambda: [compared(sizes, sizes.ragged, sizes.longest, chance)]),
            Measure((alone,), lambda: [compared(sizes, 1, sizes.alone, 0, adopted)]),
            Measure((adopted_equal,), lambda: [compared(sizes, sizes.batch, sizes.equal, 0, adopted)]),
            *(
                Measure(
                    (Row(f"{row.name}, {name}", peer, target),),
                    lambda count=count, tokens=tokens, other=other: [
                        compared(sizes, count, tokens, 0, adopted_halves, other)
                    ],
                )
                for row, count, tokens, targets in (
                    (alone, 1, sizes.alone, (1.2, 1.2)),
                    (adopted_equal, sizes.batch, sizes.equal, (1.0, 1.0)),
                )
                for name, peer, other, target in (
                    ("weights in bfloat16", "generate of transformers in bfloat16", their_halves, targets[0]),
                    ("weights in bfloat16 instead of float32", "the same in float32", adopted, targets[1]),
                )
            ),
        ),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "sampling-latest.json", help="default: %(default)s")
    parser.add_argument("--only", help="measure again what has this in its name; the report keeps the rest")
    parser.add_argument("--quick", action="store_true", help="few layers and short attempts")
    parser.add_argument("--runs", type=int, default=5, help="pairs of each row (default: %(default)s)")
    options = parser.parse_args()
    if options.runs < 1:
        parser.error(f"--runs is {options.runs}; it must be at least 1.")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    disable_progress_bar()
    base = QUICK if options.quick else Sizes()
    group = sampling(Sizes(**{**vars(base), "runs": options.runs}))
    what = "a quick look: its figures mean little" if options.quick else "sampling on a CPU"
    results = measured(group, what, options.out, ("mnemonist", "torch", "transformers"), options.only)
    return 0 if all(entry["met"] for entry in results) else 1


if __name__ == "__main__":
    sys.exit(main())
