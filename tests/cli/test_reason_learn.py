"""``mnemonist reason`` learns: traces, rounds and recipes, judges of steps; and what they leave behind."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import interrupt_at, refuses, same_weights
from reason_runs import SMALL, SMALLEST, SUMS, learn, lines, reason, save_chat, save_llama, serve, trees
from safetensors.torch import load_file
from tiny_tokenizers import save_tokenizer
from transformers import AutoModelForCausalLM

import mnemonist.cli.reason.learn
from mnemonist.cli import main
from mnemonist.cli.options import parse
from mnemonist.cli.reason.policies import Model
from mnemonist.data import find_tokenizer
from mnemonist.models import LanguageModel
from mnemonist.reasoning import Attempt, LocalSampler, find_format, learning
from mnemonist.reasoning.prompting import instruction_for
from mnemonist.reasoning.rounds import RECIPES
from mnemonist.reasoning.sampling import text_tokenizer
from mnemonist.reasoning.tasks import build_task, load_rows
from mnemonist.reasoning.weighing import load_judged
from mnemonist.report import ReasoningPage
from mnemonist.training import TrainingConfig, load_checkpoint

SHORT = "max_tokens=40"


# Traces.


@pytest.mark.parametrize("match", ["examples", "tokens-by-passes"])
def test_traces_have_both_arms_and_right_answers(match, tmp_path, capsys) -> None:
    out, page = tmp_path / "traces.jsonl", tmp_path / "page.html"
    options = {"count": 12, "difficulty": (3, 4), "journey": "o1-journey:chance=1", "phrases": "spoken", "match": match}
    assert main(reason("traces", "countdown", out=out, page=page, format="think", **options)) == 0
    told = capsys.readouterr()
    rows = load_rows(out)
    task, format = build_task("countdown"), find_format("think")
    problems = {
        task.problem("train", 3 + n % 2, n // 2).id: task.problem("train", 3 + n % 2, n // 2) for n in range(12)
    }
    tokens = {"journey": 0, "shortcut": 0}
    for row in rows:
        parsed = format.parse(row["completion"])
        assert parsed.well_formed and task.judge(problems[row["problem"]], parsed.answer).right
        assert row["prompt"] == format.prompt(problems[row["problem"]].question)
        assert row["rules"] == "o1-journey:chance=1.0"
        tokens[row["arm"]] += len(row["completion"].encode()) + 1
    assert {row["problem"] for row in rows} == set(problems)
    for arm, sum_ in tokens.items():
        count = sum(row["arm"] == arm for row in rows)
        assert re.search(rf"^\| {arm} +\| {count} +\| 12 +\| \d+ +\| {sum_:,} ", told.out, flags=re.MULTILINE)
    more = tokens["journey"] / tokens["shortcut"]
    assert more > 1.5 if match == "examples" else 0.95 < more < 1.05
    assert any("Back to" in row["completion"] for row in rows if row["arm"] == "journey")
    assert r"countdown/train/3/0 \u00b7 o1-journey" in page.read_text()


def test_where_nothing_goes_astray_that_is_said(tmp_path, capsys) -> None:
    assert main(reason("traces", SUMS, out=tmp_path / "traces.jsonl", count=3)) == 0
    assert "no journey goes astray" in capsys.readouterr().err


def retold(asked: dict) -> str:
    """The steps that a rewriter is asked to keep, with words between them."""
    (message,) = asked["messages"]
    steps = message["content"].split("Steps to keep:\n")[1].split("\n\nRewritten:")[0].splitlines()
    return "Let me see.\n" + "\nHmm, and then?\n".join(steps)


def test_a_server_rewrites_both_arms_and_is_asked_once(tmp_path, capsys) -> None:
    out, page = tmp_path / "traces.jsonl", tmp_path / "page.html"
    with serve(retold) as (url, asked):
        options = {"count": 4, "journey": "o1-journey:chance=1", "server": url, "server_model": "small"}
        command = reason("traces", "countdown", out=out, page=page, **options)
        assert main(command) == 0
        assert len(asked) == 8 and "the wrong ones too" in asked[0]["messages"][0]["content"]
        assert sum("the wrong ones too" in body["messages"][0]["content"] for body in asked) == 4
        told, before = capsys.readouterr(), out.read_bytes()
        assert re.search(r"journey .*\| [1-9]\.\d+ +\|\n\| shortcut .*\| 0\.00 +\|", told.out)  # dead ends of a text
        assert "4 of 4 journeys rewritten" in told.err and "24 tokens written by small" in told.err
        out.unlink()
        assert main(command) == 0
        assert len(asked) == 8 and out.read_bytes() == before
    task, format = build_task("countdown"), find_format("plain")
    for row in load_rows(out):
        problem = task.problem("train", 3, int(row["problem"].rpartition("/")[2]))
        assert "Let me see.\n" in row["completion"]
        assert task.judge(problem, format.parse(row["completion"]).answer).right
    shortcut = next(row["completion"] for row in load_rows(out) if row["arm"] == "shortcut")
    lines_of_it = json.dumps(shortcut.splitlines()[:-1], separators=(",", ":"))
    assert f'"shortcut":{lines_of_it}' in page.read_text()  # as it is in the file


def test_what_a_rewriter_loses_is_said(tmp_path, capsys) -> None:
    with serve(lambda asked: "I would rather not.") as (url, _):
        words = reason("traces", "countdown", out=tmp_path / "t.jsonl", count=2, server=url, server_model="small")
        assert main(words) == 0
    assert "0 of 2 journeys rewritten; kept as they were: 2 because a step is missing" in capsys.readouterr().err


def test_arms_are_matched_by_the_tokens_of_who_will_learn(tmp_path, capsys) -> None:
    folder = tmp_path / "tokenizer"
    save_tokenizer("gpt2", folder)
    counted = {}
    for name, words in (("bytes", []), ("tokens", ["--tokenizer", str(folder)])):
        out = tmp_path / f"{name}.jsonl"
        options = {"count": 12, "match": "tokens-by-passes", "journey": "o1-journey:chance=1", "phrases": "spoken"}
        assert main(reason("traces", "countdown", *words, out=out, **options)) == 0
        counted[name] = capsys.readouterr().out
    assert "tokens are bytes" in counted["bytes"] and f"tokens are those of {folder}" in counted["tokens"]
    tokenizer = text_tokenizer(find_tokenizer(folder))
    tokens = {"journey": 0, "shortcut": 0}
    for row in load_rows(tmp_path / "tokens.jsonl"):
        tokens[row["arm"]] += len(tokenizer.encode(row["completion"])) - len(tokenizer.encode("")) + 1
    for arm, sum_ in tokens.items():
        assert re.search(rf"^\| {arm} .*\| {sum_:,} ", counted["tokens"], flags=re.MULTILINE)
    assert 0.95 < tokens["journey"] / tokens["shortcut"] < 1.05


# Traces of searches.


def search(out: Path, *words: str, **options: object) -> Path:
    """The file of trees that a beam without a model leaves, which cannot know what is right before the end."""
    method = "beam:beams=4,width=2,proposer=moves,value=outcome"
    command = reason("solve", "countdown", *words, method=method, out=out, **{"count": 12, "split": "train", **options})
    assert main(command) == 0
    return out / f"{method.replace(':', '-')}.jsonl"


def test_trees_of_a_search_are_told(tmp_path, capsys) -> None:
    found = search(tmp_path / "solved")
    solved = {tree.problem.id: tree for tree in trees(found) if any(node.right for node in tree.nodes)}
    assert 0 < len(solved) < 12
    capsys.readouterr()
    out, page = tmp_path / "traces.jsonl", tmp_path / "page.html"
    assert main(reason("traces", "countdown", trees=found, out=out, page=page, journey="o1-journey:chance=1")) == 0
    told = capsys.readouterr()
    assert f"left out of {found}: trees {12 - len(solved)} without a right answer" in told.err
    rows, task, format = load_rows(out), build_task("countdown"), find_format("plain")
    assert [row["problem"] for row in rows if row["arm"] == "journey"] == list(solved)
    for row in rows:
        tree = solved[row["problem"]]
        assert (
            row["tree"].startswith("beam/") and task.judge(tree.problem, format.parse(row["completion"]).answer).right
        )
        said = [line for line in format.parse(row["completion"]).steps if " = " in line]
        assert set(said) <= {node.text for node in tree.nodes}
    dead_ends = [line for row in rows for line in row["completion"].splitlines() if line.startswith("no: ")]
    assert dead_ends and "no: this leads nowhere" not in dead_ends  # the task knows better
    assert r"\u00b7 o1-journey" in page.read_text()
    assert (
        main(learn("journey:epochs=1", tmp_path / "out", task="countdown", data=out, preset=SMALLEST, validation=0))
        == 0
    )


def test_whole_attempts_of_a_policy_are_told_too(adder, tmp_path) -> None:
    solved = tmp_path / "solved"
    options = {"method": "self-consistency:attempts=8", "model": adder, "max_tokens": 40, "split": "train"}
    assert main(reason("solve", SUMS, count=8, out=solved, **options)) == 0
    found = solved / "self-consistency-attempts=8.jsonl"
    assert main(reason("traces", SUMS, trees=found, out=tmp_path / "t.jsonl")) == 0
    rows, task = load_rows(tmp_path / "t.jsonl"), build_task(SUMS)
    problems = {tree.problem.id: tree.problem for tree in trees(found)}
    assert rows and all(
        task.judge(problems[row["problem"]], find_format("plain").parse(row["completion"]).answer).right for row in rows
    )


def test_trees_that_cannot_be_told(adder, tmp_path, capsys) -> None:
    found, out = search(tmp_path / "solved", split="test", count=4), tmp_path / "t.jsonl"
    sentence = f"no tree in {found} can be told (4 of split test); search longer, solve problems of split train"
    refuses(reason("traces", "countdown", trees=found, out=out), sentence, capsys)
    refuses(reason("traces", SUMS, trees=found, out=out), f"are of task countdown, not {SUMS}; name theirs", capsys)
    options = {"model": adder, "max_tokens": 4, "split": "train", "count": 1}
    assert main(reason("solve", SUMS, out=tmp_path / "s", **options)) == 0
    found = tmp_path / "s" / "chain-of-thought.jsonl"
    refuses(reason("traces", SUMS, trees=found, out=out, format="think"), "take --format plain", capsys)
    refuses(reason("traces", "countdown", trees=tmp_path / "no", out=out), "there is no file of trees", capsys)
    assert not out.exists()


# Rounds.


def test_distillation_leaves_a_model_that_others_open(adder, capsys) -> None:
    assert {path.name for path in adder.iterdir()} >= {"config.json", "model.safetensors", "round.json", "learn.html"}
    assert len(lines(adder / "metrics.jsonl")) == 1
    model = LanguageModel.load(adder)
    format, task = find_format("plain"), build_task(SUMS)
    (judged, *_) = load_judged(adder / "0" / "validation.jsonl")
    assert judged.problem == task.problem("validation", 2, 0)
    assert main(["generate", "--model", str(adder), "--prompt", "2 + 4 = ?\n", "--greedy", "--tokens", "40"]) == 0
    written = capsys.readouterr().out
    assert format.parse(written).well_formed, written  # it has learned how texts look, and to end them
    page = (adder / "learn.html").read_text()
    assert "loss of the last fit" in page and "distil, validation" in page
    assert model.config.width == 48


def test_the_doctor_is_heard(tmp_path, capsys) -> None:
    command = learn("distil:epochs=1", tmp_path / "out", preset=SMALLEST, count=8, validation=8)
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "distil, right in validation: 0.0 % (0.0 to 32.4) after 1 iteration\n" in out
    assert "the doctor says: in validation, " in out
    assert "the doctor says (1)" in (tmp_path / "out" / "learn.html").read_text()


def test_a_policy_learns_from_its_right_attempts(adder, tmp_path, capsys) -> None:
    round_ = f"rest-em:iterations=2,attempts=8,{SHORT},until_worse=false,temperature=1"
    out = tmp_path / "out"
    assert main(learn(round_, out, "--training.learning-rate", 1e-4, model=adder, count=32, validation=4)) == 0
    records = lines(out / "metrics.jsonl")
    assert [record["iteration"] for record in records] == [0, 1] and all(record["accuracy"] > 0 for record in records)
    assert not same_weights(adder, out)
    told = capsys.readouterr().out
    assert re.search(r"rest-em, right in validation: [\d.]+ % \([\d.]+ to [\d.]+\) after 2 iterations\n", told)
    assert "share of attempts that are right" in (out / "learn.html").read_text()


def test_what_is_told_is_of_the_iteration_that_is_kept(adder, tmp_path, capsys, monkeypatch) -> None:
    pages: list[ReasoningPage] = []
    validate = learning.validate

    def falling(path: Path, *rest: object) -> float:
        validate(path, *rest)  # type: ignore[arg-type]
        return {"base": 0.25, "0": 0.5, "1": 0.5}[path.parent.name]

    monkeypatch.setattr(learning, "validate", falling)
    monkeypatch.setattr(mnemonist.cli.reason.learn, "write_reasoning", lambda path, page: pages.append(page))
    out = tmp_path / "out"
    assert main(learn(f"rest-em:iterations=3,attempts=8,epochs=1,{SHORT}", out, model=adder, validation=4)) == 0
    told = capsys.readouterr().out
    assert "rest-em, right in validation before: 25.0 % (" in told
    assert re.search(r"rest-em, right in validation: 50.0 % \([^)]*\), iteration 1 of 2 kept \(folder 0\)\n", told)
    shown = {name: [one.text for one in pages[0].rollouts if one.group == f"rest-em, {name}"]
             for name in ("validation", "validation before")}  # fmt: skip
    for name, folder in (("validation", "0"), ("validation before", "base")):
        assert shown[name] == [one.attempt.text for one in load_judged(out / folder / "validation.jsonl")]
    (loss,) = [plot for plot in pages[0].curves if plot.title == "loss of the last fit"]
    assert [*loss.series[0].y] == [line["loss"] for line in lines(out / "0" / "fit" / "metrics.jsonl")]


def test_a_policy_prefers_right_attempts(adder, tmp_path) -> None:
    out = tmp_path / "out"
    assert main(learn(f"dpo:attempts=8,{SHORT},temperature=1", out, model=adder, count=16, validation=0)) == 0
    pairs = lines(out / "0" / "pairs.jsonl")
    assert pairs and all(pair["chosen"] != pair["rejected"] for pair in pairs)
    assert not same_weights(adder, out)


@pytest.mark.parametrize("name", ["grpo", "dr-grpo", "gspo", "lite-ppo"])
def test_policy_gradients_move_a_policy(name, adder, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    round_ = f"{name}:iterations=2,problems=8,attempts=4,minibatches=2,{SHORT}"
    options = {"model": adder, "count": 16, "validation": 0, "format_reward": 0.2}
    assert main(learn(round_, out, "--training.learning-rate", 1e-3, **options)) == 0
    records = lines(out / "metrics.jsonl")
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert all(record["reward"] >= record["accuracy"] for record in records)
    assert not same_weights(adder, out)
    assert f"{name}: 2 iterations\n" in capsys.readouterr().out
    assert "entropy, nats a token" in (out / "learn.html").read_text()


def test_an_objective_can_be_replaced(adder, tmp_path) -> None:
    """By one with dynamic sampling."""
    out = tmp_path / "out"
    round_ = f"grpo:iterations=1,problems=2,attempts=8,{SHORT}"
    options = {"model": adder, "count": 32, "validation": 0, "objective": "dapo:overlong_share=0", "format_reward": 0.2}
    assert main(learn(round_, out, **options)) == 0
    assert json.loads((out / "round.json").read_text())["round"]["objective"]["name"] == "dapo"
    assert lines(out / "metrics.jsonl")[0]["kl"] is None  # it has no reference


def test_journeys_and_shortcuts_are_learned_from_a_file_or_made(tmp_path, capsys) -> None:
    made = {"task": "countdown", "count": 10, "journey": "depth-first"}
    assert main(reason("traces", made["task"], out=tmp_path / "t", count=10, journey="depth-first")) == 0
    for arm in ("journey", "shortcut"):
        for source in ("file", "made"):
            options = {"preset": SMALLEST, "validation": 0, "arm": arm, "task": "countdown", "count": 10}
            options |= {"data": tmp_path / "t"} if source == "file" else made
            assert main(learn("journey:epochs=1", tmp_path / f"{arm}-{source}", **options)) == 0
        assert same_weights(tmp_path / f"{arm}-file", tmp_path / f"{arm}-made")
    assert not same_weights(tmp_path / "journey-made", tmp_path / "shortcut-made")
    assert r"countdown/train/3/0 \u00b7 depth-first" in (tmp_path / "journey-made" / "learn.html").read_text()


def test_adapters_alone_are_trained_and_then_merged(adder, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    assert main(learn("distil:epochs=1", out, model=adder, count=16, validation=2, lora=1)) == 0
    told = re.search(r"distil:epochs=1: ([\d,]+) of ([\d,]+) parameters learn", capsys.readouterr().err)
    assert told is not None
    weights = load_checkpoint(out / "0" / "fit" / "checkpoint").model
    adapters, all_ = (sum(w.numel() for n, w in weights.items() if part in n) for part in ("lora", ""))
    assert told.groups() == (f"{adapters:,}", f"{all_:,}") and 0 < adapters < 0.1 * all_
    assert f"{adapters:,} of {all_:,} parameters" in (out / "learn.html").read_text()
    before, after = (load_file(folder / "model.safetensors") for folder in (adder, out))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and "embedding.weight" not in changed
    assert all(torch.linalg.matrix_rank(after[name] - before[name], atol=1e-5) <= 1 for name in changed)
    assert main(reason("solve", SUMS, model=out, count=1, max_tokens=4, out=tmp_path / "s")) == 0


def test_a_model_of_transformers_learns(tmp_path) -> None:
    llama, out = save_llama(tmp_path / "llama"), tmp_path / "out"
    assert main(learn("distil:epochs=1", out, model=llama, count=16, validation=2)) == 0
    learned = AutoModelForCausalLM.from_pretrained(out)
    before = AutoModelForCausalLM.from_pretrained(llama).state_dict()
    assert any(not torch.equal(value, before[name]) for name, value in learned.state_dict().items())
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
    assert main(reason("solve", SUMS, model=out, count=1, max_tokens=4, out=tmp_path / "s")) == 0
    assert trees(tmp_path / "s" / "chain-of-thought.jsonl")[0].settings["sampler"] == "out"


def test_another_model_teaches(adder, tmp_path) -> None:
    out = tmp_path / "out"
    round_ = f"distil:epochs=1,attempts=8,{SHORT}"
    assert main(learn(round_, out, preset=SMALLEST, teacher=adder, count=16, validation=0)) == 0
    judged = load_judged(out / "0" / "attempts" / "00000.jsonl")
    assert len(judged) == 128 and {one.right for one in judged} == {True, False}


def test_a_teacher_judges_every_token_of_its_student(adder, tmp_path, capsys) -> None:
    begun, out = tmp_path / "begun", tmp_path / "out"
    assert main(learn("distil:epochs=4", begun, preset=SMALL, count=64, validation=0)) == 0
    round_ = f"on-policy-distil:iterations=16,problems=8,{SHORT}"
    assert main(learn(round_, out, model=begun, teacher=adder, teacher_shots=0, count=64, validation=4)) == 0
    apart = [json.loads(line)["kl"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(apart) == 16 and sum(apart[-4:]) < 0.8 * sum(apart[:4])
    assert len(load_judged(out / "attempts" / "000015.jsonl")) == 8
    assert "no-comparison" not in capsys.readouterr().err
    assert main(["reason", "doctor", str(out)]) == 0
    assert "collapse" not in capsys.readouterr().out


def test_what_one_model_gets_right_is_fitted_to_from_another(adder, tmp_path, capsys) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    assert main(learn("distil:epochs=1", base, preset=SMALL, count=4, validation=0)) == 0
    round_, same = f"rejection-sampling:attempts=8,{SHORT}", {"model": adder, "count": 32, "validation": 0}
    assert main(learn(round_, out, "--training.learning-rate", 1e-12, base=base, **same)) == 0
    begun, ended = (load_file(folder / "model.safetensors") for folder in (base, out))
    assert all(torch.allclose(begun[name], ended[name], atol=1e-6) for name in begun)
    assert any(one.right for one in load_judged(out / "0" / "attempts" / "00000.jsonl"))  # which the base never is
    small = tmp_path / "small"
    assert main(learn("distil:epochs=1", small, preset=SMALLEST, count=4, validation=0)) == 0
    refuses(learn(round_, tmp_path / "x", base=small, **same), "has another shape than the learner", capsys)


@pytest.mark.parametrize("chat", [False, True])
def test_a_teacher_behind_a_server_is_told_what_is_wanted(chat, tmp_path) -> None:
    task, think, out = build_task(SUMS), find_format("think"), tmp_path / "out"
    with serve(lambda asked: "</think>\n<answer>9</answer>") as (url, asked):
        options = {"preset": SMALLEST, "server": url, "server_model": "small", "format": "think", "count": 24}
        words = ["--teacher-chat"] if chat else []
        assert main(learn("distil:epochs=1", out, *words, validation=0, teacher_shots=1, **options)) == 0
    shown = task.problem("train", 2, 24)  # behind those that are asked
    for body in asked:
        prompt = body["messages"][0]["content"] if chat else body["prompt"]
        assert prompt.startswith("Solve the problem step by step") and f"<answer>{shown.answer}</answer>" in prompt
    judged = load_judged(out / "0" / "attempts" / "00000.jsonl")
    assert [one.attempt.prompt for one in judged] == [think.prompt(one.problem.question) for one in judged]
    assert any(one.right for one in judged)
    assert json.loads((out / "round.json").read_text())["teacher"] == ["small, asked in think (1 shots)", ""]


@pytest.fixture(scope="module")
def taught_chat(tmp_path_factory) -> Path:
    """A model for chats that has learned in its template."""
    folder = tmp_path_factory.mktemp("chat")
    begun, out = save_chat(folder / "begun"), folder / "out"
    assert main(learn("distil:epochs=600", out, "--chat", model=begun, format="think", count=4, validation=0)) == 0
    return out


def test_a_chat_model_learns_in_its_template_and_is_asked_so(taught_chat, tmp_path, capsys) -> None:
    judged = load_judged(taught_chat / "0" / "attempts" / "00000.jsonl")
    asked = f"<|im_start|>user\n{instruction_for(find_format('think'))}\n\n{judged[0].problem.question}<|im_end|>\n"
    assert judged[0].attempt.prompt == f"{asked}<|im_start|>assistant\n<think>\n"
    same = {"model": taught_chat, "format": "think", "split": "train", "count": 4, "temperature": 0, "max_tokens": 100}
    assert main(reason("solve", SUMS, "--chat", out=tmp_path / "out", **same)) == 0
    found = trees(tmp_path / "out" / "chain-of-thought.jsonl")
    assert all(tree.right for tree in found)
    assert "note:" not in capsys.readouterr().err
    # Ended by the mark of a message, which is not written into the text.
    assert all(tree.ledger.generated_tokens == len(tree.nodes[-1].text) + 1 for tree in found)
    assert "<|im_end|>" not in "".join(node.text for tree in found for node in tree.nodes)
    assert main(reason("solve", SUMS, out=tmp_path / "plainly", **same)) == 0
    told = capsys.readouterr().err
    assert "has learned to be asked in format think (chat), and is asked in think: take --format think --chat" in told


def test_what_a_run_ends_with_asks_as_it_has_learned(tmp_path, capsys) -> None:
    words = {
        "model": save_chat(tmp_path / "begun"),
        "format": "think",
        "count": 4,
        "validation": 0,
        "difficulty": (2, 3),
    }
    assert main(learn("distil:epochs=1", tmp_path / "out", "--chat", **words)) == 0
    command = re.search(r"ask it: mnemonist (reason solve .*)", capsys.readouterr().err)
    assert command is not None
    assert main([*command[1].split(), "--count", "1", "--max-tokens", "4", "--out", str(tmp_path / "asked")]) == 0
    assert trees(tmp_path / "asked" / "chain-of-thought.jsonl")[0].settings["format"] == "think (chat)"


def test_a_chat_model_learns_from_its_attempts_and_is_judged(taught_chat, tmp_path) -> None:
    same, few = {"model": taught_chat, "format": "think", "count": 4}, {"validation": 2}
    options = "attempts=4,max_tokens=60"
    assert main(learn(f"grpo:iterations=1,problems=4,{options}", tmp_path / "grpo", "--chat", **same, **few)) == 0
    assert main(learn(f"rest-em:iterations=1,{options}", tmp_path / "em", "--chat", **same, **few)) == 0
    for folder, name in (("grpo", "attempts/000000.jsonl"), ("em", "0/attempts/00000.jsonl")):
        attempts = load_judged(tmp_path / folder / name)
        assert all(one.attempt.prompt.startswith("<|im_start|>user\n") for one in attempts)
        assert any(one.right for one in attempts)
    assert main(learn("reward", tmp_path / "judge", "--chat", "--epochs", "1", **same, **few, max_tokens=60)) == 0


def test_texts_of_a_file_are_put_into_a_chat(tmp_path, capsys) -> None:
    data, model = tmp_path / "traces.jsonl", save_chat(tmp_path / "begun")
    assert main(reason("traces", SUMS, out=data, count=4)) == 0
    same = {"model": model, "data": data, "validation": 0}
    out = tmp_path / "out"
    assert main(learn("journey:epochs=1", out, "--chat", **same)) == 0
    assert json.loads((out / "round.json").read_text())["text format"]["end"] == "<|im_end|>"
    refuses(learn("journey", tmp_path / "x", "--chat", format="think", **same), "not of format think", capsys)


def test_a_chat_model_with_adapters_keeps_less(tmp_path, monkeypatch) -> None:
    seen: list[bool] = []
    original = mnemonist.cli.reason.learn.keep

    def keep(options: object, model: Model) -> None:
        seen.append(model.module.is_activation_checkpointing)
        original(options, model)

    monkeypatch.setattr(mnemonist.cli.reason.learn, "keep", keep)
    words = ("--chat", "--activation-checkpointing", "--lora", 2)
    same = {"model": save_chat(tmp_path / "begun"), "format": "think", "count": 4, "validation": 0}
    assert main(learn("distil:epochs=1", tmp_path / "out", *words, **same)) == 0
    assert seen == [True]


def test_a_recipe_is_its_rounds_in_turn(adder, tmp_path, capsys, monkeypatch) -> None:
    cold, policy, *_ = RECIPES["r1"]
    draws = replace(policy.decoding, max_tokens=40)
    rounds = (replace(cold, epochs=1), replace(policy, iterations=1, problems=4, attempts=4, decoding=draws))
    monkeypatch.setattr(mnemonist.cli.reason.learn, "find_recipe", lambda name: rounds)
    assert main(learn("r1", tmp_path / "out", model=adder, count=8, validation=0)) == 0
    assert "cold-start: 1 iteration\nreasoning: 1 iteration\n" in capsys.readouterr().out
    rates = [json.loads((tmp_path / "out" / name / "round.json").read_text())["config"]["learning_rate"]
             for name in ("1-cold-start", "2-reasoning")]  # fmt: skip
    assert rates == [1e-2, pytest.approx(1e-3)]
    rewards = json.loads((tmp_path / "out" / "2-reasoning" / "round.json").read_text())["rewards"]
    assert len(rewards) == 2 and "worth=1.0" in rewards[1]  # right answers, and texts that are well-formed
    assert LanguageModel.load(tmp_path / "out").config.width == 48


# Ends that come early.


def sure_after(times: int, right: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second attempt at a sum is right; after so many calls all are, or none is."""
    sample, calls = LocalSampler.sample, []

    def answered(self: LocalSampler, prompts: Sequence[str], *rest: object) -> list[Attempt]:
        calls.append(len(prompts))
        texts = []
        for number, prompt in enumerate(prompts):
            is_right = right if len(calls) > times else number % 2 == 0
            total = sum(map(int, re.findall(r"\d+", prompt)))
            texts.append(f"answer: {total if is_right else total + 1}\n")
        drawn = sample(self, prompts, *rest)  # type: ignore[arg-type]
        return [replace(one, text=text, finish="end") for one, text in zip(drawn, texts, strict=True)]

    monkeypatch.setattr(LocalSampler, "sample", answered)


