"""Journeys against shortcuts: does it pay to teach a small model its dead ends?

python experiments/journey/run.py            # what is missing, then the page
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from countdown import FORMAT, NUMBERS, TASK, TAUGHT
from study import SEEDS, Arm, Study, differences, draw, found, main, markdown, paired, seeds_of

from mnemonist.data import SubwordTokenizer, find_tokenizer
from mnemonist.evals.evaluation import model_facts
from mnemonist.evals.lessons import Curriculum
from mnemonist.evals.results import Result, Row
from mnemonist.evaluating import evaluating
from mnemonist.models import LanguageModel, MnemonistForCausalLM, ModelConfig
from mnemonist.reasoning import Decoding, LocalSampler, find_journey, make_twin, random_path
from mnemonist.reasoning.completions import RowMaker, read, stack
from mnemonist.reasoning.growing import PREFERENCES
from mnemonist.reasoning.journey_text import PHRASES, Telling, tellings
from mnemonist.reasoning.losses import weighted_likelihood
from mnemonist.reasoning.tasks import build_task
from mnemonist.reasoning.tasks.task import Problem, StepTask
from mnemonist.training import TrainingConfig, train
from mnemonist.training.checkpoint import has_checkpoint
from mnemonist.training.metrics import StepMetrics

HERE = Path(__file__).parent
TOKENS = 3000
"""Of a step: so many tokens of completions, whatever the arm, so that equal steps are equal tokens."""
ALIKE = 2048
"""Texts that are sorted by length at a time."""
PRACTICE, STEPS = 1500, 8000
"""Steps of phase 1, which all arms have in common, and of both phases."""
ASKED_AT = (2000, 3500, 5000, 6500, 8000)
PROBLEMS = TAUGHT
"""Of each number of numbers, to learn from."""
TESTS = 100
"""Likewise, to be asked."""
LONGEST = 3000
"""Tokens of an attempt: the longest journeys have nearly as many, and no more than a step."""
VOCABULARY = 309
WIDE = build_task("countdown:largest=100,ceiling=100")
assert isinstance(WIDE, StepTask)
SIZE = ModelConfig(
    blocks=("attention",) * 4,
    vocab_size=VOCABULARY,
    width=128,
    heads=4,
    head_dim=32,
    persistent_tokens=0,
    mlp_width=344,
)
TRAINING = TrainingConfig(
    steps=STEPS, batch_size=1, row_length=TOKENS, learning_rate=2e-3, warmup_steps=200, save_every=200, device="cpu"
)


@dataclass(frozen=True)
class Lesson:
    """What an arm reads after phase 1."""

    rules: str
    """Of the journeys; the shortcut is told of the same trees."""
    shortcut: bool


SEARCH = "depth-first:most_steps=1000,most_characters=5000"
"""The limit of steps is beyond the one of characters, which is within LONGEST tokens."""
LESSONS = {
    "shortcut": ("shortcut", Lesson(SEARCH, shortcut=True)),
    "depth-first": ("journey (depth first)", Lesson(SEARCH, shortcut=False)),
    "o1-journey": ("journey (O1 Replication Journey)", Lesson("o1-journey", shortcut=False)),
}
"""Steps are tried in the order that the task lists them, so all journeys arrive by the same right path."""


@cache
def tokenizer() -> SubwordTokenizer:
    """Digits, and what stands between them; made once and kept in `tokenizer/`."""
    if not (HERE / "tokenizer").is_dir():
        make_tokenizer().save(HERE / "tokenizer")
    kept = find_tokenizer(HERE / "tokenizer")
    assert isinstance(kept, SubwordTokenizer) and kept.vocab_size == VOCABULARY
    return kept


def make_tokenizer() -> SubwordTokenizer:
    """Byte-level BPE that keeps digits and ends of lines apart, and words from the space behind them.

    So sums are made of digits, a text is a sixth longer than with whole numbers, and tokens do not depend on where it
    is cut between lines, which searches step by step rely on (`SubwordTokenizer` cuts before spaces behind words).
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    library = Tokenizer(models.BPE())
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    apart = pre_tokenizers.Split(Regex(r"\d|\n"), "isolated")
    behind = pre_tokenizers.Split(Regex(r"(?<=[A-Za-z]) "), "merged_with_next")
    library.pre_tokenizer = pre_tokenizers.Sequence([apart, behind, letters])
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=letters.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(
        (prompt + text for _, lesson in LESSONS.values() for prompt, text in told(lesson, 400)), trainer
    )
    return SubwordTokenizer(json.loads(library.to_str()), {"bos_token": "<s>", "eos_token": "</s>"})


def problems(split: str, count: int, task: StepTask = TASK) -> Iterator[Problem]:
    """So many of each number of numbers, in turn."""
    for index, numbers in itertools.product(range(count), NUMBERS):
        yield task.problem(split, numbers, index)


