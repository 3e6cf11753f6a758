"""Length: trained on short texts, who keeps what it has read over 64 times the length?

python experiments/length/run.py            # what is missing, then the page
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import source_code
from study import Arm, Study, draw, found, main, markdown, seeds_of, task

from mnemonist.data import SubwordTokenizer, find_tokenizer
from mnemonist.evals.candidates import CANDIDATES, configure
from mnemonist.evals.needles import NeedleInHaystack, words_of
from mnemonist.evals.suites import TaskSuite
from mnemonist.models import ModelConfig
from mnemonist.models.cost import model_cost
from mnemonist.training import TrainingConfig

HERE = Path(__file__).parent
TRAINED, LEARNED = 192, 0.5
"""Tokens of the lessons, and the accuracy at that length from which on a run has learned them."""
DELTAS = ("deltanet", "gated-deltanet", "kda", "gated-deltaproduct")
NEEDLES = ("attention", "mamba2", "deltanet", "gated-deltanet", "titans-linear", "lmm-2", "mag", "mac")
TEXT = ("attention", "window", "mamba2", *DELTAS, "mesa", "titans-linear", "lmm-2", "mac", "mag", "mal")
TRAINING = TrainingConfig(
    steps=2000, batch_size=32, row_length=TRAINED, learning_rate=5e-3, warmup_steps=100, save_every=500, device="cpu"
)


def tokenizer() -> SubwordTokenizer:
    """Subwords of the haystack's words, digits one by one; made once and kept in `tokenizer/`."""
    if not (HERE / "tokenizer").is_dir():
        make_tokenizer().save(HERE / "tokenizer")
    kept = find_tokenizer(HERE / "tokenizer")
    assert isinstance(kept, SubwordTokenizer)
    return kept


def make_tokenizer() -> SubwordTokenizer:
    """Byte-level BPE of 640 tokens, trained on what S-NIAH-1 is made of."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    library = Tokenizer(models.BPE())
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), letters])
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=640, special_tokens=["<s>"], initial_alphabet=letters.alphabet(), show_progress=False
    )
    library.train_from_iterator(words_of("single-1", 400), trainer)
    return SubwordTokenizer(json.loads(library.to_str()), {"bos_token": "<s>"})


NEEDLE = NeedleInHaystack("single-1", TRAINED, 64 * TRAINED, trained=TRAINED, tokenizer=tokenizer())
SIZE = ModelConfig(
    blocks=("attention",) * 2,
    vocab_size=NEEDLE.vocab_size,
    width=64,
    heads=2,
    head_dim=32,
    memory_heads=2,
    memory_head_dim=32,
    window=16,
    persistent_tokens=0,
    mlp_width=256,
)
PARAMETERS = model_cost(SIZE).parameters


def needle_arm(name: str) -> Arm:
    """A candidate that learns to find a needle in 192 tokens."""
    rule = CANDIDATES[name].rule
    changes = "expansion=2,chunk_size=16" if rule == "titans" else "chunk_size=16" if "titans" in rule else ""
    config = configure(name, SIZE, changes, PARAMETERS)
    return Arm(CANDIDATES[name].label, config, TRAINING, task(NEEDLE), {"": TaskSuite(NEEDLE, count=50)})


def learned(study: Study) -> str:
    """What the runs that learned to find needles keep of it; whether a run learns is a matter of luck, and a jump."""
    lengths = [int(setting["length"]) for setting in NEEDLE.grid]
    lines = ["| model | seeds | " + " | ".join(f"{length:,} tokens" for length in lengths) + " |"]
    lines.append("|---|--:|" + "--:|" * len(lengths))
    for name in NEEDLES:
        every = [{row.setting["length"]: row.mean for row in result.rows} for result in study.results(f"niah-{name}")]
        if not every:
            continue
        kept = [found for found in every if found[TRAINED] >= LEARNED]
        cells = [CANDIDATES[name].label, f"{len(kept)} of {len(every)}"]
        for length in lengths if kept else ():
            each = [found[length] for found in kept]
            cells.append(f"{np.mean(each):.2f}" + (f" ({min(each):.2f} to {max(each):.2f})" if len(each) > 1 else ""))
        cells += [""] * (len(lengths) + 2 - len(cells))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_page(study: Study) -> str:
    """Needles found, and bits per byte, by length."""
    parts = [seeds_of(study)]
    needles = list(found(study, [f"niah-{name}" for name in NEEDLES]).values())
    if needles:
        draw(HERE / "needles.svg", needles)
        parts += ["### Needles found (S-NIAH-1)", markdown(needles), "![Needles found by length](needles.svg)"]
        parts += [
            "Of the seeds alone that learned it (half right or more at 192 tokens), means and the least to the most:"
        ]
        parts += [learned(study)]
    texts = list(found(study, [f"text-{name}" for name in TEXT], "live").values())
    if texts:
        draw(HERE / "positions.svg", texts)
        parts += ["### Bits per byte by position", markdown(texts), "![Bits per byte by position](positions.svg)"]
    return "\n\n".join(parts)


ARMS = {f"niah-{name}": needle_arm(name) for name in NEEDLES} | {f"text-{n}": source_code.arm(n) for n in TEXT}
STUDY = Study(HERE, ARMS, write_page)

if __name__ == "__main__":
    main(STUDY)
