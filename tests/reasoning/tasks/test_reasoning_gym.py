"""The package's problems are judged here; its scorers run elsewhere, if at all, and are killed in time.

Most tests use a small package of the same name that behaves as badly as one can. The last ones use the real one.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mnemonist.errors import UserError
from mnemonist.reasoning.tasks import build_task, reasoning_gym_scorer
from mnemonist.reasoning.tasks.reasoning_gym import COMPARED, EXPRESSIONS, ReasoningGym
from mnemonist.reasoning.tasks.task import Problem

INSTALLED = importlib.util.find_spec("reasoning_gym") is not None

FAKE = """
import random

print("the fake package says hello")  # which must not be taken for an answer


class Dataset:
    def __init__(self, family, seed, low=1):
        self.family, self.low = family, low
        self.seed = seed

    def __getitem__(self, index):
        source = random.Random(self.seed + index)
        a, b, c = (source.randrange(self.low, 20) for _ in range(3))
        if self.family == "countdown":
            return {"question": f"make {a * b + c} of {a}, {b}, {c}", "answer": f"{a}*{b} + {c}",
                    "metadata": {"numbers": (a, b, c), "target": a * b + c}}
        answer = {"silent": None, "spell_backward": f"b{a}  a{b}"}.get(self.family, str(a + b))
        return {"question": f" {a} and {b}?\\n", "answer": answer, "metadata": {}}

    def score_answer(self, answer, entry):
        score = 0.0
        exec(answer)
        return float(answer == entry["answer"]) if self.family == "sums" else 0.5


def create_dataset(family, size=500, seed=None, **config):
    if family == "unknown":
        raise ValueError("Dataset 'unknown' not registered")
    return Dataset(family, seed, **config)
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "reasoning_gym.py").write_text(FAKE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "reasoning_gym", raising=False)
    worker = reasoning_gym_scorer.Worker()
    monkeypatch.setattr(reasoning_gym_scorer, "_worker", worker)
    yield tmp_path
    worker.close()
    sys.modules.pop("reasoning_gym", None)


def test_problems_follow_from_index_and_split(fake):
    task = ReasoningGym("chain_sum", config="low:7")
    problems = {split: [task.problem(split, 0, i) for i in range(20)] for split in ("train", "test")}
    assert [task.problem("train", 0, i) for i in reversed(range(20))] == problems["train"][::-1]
    questions = {split: {problem.question for problem in problems[split]} for split in problems}
    assert not questions["train"] & questions["test"] and len(questions["train"]) > 10
    for problem in problems["train"]:
        a, b = problem.question.removesuffix("?").split(" and ")
        assert min(int(a), int(b)) >= 7 and int(problem.answer) == int(a) + int(b)
        assert set(problem.facts) == {"seed"} and problem.task == "reasoning-gym:config=low:7"
        assert build_task(problem.task) == task and Problem.from_json(problem.to_json()) == problem
        assert task.judge(problem, f" {problem.answer}\n").right and task.judge(problem, f"0{problem.answer}").right
        for wrong in (f"{problem.answer}0", f"-{problem.answer}", "7 + 7", ""):
            assert not task.judge(problem, wrong).right


def test_words_and_expressions_are_judged_here(fake):
    words = ReasoningGym("spell_backward")
    problem = words.problem("train", 0, 0)
    assert words.judge(problem, problem.answer.replace("  ", " ")).right
    assert words.judge(problem, problem.answer + "x").reason == "it is another text"
    task = ReasoningGym("countdown")
    problem = task.problem("train", 0, 0)
    a, b, c = problem.facts["numbers"]
    assert task.judge(problem, f"({c}+{b}*{a})").right and task.judge(problem, problem.answer).right
    assert not task.judge(problem, f"{problem.facts['target']}").right
    assert not task.judge(problem, f"{a}*{b}").right


def test_what_cannot_be_made(fake):
    for work, message in (
        (lambda: ReasoningGym("n_queens"), "no verifier here can judge the family 'n_queens'.*scorer=theirs"),
        (lambda: ReasoningGym("chain_sums"), "did you mean 'chain_sum'"),
        (lambda: ReasoningGym("word_ladder", scorer="theirs"), "other problems of the family 'word_ladder' in every"),
        (lambda: ReasoningGym(scorer="mine"), "the first is ours or theirs"),
        (lambda: ReasoningGym(seconds=0), "the second above 0"),
        (lambda: ReasoningGym(config="terms"), "'terms' is no change"),
        (
            lambda: ReasoningGym("unknown", scorer="theirs").problem("train", 0, 0),
            "does not make 'unknown'.*not regist",
        ),
        (lambda: ReasoningGym(config="high:3").problem("train", 0, 0), "does not make 'chain_sum' with {'high': 3}"),
        (lambda: ReasoningGym("silent", scorer="theirs").problem("train", 0, 0), "gives no answer"),
        (lambda: ReasoningGym().problem("train", 1, 0), "has no difficulty 1; it has 0"),
    ):
        with pytest.raises(UserError, match=message):
            work()