DAPO = f"dapo:iterations=9,problems=4,attempts=4,draws=1,{SHORT}"


def test_a_run_that_has_nothing_left_to_learn_ends_well(adder, tmp_path, capsys, monkeypatch) -> None:
    out = tmp_path / "out"
    sure_after(2, True, monkeypatch)
    assert main(learn(DAPO, out, model=adder, count=16, validation=0)) == 0
    told = capsys.readouterr()
    assert "iteration 2: all attempts are right; nothing is left to learn from these problems\n" in told.err
    assert "dapo: 2 iterations\nthe doctor says: no-comparison: in 4 of 4 groups" in told.out
    assert not same_weights(adder, out) and (out / "learn.html").exists()


def test_a_run_that_cannot_go_on_leaves_what_it_learned(adder, tmp_path, capsys, monkeypatch) -> None:
    out = tmp_path / "out"
    sure_after(2, False, monkeypatch)
    assert main(learn(DAPO, out, model=adder, count=16, validation=0)) == 2
    told = capsys.readouterr()
    assert "mnemonist: none of the 4 problems of iteration 2 has attempts of different worth" in told.err
    assert f"model so far in {out}" in told.err
    assert "the doctor says: no-comparison: in 4 of 4 groups all rewards are equal (4 of them all wrong)" in told.out
    assert "dynamic" not in told.out
    assert (out / "learn.html").exists()
    assert load_checkpoint(out / "fit" / "checkpoint").step == 2  # though only every fourth step is saved
    assert not same_weights(adder, out)


