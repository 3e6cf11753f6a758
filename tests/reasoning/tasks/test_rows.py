"""Rows go to `datasets` and back, from texts to messages and back, and rewards read them all."""

from __future__ import annotations

import json

import pytest

from mnemonist.errors import UserError
from mnemonist.files import FileError
from mnemonist.reasoning.formats import FORMATS
from mnemonist.reasoning.tasks import build_task
from mnemonist.reasoning.tasks.rewards import accuracy_reward, format_reward
from mnemonist.reasoning.tasks.rows import (
    KINDS,
    completion_row,
    conversational,
    kind_of,
    load_rows,
    messages_row,
    pair_of,
    plain,
    preference_row,
    problem_of,
    prompt_row,
    save_rows,
    stepwise_row,
    text_row,
)

TASKS = [build_task(name) for name in ("countdown", "knights", "diagnosis", "chain-arithmetic")]
PROBLEMS = [task.problem("train", task.difficulties[0], index) for index in range(2) for task in TASKS]
THINK = FORMATS["think"]


def lesson(problem, form):
    """What is read and what should be written."""
    task = build_task(problem.task)
    return form.prompt(problem.question), form.write(task.solution(problem), problem.answer)


def rows_of(kind, form):
    for problem in PROBLEMS:
        task = build_task(problem.task)
        prompt, right = lesson(problem, form)
        if kind == "text":
            yield text_row(prompt, right)
        elif kind == "prompt-completion":
            yield completion_row(prompt, right)
        elif kind == "messages":
            yield messages_row(prompt, right, form)
        elif kind == "prompt":
            yield prompt_row(prompt, problem)
        elif kind == "preference":
            yield preference_row(prompt, right, form.write([], "wrong"))
        else:
            steps = [*task.solution(problem), "nonsense"]
            labels = [task.label(problem, steps[:taken]).valid for taken in range(1, len(steps) + 1)]
            yield stepwise_row(prompt, steps, labels)


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_read_back_here_and_by_datasets(kind, tmp_path):
    datasets = pytest.importorskip("datasets")
    rows, path = list(rows_of(kind, THINK)), tmp_path / "rows.jsonl"
    save_rows(path, rows)
    assert load_rows(path) == rows and {kind_of(row) for row in rows} == {kind}
    loaded = datasets.load_dataset("json", data_files=str(path), cache_dir=str(tmp_path / "cache"))["train"]
    assert list(loaded) == rows and set(KINDS[kind]) <= set(loaded.column_names)
    if kind == "prompt":
        assert [problem_of(row) for row in loaded] == PROBLEMS


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_texts_are_taken_apart(form):
    for problem in PROBLEMS:
        prompt, completion = lesson(problem, form)
        for row in (text_row(prompt, completion), completion_row(prompt, completion)):
            assert pair_of(row, form) == (prompt, completion)


@pytest.mark.parametrize("name", ["plain", "think"])
def test_messages_and_back(name):
    form = FORMATS[name]
    for problem in PROBLEMS:
        prompt, completion = lesson(problem, form)
        row = completion_row(prompt, completion)
        talk = conversational(row, form)
        assert talk["prompt"] == [{"role": "user", "content": problem.question}]
        assert talk["completion"][0]["role"] == "assistant"
        assert talk["completion"][0]["content"].startswith("<think>\n" if name == "think" else completion)
        assert plain(talk, form) == row == plain(row, form) and conversational(talk, form) == talk
        whole = messages_row(prompt, completion, form)
        assert whole == {"messages": talk["prompt"] + talk["completion"]}
        assert pair_of(whole, form) == pair_of(talk, form) == (prompt, completion) and plain(whole, form) == row
        asked = prompt_row(prompt, problem)
        assert plain(conversational(asked, form), form) == asked != conversational(asked, form)
        pair = preference_row(prompt, completion, form.write([], "0"))
        assert plain(conversational(pair, form), form) == pair
        assert problem_of(conversational(asked, form)) == problem


