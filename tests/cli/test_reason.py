"""``mnemonist reason`` as a person meets it: its tables, and problems solved by several methods."""

from __future__ import annotations

import json
import re
import resource
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import environment, refuses
from reason_runs import (
    SMALLEST,
    SUMS,
    interrupt_after_pieces,
    learn,
    reason,
    save_chat,
    save_llama,
    serve,
    timeless,
    trees,
)

from mnemonist import files
from mnemonist.cli import main
from mnemonist.cli.reason.material import hides_first_token
from mnemonist.cli.reason.solve import budget_lines, figures
from mnemonist.cli.reason.solving import Solved
from mnemonist.data import ByteTokenizer
from mnemonist.reasoning import FORMATS, JOURNEYS, METHODS
from mnemonist.reasoning.arms import MATCHES
from mnemonist.reasoning.objective import OBJECTIVES
from mnemonist.reasoning.rounds import RECIPES, ROUNDS
from mnemonist.reasoning.search.scaling import Run
from mnemonist.reasoning.tasks import TASKS, build_task
from mnemonist.reasoning.tree import Tree

BY_RULE = {"proposer": "moves", "value": "gold", "count": 6}
"""Nobody has to be asked."""


# Help and tables.


@pytest.mark.parametrize("command", ["", "demo", "tasks", "solve", "traces", "learn", "grpo", "reward"])
def test_help_answers_at_once(command: str) -> None:
    """In two seconds of processor time, whatever else the machine does, and without torch."""
    code = (
        "import sys; from mnemonist.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as stop: print('LOADED', stop.code, 'torch' in sys.modules, 'numpy' in sys.modules)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    words = [sys.executable, "-c", code, "reason", *command.split(), "--help"]
    told = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=120)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "LOADED 0 False False" in told.stdout, told.stderr
    assert "usage: mnemonist reason" in told.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


@pytest.mark.parametrize("command", ["solve", "traces", "learn", "reward"])
def test_every_option_is_explained(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["reason", command, "--help"])
    assert stop.value.code == 0
    text = re.sub(r"[\s│]+", " ", capsys.readouterr().out)
    blocks = re.split(r" (?=--[a-z])", text)[1:]
    explained = [block for block in blocks if "(default:" in block]
    assert len(explained) > 9
    for block in explained:
        words = re.sub(r"\(default:.*?\)|^\S+|[A-Z]{3,}|\{.*?\}|\[.*?\]", "", block).split()
        assert len(words) >= 2, block


def test_reward_says_what_it_learns_from(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["reason", "reward", "--help"])
    assert "attempts of the model that it begins with; so" in re.sub(r"[\s│]+", " ", capsys.readouterr().out)


def test_policy_gradients_begin_at_a_lower_rate(capsys) -> None:
    rates = {}
    for name in ("distil", "grpo", "dpo:attempts=4"):
        with pytest.raises(SystemExit):
            main(["reason", name, "--help"])
        text = re.sub(r"[\s│]+", " ", capsys.readouterr().out)
        found = re.search(r"Highest learning rate, .*?\(default: ([\d.]+)\)", text)
        assert found
        rates[name] = float(found[1])
    assert rates["distil"] == 10 * rates["grpo"] == 10 * rates["dpo:attempts=4"]


def test_tasks_lists_every_row_of_every_table(capsys, monkeypatch) -> None:
    for columns in ("80", "200"):
        monkeypatch.setenv("COLUMNS", columns)
        assert main(["reason", "tasks"]) == 0
        out = capsys.readouterr().out
        firsts = {line.split()[0] for line in out.splitlines() if line and not line.startswith(" ")}
        for table in (TASKS, FORMATS, METHODS, JOURNEYS, MATCHES, ROUNDS, RECIPES, OBJECTIVES):
            assert set(table) <= firsts, columns
        flat = re.sub(r"\s+", " ", out)
        rows = (TASKS, FORMATS, METHODS, JOURNEYS, ROUNDS, OBJECTIVES)
        for row in (row for table in rows for row in table.values()):
            assert row.source.split(",")[0] in flat, columns


# Solving.