def test_the_doctor_is_asked_about_a_folder(tmp_path, capsys) -> None:
    out = tmp_path / "out"
    assert main(learn("distil:epochs=1", out, preset=SMALLEST, count=8, validation=8)) == 0
    capsys.readouterr()
    assert main(["reason", "doctor", str(out)]) == 0
    assert capsys.readouterr().out.startswith("in validation, ")
    assert main(learn("distil:epochs=1", tmp_path / "quiet", preset=SMALLEST, count=8, validation=0)) == 0
    capsys.readouterr()
    assert main(["reason", "doctor", str(tmp_path / "quiet")]) == 0
    assert capsys.readouterr().out == "nothing looks wrong in the latest attempts and in the metrics\n"
    refuses(["reason", "doctor", str(tmp_path)], "there is no round in", capsys)


# Interruptions.


def test_an_interrupted_fit_leaves_a_model_and_goes_on(tmp_path, capsys, monkeypatch) -> None:
    def command(out: str, *more: str) -> list[str]:
        return learn("distil:epochs=3", tmp_path / out, *more, preset=SMALLEST, count=32, validation=2)

    assert main(command("whole")) == 0
    with monkeypatch.context() as patch:
        interrupt_at(2, patch)
        assert main(command("cut")) == 130
    told = capsys.readouterr()
    assert "the model so far is in" in told.err and "--resume goes on" in told.err
    assert main(reason("solve", SUMS, model=tmp_path / "cut", count=1, max_tokens=4, out=tmp_path / "s")) == 0
    refuses(command("cut"), "already has a run: go on with --resume", capsys)
    assert main(command("cut", "--resume")) == 0
    assert same_weights(tmp_path / "whole", tmp_path / "cut")