def test_configurations_are_read_as_json():
    task = ReasoningGym(config="low:3;high:2.5;flag:true;word:left")
    assert task._changes() == {"low": 3, "high": 2.5, "flag": True, "word": "left"}


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(UserError, match=r"pip install .mnemonist\[reasoning\]"):
        ReasoningGym().problem("train", 0, 0)
    problem = Problem("reasoning-gym", "train", 0, 0, "2 + 3 = ?", "5", {"seed": 1})
    assert ReasoningGym().judge(problem, "5").right  # judging does not need it


forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="their scorers need a system that can fork")


@forks
def test_their_scorer_is_killed_contained_and_forgotten(fake):
    task, hurried = (ReasoningGym("sums", scorer="theirs", seconds=seconds) for seconds in (5.0, 0.5))
    problem = task.problem("train", 0, 0)
    parent = f"assert __import__('os').getppid() != {os.getpid()}\n"
    assert task.judge(problem, problem.answer).right
    assert task.judge(problem, "1").reason == "reasoning-gym scores it 0"
    assert task.judge(problem, f"{parent}raise ValueError").reason == "its scorer failed (ValueError)"
    assert task.judge(problem, "exit()").reason == "its scorer failed (SystemExit)"
    assert task.judge(problem, "import os; os.kill(os.getpid(), 9)").reason == "its scorer died"
    assert "Error" in task.judge(problem, f"open({str(fake / 'big')!r}, 'w').write('x' * 10000)").reason
    assert "MemoryError" in task.judge(problem, "x = bytearray(8 << 30)").reason
    # What one answer does to the scorer is gone with the next.
    task.judge(problem, "Dataset.score_answer = lambda *_: 1.0")
    assert not task.judge(problem, "1").right
    began = time.monotonic()
    for text in ("while True: pass", "import time; time.sleep(60)", "9**9**9**9"):
        assert hurried.judge(problem, text).reason == "its scorer took more than 0.5 seconds"
    assert time.monotonic() - began < 5
    # What it started is killed with it.
    mark = fake / "late"
    hurried.judge(
        problem, f"import os, time\nif not os.fork():\n  time.sleep(1.5)\n  os.mkdir({str(mark)!r})\ntime.sleep(60)"
    )
    assert task.judge(problem, problem.answer).right
    time.sleep(1.5)
    assert not mark.exists()


@forks
def test_a_worker_that_died_is_started_again(fake):
    task = ReasoningGym("sums", scorer="theirs", seconds=1.0)
    problem = task.problem("train", 0, 0)
    assert task.judge(problem, "import os; os.kill(os.getppid(), 9)").reason == "its scorer did not answer"
    assert task.judge(problem, problem.answer).right
    other = Problem(problem.task, "train", 0, 1, "another question?", "5", problem.facts)
    assert "makes another problem of its seed" in task.judge(other, "5").reason


@forks
def test_a_worker_without_the_package_says_so(fake):
    task = ReasoningGym("sums", scorer="theirs")
    problem = task.problem("train", 0, 0)
    (fake / "reasoning_gym.py").write_text("raise ImportError")
    with pytest.raises(UserError, match="cannot be started"):
        task.judge(problem, "5")


real = pytest.mark.skipif(not INSTALLED, reason="reasoning-gym is not installed")


@real
@pytest.mark.parametrize("family", sorted(COMPARED | EXPRESSIONS))
@pytest.mark.filterwarnings("default")
def test_the_real_package_gives_problems_that_are_judged_right(family):
    task = ReasoningGym(family)
    for split in ("train", "test"):
        problem = task.problem(split, 0, 0)
        assert problem.question and task.judge(problem, problem.answer).right, problem
        assert not task.judge(problem, problem.answer + "1").right


@real
@forks
@pytest.mark.filterwarnings("default")
def test_the_real_scorers_are_killed_in_time():
    task = ReasoningGym("simple_integration", scorer="theirs")
    problem = task.problem("train", 0, 0)
    assert task.judge(problem, problem.answer).right and not task.judge(problem, "x").right
    began = time.monotonic()
    assert not task.judge(problem, "9**9**9**9").right
    assert time.monotonic() - began < 15


@real
@pytest.mark.filterwarnings("default")
def test_the_real_package_makes_the_same_of_a_seed_in_every_process():
    """What a family's problems are must not hang on how this process hashes its texts."""
    code = (
        "from mnemonist.reasoning.tasks.reasoning_gym import *\n"
        "for family in sorted(COMPARED | EXPRESSIONS):\n"
        "  print(family, [make_entry(family, {}, seed)['question'] for seed in range(12)])"
    )
    told = []
    for seed in ("1", "2"):
        environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", code]
        told.append(subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment, check=True))
    assert told[0].stdout == told[1].stdout and told[0].stdout.count("\n") >= len(COMPARED)