def test_search_by_rule_needs_no_model(tmp_path, capsys) -> None:
    methods = ("beam:beams=4,width=2", "beam:beams=16", "mcts:simulations=4")
    command = reason("solve", "countdown:largest=9", method=methods, out=tmp_path / "out", **BY_RULE)
    assert main(command) == 0
    told = capsys.readouterr()
    names = ["beam-beams=4,width=2.jsonl", "beam-beams=16.jsonl", "mcts-simulations=4.jsonl"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([*names, "solve.html", "solve.json"])
    page = (tmp_path / "out" / "solve.html").read_text()
    task = build_task("countdown:largest=9")
    for method, name in zip(methods, names, strict=True):
        found = trees(tmp_path / "out" / name)
        assert [tree.problem for tree in found] == [task.problem("test", 3, n) for n in range(6)]
        right = sum(tree.answer is not None and task.judge(tree.problem, tree.answer).right for tree in found)
        assert re.search(rf"^\| {method} +\| {right} of 6 +\| ", told.out, flags=re.MULTILINE)
        assert method in page
    assert [tree.right for tree in trees(tmp_path / "out" / names[1])].count(True) >= 5  # the truth is hard to miss


def test_a_policy_solves_by_several_methods(adder, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    methods = ("chain-of-thought", "self-consistency:attempts=4", "beam:beams=4,width=2,value=outcome")
    options = {"method": methods, "model": adder, "count": 8, "max_tokens": 40, "split": "train", "piece": 4}
    assert main(reason("solve", SUMS, "--json", out=out, **options)) == 0
    figures = {row["method"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(figures) == list(methods)
    for method, row in figures.items():
        found = trees(out / f"{method.replace(':', '-')}.jsonl")
        assert row["right"] == sum(tree.right is True for tree in found) and row["problems"] == len(found) == 8
        assert row["interval"][0] <= row["accuracy"] <= row["interval"][1]
        for name in ("generated_tokens", "discarded_tokens", "prompt_tokens", "calls"):
            assert row[name] == sum(getattr(tree.ledger, name) for tree in found)
        assert row["generated_tokens"] > row["discarded_tokens"] and row["flops"] > 0
    assert figures[methods[0]]["generated_tokens"] < figures[methods[1]]["generated_tokens"]
    assert figures[methods[2]]["right"] >= 1  # which knows what is right
    page = (out / "solve.html").read_text()
    assert "accuracy by tokens" in page and "accuracy by flops" in page
    assert '"rollouts":[{' in page and '"trees":[{' in page


def test_the_demo_solves_more_with_more_attempts(tmp_path, capsys) -> None:
    out = tmp_path / "demo"
    assert main(reason("demo", out=out, count=6, difficulty=3, attempts=6)) == 0
    told = capsys.readouterr().out
    right = [int(line.split("|")[2].split(" of ")[0]) for line in told.splitlines() if " of 6 " in line]
    assert len(right) == 5 and right[2] > right[0]  # who may check six attempts, against who has one
    assert right[4] > right[0]  # who searches, against who does not
    page = (out / "solve.html").read_text()
    assert "shipped/countdown-steps, 831,232 parameters; shipped/countdown, 831,232 parameters" in page
    assert "journey" in page and "chain-of-thought (countdown)" in page
    found = trees(out / "around" / "best-of-n-attempts=6,value=outcome.jsonl")
    assert len(found) == 6 and all(tree.ledger.tokens > 0 for tree in found)


def test_an_interrupted_search_goes_on_as_if_it_had_never_stopped(adder, tmp_path, capsys, monkeypatch) -> None:
    def command(out: str) -> list[str]:
        methods = ("chain-of-thought", "beam:beams=4,width=2,value=outcome")
        options = {"method": methods, "model": adder, "max_tokens": 30, "count": 7, "piece": 3, "difficulty": (2, 3)}
        return reason("solve", SUMS, out=tmp_path / out, **options)

    assert main(command("whole")) == 0
    with monkeypatch.context() as patch:
        interrupt_after_pieces(2, patch)
        assert main(command("cut")) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert len(trees(tmp_path / "cut" / "chain-of-thought.jsonl")) == 6
    assert not (tmp_path / "cut" / "beam-beams=4,width=2,value=outcome.jsonl").exists()
    assert "6 of" not in (tmp_path / "cut" / "solve.html").read_text().partition("<table")[0]
    assert main(command("cut")) == 0
    for name in ("chain-of-thought.jsonl", "beam-beams=4,width=2,value=outcome.jsonl"):
        whole, cut = (trees(tmp_path / out / name) for out in ("whole", "cut"))
        assert [tree.problem.difficulty for tree in whole] == [2, 3, 2, 3, 2, 3, 2]
        assert timeless(whole) == timeless(cut)
        assert len({json.dumps(tree.settings) for tree in cut}) == 1


@pytest.mark.parametrize("left", [1, 40, 100_000])
def test_what_a_killed_writer_has_left_is_solved_again(left, tmp_path, monkeypatch) -> None:
    """A file that ends anywhere within a line, be it its only one."""
    monkeypatch.setattr(files, "BLOCK", 64)
    command = reason("solve", "countdown", method="beam:beams=4,width=2", out=tmp_path, **BY_RULE)
    assert main(command) == 0
    path = tmp_path / "beam-beams=4,width=2.jsonl"
    whole, content = trees(path), path.read_bytes()
    path.write_bytes(content[: max(10, len(content) - left)])
    assert main(command) == 0
    assert timeless(trees(path)) == timeless(whole)


def test_more_can_be_asked_for_in_the_same_folder(tmp_path, capsys) -> None:
    out = tmp_path / "out"
    assert main(reason("solve", "countdown", method="beam:beams=4,width=2", out=out, **BY_RULE)) == 0
    before = trees(out / "beam-beams=4,width=2.jsonl")
    more = {**BY_RULE, "count": 9, "method": ("beam:beams=4,width=2", "mcts:simulations=2")}
    assert main(reason("solve", "countdown", out=out, **more)) == 0
    after = trees(out / "beam-beams=4,width=2.jsonl")
    assert len(after) == 9 and after[:6] == before
    assert len(trees(out / "mcts-simulations=2.jsonl")) == 9
    assert main(reason("solve", "countdown", "--json", out=out, **{**more, "count": 2})) == 0
    assert [row["problems"] for row in json.loads(capsys.readouterr().out.splitlines()[-1])] == [2, 2]
    assert len(trees(out / "beam-beams=4,width=2.jsonl")) == 9


def test_a_budget_closes_thoughts(adder, tmp_path, capsys) -> None:
    options = {"model": adder, "count": 4, "extensions": 1, "wait": "Hm", "difficulty": 4}
    command = reason("solve", SUMS, "--thinking", "6", "12", "--close-loops", out=tmp_path / "out", **options)
    assert main(command) == 0
    for most in (6, 12):
        for tree in trees(tmp_path / "out" / f"chain-of-thought,thinking={most}.jsonl"):
            (node,) = tree.nodes[1:]
            assert node.text.count("answer: ") == 1
            assert (tree.settings["thinking"], tree.settings["extensions"], tree.settings["wait"]) == (most, 1, "Hm")
            assert tree.settings["loops"]["times"] > 1
    told = capsys.readouterr().out.splitlines()[-1]
    line = re.fullmatch(
        r"chain-of-thought: ([+-]\d+\.\d+) for 1,000 thinking tokens more \(scaling\), .* at best \(performance\), "
        r"(\d\.\d+) of the thoughts within their budget \(control\)",
        told,
    )
    assert line, told
    assert main([*command, "--json"]) == 0
    few, many = json.loads(capsys.readouterr().out)
    for row, most in ((few, 6), (many, 12)):
        nodes = [tree.nodes[1] for tree in trees(tmp_path / "out" / f"chain-of-thought,thinking={most}.jsonl")]
        assert row["mean_thinking_tokens"] == sum(node.thinking_tokens for node in nodes) / len(nodes) <= most
        assert all(0 < node.thinking_tokens < node.tokens for node in nodes)
        assert row["control"] == 1
    more = many["mean_thinking_tokens"] - few["mean_thinking_tokens"]
    assert float(line[1]) == pytest.approx(1000 * (many["accuracy"] - few["accuracy"]) / more, abs=5e-4)
    assert float(line[2]) == 1


def test_the_figures_of_a_budget_are_of_thoughts_alone() -> None:
    """Scaling by the tokens of thoughts, whatever was read; control counts those that were too short or long."""

    def solved(most: int, thinking: list[int], right: list[bool]) -> Solved:
        made = {}
        for number, (count, fine) in enumerate(zip(thinking, right, strict=True)):
            tree = Tree(build_task("countdown").problem("test", 3, number), "chain-of-thought", right=fine)
            tree.add(0, "text", tokens=count + 9, thinking_tokens=count, finished=True)
            tree.ledger.charge(prompt=10_000 * most, generated=count + 9)
            made[tree.problem.id] = tree
        settings = {"thinking": most, "least": 30}
        return Solved(f"chain-of-thought,thinking={most}", Run("chain-of-thought", settings, made))

    few, many = solved(64, [20, 60], [False, False]), solved(256, [200, 280], [True, False])
    (line,) = budget_lines([few, many])
    assert line.strip().startswith("chain-of-thought: +2.500 for 1,000 thinking tokens more")  # 0.5 for 200 tokens
    assert line.endswith("0.500 at best (performance), 0.500 of the thoughts within their budget (control)")
    assert figures(few)["control"] == 0.5 and figures(many)["mean_thinking_tokens"] == 240
    assert budget_lines([few]) == [] and budget_lines([few, solved(256, [20, 60], [True, True])]) == []


class Unmarked:
    """A tokenizer that puts no mark before a text."""

    end_ids = frozenset({0})

    def encode(self, text):
        return list(text.encode())

    def decode(self, ids):
        return bytes(ids).decode()


def test_a_question_whose_first_token_cannot_be_read_is_told_of(tmp_path, capsys, monkeypatch) -> None:
    assert hides_first_token(Unmarked(), FORMATS["plain"])
    assert not hides_first_token(Unmarked(), FORMATS["think"])
    assert not hides_first_token(ByteTokenizer(), FORMATS["plain"])
    monkeypatch.setattr("mnemonist.cli.reason.material.hides_first_token", lambda tokenizer, format: True)
    llama = save_llama(tmp_path / "llama")
    assert main(reason("solve", SUMS, model=llama, count=1, max_tokens=2, out=tmp_path / "out")) == 0
    assert "can hardly read the first token" in capsys.readouterr().err


def test_solved_problems_are_shown_before_the_question(adder, tmp_path) -> None:
    """To a model of transformers, which nobody has trained."""
    llama = save_llama(tmp_path / "llama")
    command = reason("solve", SUMS, model=llama, count=2, max_tokens=4, shots=1, format="think", out=tmp_path / "out")
    assert main(command) == 0
    put = json.loads((tmp_path / "out" / "solve.json").read_text())["text format"]
    shown = build_task(SUMS).problem("train", 2, 0)
    assert put["before"].startswith("Solve the problem step by step") and shown.question in put["before"]
    assert f"<answer>{shown.answer}</answer>" in put["before"] and put["after"] == "\n<think>\n"
    assert put["before"].endswith("\n\nQuestion: ") and put["lead"] == ""
    (tree, _) = trees(tmp_path / "out" / "chain-of-thought.jsonl")
    assert tree.settings["sampler"] == "llama" and tree.ledger.prompt_tokens > len(put["before"])


@pytest.fixture
def server():
    """It answers every prompt with the same text, and keeps what it was asked."""
    with serve(lambda asked: "2 + 4 = 6\nanswer: 6\n") as place:
        yield place


def test_a_server_is_asked(server, tmp_path, capsys) -> None:
    url, asked = server
    command = reason("solve", SUMS, server=url, server_model="small", split="train", count=3, out=tmp_path / "out")
    assert main(command) == 0
    prompts = {body["prompt"] for body in asked}
    assert prompts == {build_task(SUMS).problem("train", 2, n).question + "\n" for n in range(3)}
    right = [tree.problem.answer == "6" for tree in trees(tmp_path / "out" / "chain-of-thought.jsonl")]
    assert f"| {sum(right)} of 3 " in capsys.readouterr().out and any(right)


def test_a_chat_server_is_told_what_is_wanted(server, tmp_path) -> None:
    url, asked = server
    options = {"server": url, "server_model": "small", "format": "think", "count": 1}
    assert main(reason("solve", SUMS, "--chat", out=tmp_path / "out", **options)) == 0
    question = build_task(SUMS).problem("test", 2, 0).question
    (message,) = asked[0]["messages"]
    assert message["content"].startswith("Solve the problem step by step, one step a line.")
    assert message["content"].endswith(f"\n\nQuestion: {question}\n<think>\n")


@pytest.mark.parametrize("command", [["solve", SUMS], ["distil", SUMS], ["traces", "countdown"]])
def test_a_slow_server_is_reported_as_soon_as_is_asked_for(command, tmp_path, capsys) -> None:
    def answer(asked: dict) -> str:
        time.sleep(0.3)
        return "answer: 6\n"

    with serve(answer) as (url, asked):
        options = {"server": url, "server_model": "small", "timeout": 0.05, "retries": 0, "count": 1}
        if command[0] == "distil":
            options["preset"] = SMALLEST
        refuses(reason(*command, out=tmp_path / "out", **options), "does not answer within 0.05 s; allow it", capsys)
    assert len(asked) == 1


def test_a_piece_that_a_server_fails_in_goes_on(tmp_path, capsys) -> None:
    credit = 10**9

    def answer(asked: dict) -> str | None:
        nonlocal credit
        credit -= 1
        return f"answer: {asked['seed'] % 10}\n" if credit >= 0 else None

    with serve(answer) as (url, asked):

        def command(out: str) -> list[str]:
            options = {"server": url, "server_model": "small", "count": 5, "piece": 3, "batch_size": 1}
            return reason("solve", SUMS, method="self-consistency:attempts=4", out=tmp_path / out, **options)

        assert main(command("whole")) == 0
        credit = 16
        assert main(command("cut")) == 2
        told = capsys.readouterr().err
        assert "the same command goes on with what is missing" in told and "4 of 8 attempts are kept in" in told
        credit, before = 10**9, len(asked)
        assert main(command("cut")) == 0
        assert len(asked) - before == 4
    name = "self-consistency-attempts=4.jsonl"
    whole, cut = (trees(tmp_path / out / name) for out in ("whole", "cut"))
    assert timeless(whole) == timeless(cut)
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == [name, "solve.html", "solve.json"]


@pytest.mark.parametrize("chat", [False, True])
def test_the_command_that_asks_a_judge_runs_as_it_is_told(chat, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    if chat:
        who = ("--chat", "--model", str(save_chat(tmp_path / "chat")), "--format", "think", "--attempts", "0")
    else:
        who = ("--preset", SMALLEST)
    few = {"count": 3, "validation": 2, "epochs": 1, "difficulty": (4, 3), "task": "countdown:largest=9"}
    assert main(learn("reward", Path("judge"), *who, **few)) == 0
    told = capsys.readouterr().err
    line = re.search(r"judge in judge; ask it: mnemonist (reason solve countdown:largest=9 .*)", told)
    assert line
    assert main([*shlex.split(line[1]), "--count", "2", "--max-tokens", "4"]) == 0
    found = trees(tmp_path / "runs" / "solve" / "beam.jsonl")
    assert [tree.problem.difficulty for tree in found] == [4, 3]
    assert chat or found[0].ledger.reward_tokens > 0  # the chat model, which nobody has trained, writes no step
    put = json.loads((tmp_path / "runs" / "solve" / "solve.json").read_text())["text format"]["name"]
    assert put == ("think (chat)" if chat else "plain")


# Problems of one's own.


def mine(path, count: int = 40):
    path.write_text("".join(f'{{"prompt": "{n} + 4 = ?", "answer": {n + 4}}}\n' for n in range(count)))
    return f"rows:path={path},match=number"


def test_rows_of_ones_own_are_solved(server, tmp_path, capsys) -> None:
    url, asked = server
    task = build_task(mine(tmp_path / "mine.jsonl"))
    options = {"server": url, "server_model": "small", "out": tmp_path / "out", "split": "train"}
    assert main(reason("solve", task.name, **options)) == 0
    told = capsys.readouterr()
    count = task.size("train")
    assert count < 40 and f"has {count} problems of the split train; count is 50, and these are taken" in told.err
    assert f"| 1 of {count} " in told.out  # that of 2 + 4
    assert {body["prompt"] for body in asked} == {task.problem("train", 0, n).question + "\n" for n in range(count)}
    mine(tmp_path / "mine.jsonl", 1)
    refuses(
        reason("solve", task.name, **{**options, "split": "validation"}),
        "none is of the split validation; add rows",
        capsys,
    )
    alone = {**options, "out": tmp_path / "alone", "split": "test"}
    assert main(reason("solve", f"rows:test={tmp_path / 'mine.jsonl'},match=number", **alone)) == 0
    assert "| 0 of 1 " in capsys.readouterr().out
    refuses(
        reason("solve", f"rows:test={tmp_path / 'mine.jsonl'}", **{**alone, "split": "train"}),
        "has no file for the split train; name one with train=FILE",
        capsys,
    )
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(f'{{"prompt": "{n} + 5 = ?", "answer": {n + 5}}}\n' for n in range(40)))
    refuses(reason("solve", task.name, **options), "the file of the task has changed; take another folder", capsys)


def test_rows_of_ones_own_are_learned_but_nobody_here_can_solve_them(adder, tmp_path, capsys) -> None:
    task, few = mine(tmp_path / "mine.jsonl"), {"count": 4, "validation": 0}
    refuses(learn("distil", tmp_path / "x", task=task, **few), "needs a task whose steps can be checked", capsys)
    refuses(reason("traces", task, out=tmp_path / "x"), "needs a task whose steps can be checked", capsys)
    whole = f"rows:train={tmp_path / 'mine.jsonl'}"
    refuses(
        learn("rest-em", tmp_path / "x", task=whole, model=adder, count=4),
        "name one with validation=FILE, or leave them out with --validation 0",
        capsys,
    )
    small = {"model": adder, "count": 4}
    for name in ("rest-em:iterations=1,attempts=4,max_tokens=20,epochs=1", "grpo:iterations=1,attempts=2,max_tokens=8"):
        out = tmp_path / name.partition(":")[0]
        code = main(learn(name, out, task=task, **small))
        told = capsys.readouterr()
        assert code == 0 or "no attempt" in told.err, told.err
        assert "problems of the split validation; validation is 100, and these are taken" in told.err
        assert [path for path in out.rglob("*.jsonl") if "+ 4 = ?" in path.read_text()]


# What is refused: exit code 2, one sentence on stderr, nothing on stdout, nothing written.

MOVES = "beam:proposer=moves,value=gold"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["countdwn"], "there is no task 'countdwn' (did you mean 'countdown'?)"),
        (["countdown:bigest=3"], "'bigest=3' is not a change to the task countdown"),
        (["countdown", "--method", "bean"], "there is no method 'bean' (did you mean 'beam'?)"),
        (["countdown", "--method", "beam:beans=3"], "'beans=3' is not a change to the method beam"),
        (["countdown", "--method", MOVES, MOVES], "is named twice; name each once"),
        (["countdown", "--method", MOVES, "--value", "silver"], "value is 'silver'; it must be one of model, self"),
        (["countdown", "--method", MOVES, "--difficulty", "9"], "countdown has no difficulty 9; it has 3, 4, 5, 6"),
        (["countdown", "--method", MOVES, "--difficulty", "3", "3"], "a difficulty is named twice"),
        (["countdown", "--method", MOVES, "--count", "0"], "count is 0; ask for at least 1 problem"),
        (["countdown", "--method", MOVES, "--piece", "0"], "piece is 0; solve at least 1 problem at a time"),
        (["countdown", "--method", MOVES, "--extensions", "2"], "extensions and the like belong to a budget"),
        (["countdown", "--model", "ADDER", "--thinking", "9", "9"], "name each number of tokens once"),
        (["countdown", "--method", MOVES, "--temperature", "-1"], "temperature is -1.0"),
        (["countdown"], "method chain-of-thought asks a policy; name one with --model or --server"),
        (["countdown", "--method", "uct:proposer=moves"], "method uct asks a policy"),
        (["countdown", "--model", "nowhere"], "There is no model at nowhere"),
        (["countdown", "--model", "some/model"], "nothing is downloaded: give the folder of a model"),
        (["countdown", "--model", "shipped/memry"], "(did you mean 'shipped/memory'?)"),
        (
            ["countdown", "--model", "ADDER", "--method", "beam"],
            "method beam needs values: name a process reward model",
        ),
        (["countdown", "--model", "ADDER", "--scorer", "nowhere"], "there is no process reward model in nowhere"),
        (["countdown", "--model", "ADDER", "--format", "plane"], "there is no format 'plane' (did you mean 'plain'?)"),
        (
            ["countdown", "--model", "ADDER", "--chat"],
            "a chat needs a model of transformers that has a template",
        ),
        (["countdown", "--model", "ADDER", "--shots", "-1"], "shots is -1"),
        (["countdown", "--model", "ADDER", "--thinking", "0"], "is no budget"),
        (["countdown", "--model", "ADDER", "--thinking", "9", "--method", "beam:value=gold"], "leave out --thinking"),
        (["reasoning-gym", "--method", MOVES], "proposer=moves needs a task whose steps can be checked"),
        (["countdown", "--server", "http://127.0.0.1:9"], "name the one to ask with --server-model"),
        (["countdown", "--server", "localhost", "--server-model", "m"], "is no address of a server"),
        (
            ["countdown", "--server", "http://127.0.0.1:9", "--server-model", "m"],
            "nothing answers at http://127.0.0.1:9",
        ),
        (["countdown", "--server", "http://127.0.0.1:9", "--model", "ADDER"], "there are two policies"),
        *(
            (
                ["countdown", "--server", "http://127.0.0.1:9", "--server-model", "m", "--chat", "--method", method],
                f"method {method.partition(':')[0]} goes on from texts that are begun, which a chat server cannot do",
            )
            for method in (
                "beam:value=gold",
                "tree-of-thought:value=self",
                "mcts:value=outcome",
                "beam:proposer=moves,value=rollouts",
                "best-of-n:value=any-rollout",
            )
        ),
    ],
)
def test_bad_input_ends_in_one_sentence(words, sentence, adder, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    named = [{"ADDER": str(adder)}.get(word, word) for word in words]
    refuses(["reason", "solve", *named, "--out", str(tmp_path / "out")], sentence, capsys)
    assert list(tmp_path.iterdir()) == []


def test_solutions_of_another_run_are_refused(adder, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    same = {"count": 2, "max_tokens": 20, "out": out}
    assert main(reason("solve", SUMS, model=adder, **same)) == 0
    before = {path: path.read_bytes() for path in out.iterdir()}
    llama = save_llama(tmp_path / "llama")
    refuses(
        reason("solve", SUMS, model=llama, **same), "another run: its policy, weights differ; take the same", capsys
    )
    refuses(
        reason("solve", SUMS, model=adder, seed=1, **same),
        "of another run: decoding.seed was 0, now 1; take",
        capsys,
    )
    refuses(reason("solve", "countdown", model=adder, **same), "of another run: its task differ", capsys)
    (out / "best-of-n.jsonl").write_bytes((out / "chain-of-thought.jsonl").read_bytes())
    command = reason("solve", SUMS, model=adder, method="best-of-n", value="outcome", **same)
    refuses(command, "the trees in", capsys)
    lines = (out / "chain-of-thought.jsonl").read_text()
    (out / "chain-of-thought.jsonl").write_text(lines.replace("mnemonist-tree/1", "mnemonist-tree/9"))
    sentence = "chain-of-thought.jsonl, line 1: this is no tree of this version ('mnemonist-tree/9'"
    refuses(reason("solve", SUMS, model=adder, **same), sentence, capsys)
    (out / "solve.json").write_text("{")
    refuses(reason("solve", SUMS, model=adder, **same), "solve.json is damaged", capsys)
    assert (out / "solve.html").read_bytes() == before[out / "solve.html"]


def test_models_of_transformers_that_cannot_be_opened(tmp_path, capsys) -> None:
    small = save_llama(tmp_path / "small", tokens=200)
    refuses(reason("solve", SUMS, model=small), "has 259 tokens and the model 200: they do not belong together", capsys)
    broken = save_llama(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"no tensors")
    refuses(reason("solve", SUMS, model=broken), f"the model in {broken} cannot be opened", capsys)
    (broken / "config.json").write_text("{")
    refuses(reason("solve", SUMS, model=broken), "config.json cannot be read", capsys)