def test_an_interrupted_proposal_goes_on(adder, tmp_path, capsys, monkeypatch) -> None:
    sample, calls = LocalSampler.sample, []

    def interrupted(self: LocalSampler, prompts: Sequence[str], *rest: object) -> list[Attempt]:
        calls.append(len(prompts))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return sample(self, prompts, *rest)  # type: ignore[arg-type]

    def command(*more: str) -> list[str]:
        options = {"model": adder, "count": 8, "validation": 0}
        return learn(f"grpo:iterations=2,problems=8,attempts=2,{SHORT}", tmp_path / "out", *more, **options)

    with monkeypatch.context() as patch:
        patch.setattr(LocalSampler, "sample", interrupted)
        assert main(command()) == 130
    assert "--resume goes on" in capsys.readouterr().err
    assert "the doctor says (1)" in (tmp_path / "out" / "learn.html").read_text()
    assert main(command("--resume")) == 0
    assert len(lines(tmp_path / "out" / "metrics.jsonl")) == 2


def test_an_interrupted_later_proposal_leaves_the_model_so_far(adder, tmp_path, capsys, monkeypatch) -> None:
    sample, out = LocalSampler.sample, tmp_path / "out"

    def interrupted(self: LocalSampler, *asked: object) -> list[Attempt]:
        if (out / "0" / "fit" / "checkpoint").exists():
            raise KeyboardInterrupt
        return sample(self, *asked)  # type: ignore[arg-type]

    round_ = f"rest-em:iterations=2,attempts=8,epochs=1,until_worse=false,{SHORT}"

    def command(*more: object) -> list[str]:
        return learn(round_, out, "--training.learning-rate", 1e-4, *more, model=adder, count=8, validation=0)

    with monkeypatch.context() as patch:
        patch.setattr(LocalSampler, "sample", interrupted)
        assert main(command()) == 130
    assert f"interrupted; the model so far is in {out}: --resume goes on" in capsys.readouterr().err
    assert not same_weights(adder, out)
    assert main(command("--resume")) == 0