def test_what_cannot_be_turned():
    prompt, completion = lesson(PROBLEMS[0], THINK)
    row = completion_row(prompt, completion)
    for work, message in (
        (lambda: conversational(row, FORMATS["s1"]), "'s1' writes the marks of a chat itself"),
        (lambda: plain(row, FORMATS["s1"]), "'s1' writes the marks of a chat itself"),
        (lambda: conversational(completion_row("hello", ""), THINK), "no prompt of format 'think'"),
        (lambda: conversational(completion_row("2 + 2?\n<think>\n", ""), THINK), "does not begin with 'Question: '"),
        (lambda: conversational({"text": "x"}, THINK), "kind text cannot be turned"),
        (lambda: plain({"messages": []}, THINK), "expected one message of the user"),
        (lambda: plain({"messages": [{"role": "user", "content": "?"}]}, THINK), "expected one message of the user"),
        (lambda: plain({"prompt": [{"role": "system", "content": "?"}]}, THINK), "expected one message of the user"),
        (lambda: pair_of({"prompt": prompt}, THINK), "kind prompt is no prompt with one completion"),
        (lambda: pair_of({"text": "no mark"}, THINK), "does not begin with a question of format 'think'"),
        (lambda: kind_of({"question": "?"}), "a row has the columns question; it needs one of: prompt, chosen"),
        (lambda: problem_of({"prompt": "?"}), "this row has no problem"),
        (lambda: problem_of({"problem": "[1]"}), "this row has no problem"),
    ):
        with pytest.raises(UserError, match=message):
            work()
    with pytest.raises(ValueError, match="2 steps have 1 labels"):
        stepwise_row(prompt, ["a", "b"], [True])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": "What is 3 plus 4?", "completion": "7"},
            r"it has a prompt that is not of format think: 'What is 3 plus 4\?'; write prompts as 'Question: QUESTION"
            r"\\n<think>\\n', name the format that they are of, or give the question alone as messages: \[",
        ),
        ({"prompt": "x" * 99 + "\n<think>\n", "completion": "7"}, r"think: 'x{35}' \.\.\. 'x+\\n<think>\\n'; write"),
        ({"prompt": [{"role": "system", "content": "?"}], "completion": "7"}, "expected one message of the user"),
        ({"prompt": "Question: ?\n<think>\n", "completion": 7}, "expected one message of the assistant, not 7"),
        ({"messages": [{"role": "user", "content": "?"}]}, "expected one message of the user"),
        ({"text": 7}, "its text is none but '7'"),
        ({"text": "no mark"}, "does not begin with a question of format 'think'"),
        ({"prompt": "?"}, "kind prompt is no prompt with one completion"),
    ],
)
def test_rows_of_a_file_that_are_no_pairs_are_named_by_line(row, message, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n\n" + json.dumps(row))
    rows = load_rows(path)
    assert rows == [row, row]
    for place, read in zip(("line 1", "line 3"), rows, strict=True):
        with pytest.raises(UserError, match=f"rows.jsonl, {place}: .*{message}"):
            pair_of(read, THINK)
    with pytest.raises(UserError, match=message) as caught:
        pair_of(row, THINK)
    assert "line" not in str(caught.value)


def test_a_question_alone_is_a_message(tmp_path):
    path, said = tmp_path / "rows.jsonl", [{"role": "assistant", "content": "<think>\n</think>\n<answer>7</answer>"}]
    asked = [{"role": "user", "content": "What is 3 plus 4?"}]
    path.write_text(
        "".join(
            json.dumps({"prompt": prompt, "completion": completion}) + "\n"
            for prompt in (asked, THINK.prompt("What is 3 plus 4?"))
            for completion in (said, "</think>\n<answer>7</answer>")
        )
    )
    pair = ("Question: What is 3 plus 4?\n<think>\n", "</think>\n<answer>7</answer>")
    assert [pair_of(row, THINK) for row in load_rows(path)] == [pair] * 4


def test_files_that_are_none(tmp_path):
    path = tmp_path / "rows.jsonl"
    with pytest.raises(UserError, match="row 2 is of kind text, those before of kind prompt"):
        save_rows(path, [{"prompt": "?"}, {"text": "x"}])
    assert not path.exists()
    for text, message in (
        ('{"text": "x"}\n[1]\n', "line 2"),
        ("{\n", "line 1"),
        ("[" * 200_000, "is no row"),
        ('{"a": 1}', "line 1 is no row"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            load_rows(path)
    with pytest.raises(FileError, match="cannot read"):
        load_rows(tmp_path / "none.jsonl")
    path.write_text(
        '{"text": "a\u2028b"}\n\n{"text": "c"}', encoding="utf-8"
    )  # a line may hold what looks like its end
    assert [row["text"] for row in load_rows(path)] == ["a\u2028b", "c"]


@pytest.mark.parametrize("talk", [False, True])
@pytest.mark.parametrize("name", ["plain", "think"])
def test_rewards(name, talk):
    form = FORMATS[name]
    rows = [prompt_row(form.prompt(problem.question), problem) for problem in PROBLEMS]
    texts = [lesson(problem, form)[1] for problem in PROBLEMS]
    texts[1] = form.write([], "wrong")
    texts[2] = "no answer at all"
    texts[3] = texts[3] + "and on and on"
    completions = texts
    if talk:
        rows = [conversational(row, form) for row in rows]
        completions = [conversational(completion_row(form.prompt("?"), text), form)["completion"] for text in texts]
    columns = {column: [row[column] for row in rows] for column in rows[0] if column != "prompt"}
    given = {"prompts": [row["prompt"] for row in rows], "completions": completions, "completion_ids": [], **columns}
    assert accuracy_reward(None, form)(**given) == [1, 0, 0, 1, 1, 1, 1, 1]
    assert format_reward(form)(**given) == [1, 1, 0, 0, 1, 1, 1, 1]
    assert format_reward(form, worth=0.5)(**given)[0] == 0.5


def test_rewards_without_problem_or_with_a_task():
    form, problem = FORMATS["plain"], PROBLEMS[0]
    right = form.write([], problem.answer)
    for told in (json.dumps(problem.to_json()), problem.to_json()):
        reward = accuracy_reward(build_task(problem.task), form)
        assert reward(completions=[right, right, []], problem=[told, None, told]) == [1.0, None, 0.0]
    with pytest.raises(UserError, match="no column 'problem'"):
        accuracy_reward(None, form)(prompts=["?"], completions=[right])
    assert accuracy_reward(None, form).__name__ != format_reward(form).__name__  # by which TRL logs them