def told(lesson: Lesson, count: int) -> Iterator[tuple[str, str]]:
    """Prompts and texts of so many problems to learn from, of each number of numbers.

    Problems whose search does not fit are left out, of all lessons: one that is cut short teaches to give up.
    """

    def told_by(rules: str) -> Iterator[Telling]:
        listed, phrases = PREFERENCES["listed"], PHRASES["checked"]
        return tellings(problems("train", count), TASK, find_journey(rules), FORMAT, phrases, prefer=listed)

    searches = told_by(SEARCH)
    pairs = ((t, t) for t in searches) if lesson.rules == SEARCH else zip(searches, told_by(lesson.rules), strict=True)
    for search, telling in pairs:
        if not search.left_out:
            twin = make_twin(telling, TASK, FORMAT)
            yield twin.prompt, twin.shortcut if lesson.shortcut else twin.journey


@cache
def practice() -> list[tuple[str, str]]:
    """Phase 1: allowed steps that lead anywhere; arithmetic and the form of a step, but no answers.

    Three of four problems are of numbers up to 100, for a search meets numbers that problems do not begin with.
    """
    paths = [
        (problem, random_path(task, problem, seed=1))
        for task, count in ((WIDE, 3 * PROBLEMS // 4), (TASK, PROBLEMS // 4))
        for problem in problems("train", count, task)
    ]
    return [(FORMAT.prompt(p.question), FORMAT.write(steps, None)) for p, steps in paths if steps]


@cache
def texts(lesson: Lesson) -> list[tuple[str, str]]:
    """Phase 2: one text for each problem."""
    return list(told(lesson, PROBLEMS))


def batches(pairs: list[tuple[str, str]], seed: int, steps: int) -> list[list[int]]:
    """Texts of each step, until it has its tokens; texts of a step are alike in length, so that little is padding.

    Every pass draws an order anew, sorts stretches of it by length, cuts these into steps, and shuffles the steps. What
    one step has too much, the next has less: so steps of long texts have no more tokens than steps of short ones.
    """
    made: list[list[int]] = []
    lengths = [len(tokenizer().encode(text)) + 1 for _, text in pairs]
    assert max(lengths) <= min(TOKENS, LONGEST)
    for epoch in itertools.count():
        random = np.random.default_rng([seed, epoch])
        order = random.permutation(len(pairs)).tolist()
        cut: list[list[int]] = []
        for at in range(0, len(order), ALIKE):
            step, room = [], TOKENS
            for number in sorted(order[at : at + ALIKE], key=lambda number: lengths[number]):
                step.append(number)
                room -= lengths[number]
                if room <= 0:
                    cut.append(step)
                    step, room = [], room + TOKENS
        random.shuffle(cut)
        made += cut
        if len(made) >= steps:
            return made[:steps]
    raise AssertionError("never comes here")


def learns(lesson: Lesson, training: TrainingConfig) -> Curriculum:
    """Phase 1, then the lesson."""
    phases = (practice(), texts(lesson))
    plans = [batches(pairs, training.seed, n) for pairs, n in zip(phases, (PRACTICE, STEPS - PRACTICE), strict=True)]
    maker = RowMaker(tokenizer())

    def batch_of(step: int, micro: int, rank: int, world: int) -> dict[str, torch.Tensor]:
        phase, at = (0, step) if step < PRACTICE else (1, step - PRACTICE)
        return stack([maker.of_text(*phases[phase][number]) for number in plans[phase][at]])

    def loss_of(model: MnemonistForCausalLM, batch: dict[str, torch.Tensor]):
        opinion = read(model, batch)
        return weighted_likelihood(opinion.log_probs_BT, opinion.mask_BT, batch["weights"])

    return batch_of, loss_of


def ask(policy: MnemonistForCausalLM, tokens: int) -> Iterator[Row]:
    """Problems solved by greedy writing, for each number of numbers."""
    sampler = LocalSampler(policy, tokenizer(), batch_size=TESTS)
    for numbers in NUMBERS:
        asked = [TASK.problem("test", numbers, index) for index in range(TESTS)]
        decoding = Decoding(max_tokens=LONGEST, temperature=0)
        attempts = sampler.sample([FORMAT.prompt(problem.question) for problem in asked], decoding)
        answers = [FORMAT.parse(attempt.text).answer for attempt in attempts]
        right = [a is not None and TASK.judge(p, a).right for p, a in zip(asked, answers, strict=True)]
        yield Row.of(
            {"tokens": tokens, "numbers": numbers},
            np.array(right),
            written=float(np.mean([attempt.tokens for attempt in attempts])),
            answered=float(np.mean([answer is not None for answer in answers])),
        )


def run(study: Study, name: str, seed: int) -> None:
    """Train an arm, or go on, and ask it on the way; every answer is saved as it comes."""
    torch.set_flush_denormal(True)
    arm, path = study.arms[name], study.path(name, seed)
    training = dataclasses.replace(arm.training, seed=seed)
    folder = study.run_folder(name, seed)
    identity = {"arm": name, "seed": seed, "task": TASK.name, "training": str(training), "tests": TESTS}
    torch.manual_seed(seed)
    policy = MnemonistForCausalLM.from_language_model(LanguageModel(arm.config))
    result = Result(identity, "problems solved", "tokens", model=model_facts(policy.model, arm.label))
    if path.exists() and (kept := Result.load(path)).identity == identity:
        result = kept

    def on_step(metrics: StepMetrics) -> None:
        nonlocal result
        tokens = metrics.step * TOKENS
        if metrics.step not in ASKED_AT or result.row({"tokens": tokens, "numbers": NUMBERS[-1]}) is not None:
            return
        with evaluating(policy.model):
            rows = (*result.rows, *ask(policy, tokens))
        facts = {"seed": seed, "seconds": round(metrics.seconds, 1), "training": dataclasses.asdict(training)}
        result = dataclasses.replace(result, rows=rows, facts=facts, complete=metrics.step == STEPS)
        result.save(path)

    batch_of, loss_of = arm.learns(training)
    resume = has_checkpoint(folder / "checkpoint")
    ended = train(policy, batch_of, loss_of, training, folder, resume=resume, progress=False, on_step=on_step)
    if ended.interrupted:
        raise SystemExit(130)


def end(result: Result, numbers: int) -> float:
    """Solved after all tokens."""
    row = result.row({"tokens": STEPS * TOKENS, "numbers": numbers})
    assert row is not None
    return row.mean


def write_page(study: Study) -> str:
    """By numbers, against the shortcut; curves against tokens."""
    heads = [f"{n} numbers | against shortcut | best on the way" for n in NUMBERS]
    lines = ["| learned from | " + " | ".join(heads) + " | tokens written |"]
    lines.append("|---|" + "--:|--:|--:|" * len(NUMBERS) + "--:|")
    for name, arm in study.arms.items():
        results = study.results(name)
        if not results:
            continue
        cells = [arm.label]
        for n in NUMBERS:
            cells.append(paired([end(result, n) for result in results]))
            against = differences(results, study.results("shortcut"), lambda r, n=n: end(r, n))
            cells.append("" if name == "shortcut" else paired(against, signed=True))
            ways = [[row.mean for row in result.rows if row.setting["numbers"] == n] for result in results]
            cells.append(paired([max(way) for way in ways]))
        written = [row.more["written"] for result in results for row in result.rows[-len(NUMBERS) :]]
        lines.append("| " + " | ".join([*cells, f"{np.mean(written):.0f}"]) + " |")
    means = found(study)
    if not means:
        return seeds_of(study)
    draw(HERE / "tokens.svg", list(means.values()))
    draw(HERE / "texts.svg", [by_texts(result, LESSONS[name][1]) for name, result in means.items()])
    lengths = ", ".join(f"{study.arms[name].label} {tokens_per_text(LESSONS[name][1]):.0f}" for name in means)
    plots = ["![Problems solved by tokens read](tokens.svg)", "![Problems solved by texts read](texts.svg)"]
    way = ["### On the way", markdown(list(means.values())), crossings(means)]
    return "\n\n".join([seeds_of(study), "\n".join(lines), f"Tokens of a text, on average: {lengths}.", *way, *plots])


def crossings(means: dict[str, Result]) -> str:
    """Where on the way each kind of journey passes the shortcut, for good."""
    passed = []
    for name in means if "shortcut" in means else ():
        for numbers in NUMBERS if name != "shortcut" else ():
            settings = [{"tokens": step * TOKENS, "numbers": numbers} for step in ASKED_AT]
            pairs = [(means[name].row(setting), means["shortcut"].row(setting)) for setting in settings]
            behind = [at for at, (a, b) in enumerate(pairs) if a is None or b is None or a.mean <= b.mean]
            first = behind[-1] + 1 if behind else 0
            where = "never" if first == len(settings) else f"by {settings[first]['tokens']:,} tokens"
            passed.append(f"{means[name].name}, {numbers} numbers: {where}")
    return "Ahead of the shortcut for good: " + "; ".join(passed) + "." if passed else ""


@cache
def tokens_per_text(lesson: Lesson) -> float:
    """On average, of the first problems."""
    return float(np.mean([len(tokenizer().encode(text)) + 1 for _, text in told(lesson, 250)]))


def by_texts(result: Result, lesson: Lesson) -> Result:
    """The same rows where the second phase had begun, by the thousands of texts that were read in it."""
    rows = []
    for row in result.rows:
        read = (int(row.setting["tokens"]) - PRACTICE * TOKENS) / tokens_per_text(lesson) / 1000
        if read > 0:
            setting = {"thousand texts": round(read, 1), "numbers": row.setting["numbers"]}
            rows.append(dataclasses.replace(row, setting=setting))
    return dataclasses.replace(result, rows=tuple(rows), x="thousand texts")


def arm(label: str, lesson: Lesson) -> Arm:
    """The same model, the same tokens; only the texts differ."""
    return Arm(label, SIZE, TRAINING, lambda training: learns(lesson, training), {"": None})


ARMS = {name: arm(*row) for name, row in LESSONS.items()}
STUDY = Study(HERE, ARMS, write_page, run)

if __name__ == "__main__":
    assert SEEDS == 3
    main(STUDY)