def test_a_proposal_that_a_server_fails_in_goes_on(tmp_path, capsys) -> None:
    credit = 10**9

    def answer(asked: dict) -> str | None:
        nonlocal credit
        credit -= 1
        return f"answer: {asked['seed'] % 9 + 5}\n" if credit >= 0 else None

    with serve(answer) as (url, asked):

        def command(out: str, *more: str) -> list[str]:
            options = {"preset": SMALLEST, "server": url, "server_model": "small", "count": 8, "batch_size": 1}
            return learn("distil:epochs=1,attempts=8", tmp_path / out, *more, validation=0, **options)

        assert main(command("whole")) == 0
        credit = 50
        assert main(command("cut")) == 2
        told = capsys.readouterr().err
        assert "50 of 64 attempts are kept in" in told and "--resume goes on" in told
        credit, before = 10**9, len(asked)
        assert main(command("cut", "--resume")) == 0
        assert len(asked) - before == 14
    assert same_weights(tmp_path / "whole", tmp_path / "cut")
    attempts = [tmp_path / out / "0" / "attempts" for out in ("whole", "cut")]
    assert [path.name for path in attempts[1].iterdir()] == ["00000.jsonl"]
    assert len({(place / "00000.jsonl").read_bytes() for place in attempts}) == 1


# Judges of steps.


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judge")
    options = {"preset": SMALLEST, "count": 64, "validation": 40, "epochs": 4, "task": "countdown"}
    assert main(learn("reward", folder, **options)) == 0
    return folder


def test_a_judge_of_steps_is_trained_and_asked(judge, tmp_path, capsys) -> None:
    method = "beam:beams=4,width=2,proposer=moves"
    command = reason("solve", "countdown", "--json", method=method, scorer=judge, count=4, out=tmp_path / "out")
    assert main(command) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["reward_tokens"] > 0 and row["generated_tokens"] == 0
    values = {node.value for tree in trees(tmp_path / "out" / "beam-beams=4,width=2,proposer=moves.jsonl")
              for node in tree.nodes[1:]}  # fmt: skip
    assert len(values) > 4 and all(0 < value < 1 for value in values)
    assert LanguageModel.load(judge).config.width == 8
    page = (judge / "reward.html").read_text()
    assert "calibration" in page and "loss of a step" in page and "paths astray" in page


def test_how_good_a_judge_is(judge, tmp_path, capsys) -> None:
    options = {"model": judge, "count": 8, "validation": 8, "epochs": 1, "task": "countdown", "attempts": 2}
    assert main(learn("reward", tmp_path / "again", **options)) == 0
    head, _, *rows, page = capsys.readouterr().out.splitlines()
    assert "reward.html" in page
    for row, name in zip(rows, ("paths astray", "attempts"), strict=True):
        found = dict(zip(*([cell.strip() for cell in line.strip("|").split("|")] for line in (head, row)), strict=True))
        assert found.pop("judged") == name and int(found.pop("steps")) >= 8
        assert found.pop("AUC") == "-" or name == "paths astray"
        assert all(0 <= float(value) <= 1 for value in found.values())


def test_attempts_show_a_judge_what_solutions_cannot(adder, tmp_path, capsys) -> None:
    """Where there is one way only, no allowed step is wrong."""
    options = {"count": 16, "validation": 8, "epochs": 1}
    nothing = learn("reward", tmp_path / "nothing", preset=SMALLEST, **options)
    refuses(nothing, "all steps are labelled 1, so there is nothing to tell apart", capsys)
    assert main(learn("reward", tmp_path / "out", model=adder, **options)) == 0
    assert "| attempts " in capsys.readouterr().out


def test_judges_that_do_not_fit(judge, tmp_path, capsys) -> None:
    same = {"method": "beam:proposer=moves", "count": 1, "out": tmp_path / "out"}
    command = reason("solve", "countdown", scorer=judge, format="think", **same)
    refuses(command, "reads texts of format plain, not think; take --format plain", capsys)
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in judge.iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes())
    (copy / "reward.json").write_text((judge / "reward.json").read_text().replace("reward/2", "reward/7"))
    refuses(reason("solve", "countdown", scorer=copy, **same), "is of format 'mnemonist-reward/7'", capsys)
    (copy / "reward.json").write_text("[]")
    refuses(reason("solve", "countdown", scorer=copy, **same), "reward.json is damaged", capsys)
    assert not (tmp_path / "out").exists()


# Options.


@pytest.mark.parametrize(
    ("words", "rate"),
    [
        ("grpo countdown --out distil", 1e-4),
        ("learn dpo:attempts=4 countdown", 1e-4),
        ("learn --chat --difficulty 3 4 --out distil -- grpo countdown", 1e-4),
        ("learn --out grpo distil countdown", 1e-3),
        ("distil countdown --out grpo", 1e-3),
        ("r1 countdown --objective dapo", 1e-3),
        ("on-policy-distil countdown --server-model dpo", 1e-3),
    ],
)
def test_the_round_alone_sets_the_learning_rate(words, rate) -> None:
    assert parse(["reason", *words.split()]).command.training.learning_rate == rate


RATES = [
    ("distil", (), 1e-5),
    ("on-policy-distil", (), 1e-5),
    ("r1", (), 1e-5),  # whose policy gradients have a tenth of it anyway
    ("grpo", (), 1e-6),
    ("dpo", (), 1e-6),
    ("distil", ("--lora", "4"), 1e-4),
    ("grpo", ("--lora", "4"), 1e-5),
    ("distil", ("--lora", "4", "--training.learning-rate", "0.5"), 0.5),
    ("grpo", ("--training.learning-rate=0.001",), 1e-3),
]


@pytest.mark.parametrize(("round_", "more", "rate"), RATES)
def test_pretrained_models_learn_slowly_unless_told_otherwise(round_, more, rate, adder, tmp_path) -> None:
    theirs = save_llama(tmp_path / "theirs")

    def asked(*words: object) -> TrainingConfig:
        return parse([*reason("learn", round_, "countdown"), *map(str, (*words, *more))]).command.training

    assert asked("--model", theirs).learning_rate == asked(f"--model={theirs}").learning_rate == rate
    given = float(more[-1].rpartition("=")[2]) if "rate" in str(more) else None
    own = 1e-4 if round_ in ("grpo", "dpo") else 1e-3
    for words in ((), ("--model", adder), ("--model", "shipped/countdown"), ("--model", tmp_path / "none")):
        assert asked(*words).learning_rate == (given or own)  # of ours, new ones, and those that are not there
    assert asked("--model", theirs).warmup_steps == asked().warmup_steps


def test_judges_of_pretrained_models_learn_slowly_too(adder, tmp_path) -> None:
    for model, rate in ((save_llama(tmp_path / "theirs"), 1e-5), (adder, 1e-3)):
        assert parse(reason("reward", "countdown", model=model)).command.training.learning_rate == rate


def test_the_rate_of_a_pretrained_model_is_told_and_stays_that_of_the_run(tmp_path, capsys) -> None:
    theirs, options = save_llama(tmp_path / "theirs"), {"count": 4, "validation": 0, "training.device": "cpu"}

    def rate_in(place: str) -> float:
        return json.loads((tmp_path / place / "round.json").read_text())["config"]["learning_rate"]

    same = {**options, "model": theirs}
    assert main(reason("distil:epochs=1", SUMS, out=tmp_path / "new", **same)) == 0
    assert "this pretrained model learns at a rate of 1e-05; --training.learning-rate" in capsys.readouterr().err
    assert rate_in("new") == 1e-5
    command = reason("distil:epochs=1", SUMS, out=tmp_path / "old", **same)
    assert main([*command, "--training.learning-rate", "1e-3"]) == 0  # as all were by default once
    capsys.readouterr()
    assert main([*command, "--resume"]) == 0 and rate_in("old") == 1e-3
    assert "learns at a rate of 0.001" in capsys.readouterr().err
    refuses([*command, "--resume", "--training.learning-rate", "1e-5"], "learning_rate was 0.001, now 1e-05", capsys)
    assert main(reason("distil:epochs=1", SUMS, out=tmp_path / "ours", preset=SMALLEST, **options)) == 0
    assert "this pretrained" not in capsys.readouterr().err and rate_in("ours") == 1e-3


def test_recipes_and_judges_go_on_at_their_rate(tmp_path, capsys) -> None:
    theirs = save_llama(tmp_path / "theirs")
    for words, file in (
        (["r1", "countdown"], "1-cold-start/round.json"),
        (["reward", "countdown"], "checkpoint/state.json"),
    ):
        out = tmp_path / words[0]
        (out / file).parent.mkdir(parents=True)
        (out / file).write_text('{"config": {"learning_rate": 0.001}}')
        command = reason(*words, "--resume", model=theirs, out=out)
        assert parse(command).command.training.learning_rate == 1e-3
        (out / file).write_text("{")
        assert parse(command).command.training.learning_rate == 1e-5


# What is refused.


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["learn", "grpoo", "countdown"], "there is no round 'grpoo' (did you mean 'grpo'?)"),
        (["grpo:atempts=3", "countdown"], "'atempts=3' is not a change to a round (did you mean 'attempts'?)"),
        (["grpo", "countdwn"], "there is no task 'countdwn' (did you mean 'countdown'?)"),
        (["r1:epochs=2", "countdown"], "the rounds of recipe r1 have choices of their own"),
        (["grpo", "countdown", "--base", "x"], "round grpo takes no base of its own"),
        (["rest-em", "countdown", "--base", "x", "--lora", "1"], "leave out --lora or --base"),
        (["grpo", "countdown", "--objective", "dappo"], "there is no objective 'dappo' (did you mean 'dapo'?)"),
        (["distil", "countdown", "--objective", "dapo"], "round distil has no objective to replace"),
        (["rest-em:minibatches=4", "countdown"], "round rest-em makes no use of minibatches; what can be changed is"),
        (["grpo", "countdown", "--data", "x.jsonl"], "learns from attempts; leave out --data"),
        (["grpo", "countdown", "--teacher", "x"], "round grpo has no teacher"),
        (["distil", "countdown", "--teacher", "x", "--server", "http://h"], "there are two teachers"),
        (["on-policy-distil", "countdown"], "round on-policy-distil has no teacher; give the folder of a model"),
        (
            ["on-policy-distil", "countdown", "--server", "http://h", "--server-model", "m"],
            "asks its teacher about every token, which no server tells",
        ),
        (["distil", "countdown", "--teacher", "nowhere"], "There is no model at nowhere"),
        (["distil", "countdown", "--teacher-shots", "1"], "there is no teacher to be shown anything; name one"),
        (["distil", "countdown", "--teacher", "ADDER", "--teacher-chat"], "a chat needs a model of transformers"),
        (["grpo", "countdown", "--model", "ADDER", "--chat"], "a chat needs a model of transformers"),
        (
            ["distil", "countdown", "--server", "http://h", "--server-model", "m", "--timeout", "0"],
            "timeout is 0.0, retries 5",
        ),
        (["distil", "reasoning-gym"], "round distil without --teacher or --server needs a task whose"),
        (["journey", "reasoning-gym"], "round journey without --data needs a task whose steps can be checked"),
        (["journey", "countdown", "--data", "nothing.jsonl"], "cannot read nothing.jsonl"),
        (["journey", "countdown", "--journey", "o2-journey"], "there is no journey 'o2-journey'"),
        (["journey", "countdown", "--phrases", "long"], "there are no phrases 'long'"),
        (["journey", "countdown", "--order", "lsted"], "order is 'lsted' (did you mean 'listed'?)"),
        (["journey", "countdown", "--match", "exampels"], "match is 'exampels' (did you mean 'examples'?)"),
        (["distil", "countdown", "--preset", "mag-tny"], "mag-tiny"),
        (["distil", "countdown", "--preset", "mag-tiny:widht=3"], "'widht=3' is not a change to the preset mag-tiny"),
        (["distil", "countdown", "--lora", "0"], "lora is 0"),
        (["distil", "countdown", "--count", "0"], "count is 0"),
        (["distil", "countdown", "--validation", "-1"], "validation is -1"),
        (["rest-em", "countdown", "--validation", "0"], "round rest-em needs problems for validation"),
        (["distil", "countdown", "--model", "ADDER", "--out", "ADDER"], "has a model that is not of this run"),
        (["distil", "countdown", "--resume"], "there is no round in"),
        (["reward", "reasoning-gym"], "learning to judge steps needs a task whose steps can be checked"),
        (["reward", "countdown", "--epochs", "0"], "epochs is 0"),
        (["reward", "countdown", "--model", "ADDER", "--chat"], "a chat needs a model of transformers"),
        (["reward", "countdown", "--validation", "0"], "validation is 0; ask for at least 1 problem"),
        (["traces", "reasoning-gym"], "making journeys without --trees needs a task whose steps can be checked"),
        (["traces", "countdown", "--tokenizer", "nowhere"], "nowhere"),
        (["traces", "countdown", "--journey", "depth-first:trails=1"], "'trails=1' is not a change to a journey"),
        (["traces", "countdown", "--split", "tests"], "invalid choice"),
    ],
)
def test_bad_input_ends_in_one_sentence(words, sentence, adder, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    named = [{"ADDER": str(adder)}.get(word, word) for word in words]
    out = [] if "--out" in words else ["--out", "out"]
    small = ["--preset", SMALLEST] if words[0] != "traces" and not {"--preset", "--model"} & set(words) else []
    refuses(["reason", *named, *out, *small], sentence, capsys)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_policy_that_is_never_right_has_nothing_to_learn_from(tmp_path, capsys) -> None:
    command = learn("rest-em:attempts=4,max_tokens=4", tmp_path / "out", preset=SMALLEST, count=2, validation=1)
    capsys.readouterr()
    assert main(command) == 2
    told = capsys.readouterr()
    assert "none of the 8 attempts of iteration 0 is right" in told.err
    assert "the doctor says: unreadable: 100% of attempts" in told.out
    assert (tmp_path / "out" / "learn.html").exists()
    assert not (tmp_path / "out" / "model.safetensors").exists()  # nothing was learned


def test_runs_of_others_are_refused(adder, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    assert main(learn("distil:epochs=1", out, preset=SMALLEST, count=4, validation=0)) == 0
    command = learn("distil:epochs=2", out, "--resume", preset=SMALLEST, count=4, validation=0)
    refuses(command, "is another one: round.epochs was 1, now 2; take the same, or another folder", capsys)
    command = learn("distil:epochs=1", out, "--resume", preset=SMALLEST, count=4, validation=0, format_reward=0.5)
    refuses(command, "is another one: its rewards differ", capsys)
    command = learn("distil:epochs=1", out, "--resume", model=adder, count=4, validation=0)
    refuses(command, "is another one: its weights differ", capsys)
    model = tmp_path / "model"
    LanguageModel.load(adder).save(model)
    refuses(learn("distil", model, preset=SMALLEST, count=4), "has a model that is not of this run", capsys)


def test_data_that_does_not_fit(tmp_path, capsys) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "no line end", "completion": "answer: 1\n"}) + "\n")
    same = {"preset": SMALLEST, "count": 2, "data": path, "task": "countdown"}
    refuses(learn("journey", tmp_path / "out", **same), "line 1: it has a prompt that is not of format plain", capsys)
    path.write_text(json.dumps({"prompt": "a\n", "completion": "answer: 1\n", "arm": "shortcut"}) + "\n")
    refuses(learn("journey", tmp_path / "out", **same), "has no text of the arm journey", capsys)
    think = {"prompt": "Question: a\n<think>\n", "completion": "</think>\n<answer>1</answer>"}
    path.write_text(json.dumps(think) + "\n")
    sentence = "no text in {} has an answer as format plain marks it (answer:); name its format with --format"
    refuses(learn("journey", tmp_path / "out", **same), sentence.format(path), capsys)


def test_the_page_has_what_was_written(adder, tmp_path, capsys, monkeypatch) -> None:
    pages: list[ReasoningPage] = []
    monkeypatch.setattr(mnemonist.cli.reason.learn, "write_reasoning", lambda path, page: pages.append(page))
    options = {"model": adder, "count": 4, "validation": 3}
    assert main(learn(f"grpo:iterations=3,problems=4,attempts=2,{SHORT}", tmp_path / "out", **options)) == 0
    (page,) = pages
    groups = [rollout.group for rollout in page.rollouts]
    expected = {"grpo, attempts at first": 8, "grpo, attempts at last": 8, "grpo, validation before": 3}
    expected |= {"grpo, validation": 3}
    right = [sum(one.right for one in page.rollouts if one.group == f"grpo, {when}") / 3
             for when in ("validation before", "validation")]  # fmt: skip
    told = capsys.readouterr().out
    for label, share in zip(("right in validation before", "right in validation"), right, strict=True):
        assert f"grpo, {label}: {100 * share:.1f} % (" in told
    (plot,) = [plot for plot in page.curves if plot.title == "accuracy in validation"]
    assert [*zip(plot.series[0].x, plot.series[0].y, strict=True)] == [(0, right[0]), (3, right[1])]
    assert {group: groups.count(group) for group in groups} == expected
    assert {series.label for plot in page.curves for series in plot.series} == {"grpo"}
    assert [plot.x for plot in page.curves] == ["step"] * len(page.curves) and len(page.curves) >= 5
