"""`mnemonist train` and the text it does not train on: which that is, what is said of it, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from commands import FRACTION, held_out_bits, interrupt_at, losses, refuses, same_weights, train, tree

import mnemonist.cli.text
import mnemonist.cli.train
from mnemonist.cli import main
from mnemonist.data import Document, PackedRows, fingerprint, hold_out, read_path
from mnemonist.evals.lessons import answer_loss, held_out_problems
from mnemonist.evals.suites import build_task
from mnemonist.models import LanguageModel
from mnemonist.training import HeldOutConfig, TrainingConfig
from mnemonist.training.accelerator import start_accelerator
from mnemonist.training.held_out import HeldOut, read_held_out
from mnemonist.training.language import next_token_loss

ARTICLES = [f"article {n}: " + " ".join(str(n * k) for k in range(40)) for n in range(40)]


@pytest.fixture(scope="module")
def articles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("articles")
    for n, text in enumerate(ARTICLES):
        (folder / f"{n}.txt").write_text(text)
    return folder


def state(folder: Path) -> dict[str, str]:
    return json.loads((folder / "checkpoint" / "state.json").read_text())["extra"]


def expected(folder: Path, documents: tuple[Document, ...], count: int) -> float:
    """Bits per byte of the first rows by the model that a run has left."""
    rows = PackedRows(documents, 48, 0)

    def batch_of(*place: int) -> dict[str, object]:
        import torch

        return {name: torch.from_numpy(array) for name, array in vars(rows.batch(0, count)).items()}

    held_out = HeldOut(batch_of, 1, 1, loss_of=next_token_loss)
    return read_held_out(start_accelerator("cpu"), LanguageModel.load(folder), answer_loss, held_out).bits_per_byte


def test_of_a_users_text_a_share_is_held_out_unasked(articles: Path, tmp_path: Path, capsys) -> None:
    """It is said, read at the end, and not trained on."""
    assert main(train(articles, tmp_path)) == 0
    told = capsys.readouterr().err
    documents = read_path(articles).documents
    learned, held = hold_out(documents, 0.05)
    size = sum(len(document.text) for document in held)
    assert (
        f"held out: {size:,} bytes of {held[0].name}; 3 rows of 48 are read after every 100 steps and at the end"
        in told
    )
    assert state(tmp_path)["data"] == fingerprint(learned)
    (found,) = re.findall(rf"step 6: ({FRACTION}) bits per byte on text it was not trained on", told)
    (bits,) = held_out_bits(tmp_path).values()
    assert f"{bits:.3f}" == found
    assert bits == pytest.approx(expected(tmp_path, held, 3), rel=1e-6)


def test_of_the_standard_library_its_own_modules_are_held_out(tmp_path: Path, monkeypatch, capsys) -> None:
    asked = []

    def standard_library(split: str) -> tuple[Document, ...]:
        asked.append(split)
        return tuple(Document(f"{split}{n}.py", f"def {split}{n}(): return {n}\n".encode() * 30) for n in range(3))

    monkeypatch.setattr(mnemonist.cli.text, "standard_library", standard_library)
    assert main(train("stdlib", tmp_path / "a", training__steps=2)) == 0
    assert asked == ["train", "heldout"]
    assert state(tmp_path / "a")["data"] == fingerprint(standard_library("train"))
    bits = held_out_bits(tmp_path / "a")
    assert bits[2] == pytest.approx(expected(tmp_path / "a", standard_library("heldout"), 8), rel=1e-6)
    assert main(train("stdlib", tmp_path / "b", training__steps=2, held_out__data="stdlib")) == 0
    assert held_out_bits(tmp_path / "b") == bits


def test_text_of_another_place_is_read_at_intervals(articles: Path, texts: Path, tmp_path: Path, capsys) -> None:
    command = train(articles, tmp_path, held_out__data=texts, held_out__every=4, held_out__rows=3)
    assert main(command) == 0
    told = capsys.readouterr().err
    assert "bytes of 3 documents; 3 rows of 48 are read after every 4 steps and at the end" in told
    assert list(held_out_bits(tmp_path)) == [4, 6]
    assert held_out_bits(tmp_path)[6] == pytest.approx(expected(tmp_path, read_path(texts).documents, 3), rel=1e-6)
    assert state(tmp_path)["data"] == fingerprint(read_path(articles).documents)


def test_what_is_trained_on_too_is_left_out(articles: Path, tmp_path: Path, capsys) -> None:
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(articles / "3.txt", other / "copy.txt")
    (other / "new.txt").write_text("text of its own " * 20)
    assert main(train(articles, tmp_path / "run", held_out__data=other)) == 0
    told = capsys.readouterr().err
    assert f"left out 1 documents of {other} that are trained on, such as copy.txt" in told
    assert "held out: 320 bytes of new.txt; 6 rows" in told


def test_of_a_single_file_the_end_is_held_out(tmp_path: Path, capsys) -> None:
    (tmp_path / "one.txt").write_text(" ".join(ARTICLES))
    assert main(train(tmp_path / "one.txt", tmp_path / "run", held_out__share=0.1)) == 0
    size = len(" ".join(ARTICLES))
    assert f"held out: {size // 10:,} bytes of one.txt" in capsys.readouterr().err


def test_nothing_is_held_out_where_nobody_wants_it(articles: Path, tmp_path: Path, capsys) -> None:
    assert main(train(articles, tmp_path / "run", held_out__share=0)) == 0
    told = capsys.readouterr().err
    assert "held out: nothing" in told and "not trained on" not in told
    assert held_out_bits(tmp_path / "run") == {}
    assert state(tmp_path / "run")["data"] == fingerprint(read_path(articles).documents)


def test_too_little_text_is_trained_on_whole_unless_it_was_asked_for(tmp_path: Path, capsys) -> None:
    (tmp_path / "short.txt").write_text("a text of some sixty bytes, which is but one row of this run")
    command = train(tmp_path / "short.txt", tmp_path / "run", training__steps=2)
    assert main(command) == 0
    told = capsys.readouterr().err
    assert "nothing is held out: the text that is held out has 4 tokens, and one row takes 49" in told
    assert "text: 48 tokens an epoch" in told and held_out_bits(tmp_path / "run") == {}
    assert main([*command, "--resume"]) == 0
    asked = train(tmp_path / "short.txt", tmp_path / "new", held_out__share=0.05)
    refuses(asked, "the text that is held out has 4 tokens, and one row takes 49: give more text", capsys)
    assert not (tmp_path / "new").exists()


def test_the_plan_counts_the_time_of_reading(articles: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    measured = mnemonist.cli.plan.Measurement(30.0, "2 rows took 30 s", "cpu", "1")
    monkeypatch.setattr(mnemonist.cli.train, "measure", lambda *_: measured)
    for every, readings in ((100, 1), (2, 3)):
        assert main(train(articles, tmp_path / "run", "--plan", held_out__every=every)) == 0
        plan = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
        # 3 rows are 2 batches of 2, forward alone.
        assert plan["time"].startswith(f"about {(6 * 30 + readings * 2 * 10) / 60:.0f} min for 6 steps")
        assert f"3 rows of 48 are read after every {every} steps" in plan["held out"]


# Going on.


def test_a_run_that_goes_on_reads_the_same(articles: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main(train(articles, whole, held_out__every=2)) == 0
    with monkeypatch.context() as patch:
        interrupt_at(3, patch)
        capsys.readouterr()
        assert main(train(articles, cut, held_out__every=2)) == 130
    stopped = held_out_bits(cut)
    assert f"step {max(stopped)}: {stopped[max(stopped)]:.3f} bits per byte on text it" in capsys.readouterr().err
    assert main(train(articles, cut, "--resume", held_out__every=2)) == 0
    assert (losses(cut), held_out_bits(cut)) == (losses(whole), held_out_bits(whole))
    assert list(held_out_bits(cut)) == [2, 4, 6] and same_weights(cut, whole)


def test_what_is_held_out_changes_no_step(articles: Path, texts: Path, tmp_path: Path) -> None:
    for name, held_out in (
        ("without", {"held_out__share": 0}),
        ("with", {"held_out__data": texts, "held_out__every": 1}),
    ):
        assert main(train(articles, tmp_path / name, **held_out)) == 0
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    assert same_weights(tmp_path / "with", tmp_path / "without")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"held_out__share": 0.1}, "had something else held out; resume it with the same, or take another folder"),
        ({"held_out__share": 0}, "had something else held out"),
        ({"held_out__rows": 2}, "had something else held out"),
        ({"held_out__seed": 1}, "had something else held out"),
    ],
)
def test_other_text_held_out_is_not_resumed(articles, tmp_path_factory, capsys, changes, sentence) -> None:
    folder = tmp_path_factory.getbasetemp() / "held-out-run"
    if not folder.exists():
        assert main(train(articles, folder)) == 0
    before = tree(folder)
    refuses(train(articles, folder, "--resume", **changes), sentence, capsys)
    assert tree(folder) == before


def forget_what_was_held_out(run: Path) -> None:
    """Make of a run that was stopped one of the time before anything was held out."""
    path = run / "checkpoint" / "state.json"
    content = json.loads(path.read_text())
    del content["extra"]["held_out"]
    path.write_text(json.dumps(content))
    (run / "options.json").unlink()


def test_a_run_of_the_time_before_goes_on_as_it_began(articles: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    whole, old = tmp_path / "whole", tmp_path / "old"
    assert main(train(articles, whole, held_out__share=0)) == 0
    with monkeypatch.context() as patch:
        interrupt_at(2, patch)
        assert main(train(articles, old, held_out__share=0)) == 130
    forget_what_was_held_out(old)
    refuses(train(articles, old, "--resume", held_out__share=0.1), "had something else held out", capsys)
    with monkeypatch.context() as patch:  # more than once
        interrupt_at(4, patch)
        assert main(train(articles, old, "--resume")) == 130
    assert main(train(articles, old, "--resume")) == 0
    assert "the run began without held-out text, and goes on without it" in capsys.readouterr().err
    assert losses(old) == losses(whole) and held_out_bits(old) == {}


# Bad input.


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--held-out.data", "missing"], "there is no file missing"),
        (["--held-out.data", "blank.txt"], "blank.txt holds no text"),
        (["--held-out.data", "binary"], "binary is not UTF-8 text"),
        (["--held-out.data", "short.txt"], "the text that is held out has 6 tokens, and one row takes 49"),
        (["--held-out.data", "ARTICLES"], "is trained on, so it cannot be held out; name other text with"),
        (["--held-out.data", "ARTICLES/7.txt"], "is trained on, so it cannot be held out"),
        (["--held-out.data", "short.txt", "--held-out.share", "0.1"], "held out from one place"),
        (["--held-out.share", "1"], "held_out.share is 1.0; it must be a number from 0 to below 1"),
        (["--data", "sixty.txt", "--held-out.share", "0.9"], "the corpus has 7 tokens, and one row takes 49"),
        (["--held-out.every", "0"], "held_out.every is 0; it must be a whole number from 1"),
        (["--task", "mqar", "--held-out.share", "0.1"], "there is no text to hold out, and problems are drawn: leave"),
        (["--task", "mqar", "--held-out.data", "no_text"], "there is no text to hold out, and problems are drawn"),
    ],
)  # fmt: skip
def test_bad_input_ends_in_one_sentence(options, sentence, place, articles, capsys) -> None:
    (place / "short.txt").write_text("short")
    (place / "sixty.txt").write_text("sixty " * 10)
    before = tree(place)
    words = [word.replace("ARTICLES", str(articles)) for word in options]
    refuses(train(articles, Path("new"), *words), sentence, capsys)
    assert tree(place) == before and not Path("new").exists()


# Problems.

TASK = "mqar:vocabulary=32,longest=64,trained=64"


def solve(out: Path, *words: str, data: Path | None = None, **changes: object) -> list[str]:
    """Learn problems, perhaps beside text."""
    command = train(data or "nowhere", out, "--task", *words, **changes)
    return command if data else [word for word in command if word not in ("--data", "nowhere")]


def problems_held_out(folder: Path) -> dict[int, dict[str, dict[str, float]]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["held_out_problems"] for line in lines if "held_out_problems" in line}


def test_problems_are_held_out_of_tasks_unasked(tmp_path: Path, capsys) -> None:
    """And said, read at intervals and at the end; runs of other seeds are asked the same."""
    out = tmp_path / "out"
    assert main(solve(out, TASK, held_out__every=4, held_out__rows=3)) == 0
    told = capsys.readouterr().err
    assert f"held out: 4 problems of {TASK} are read after every 4 steps and at the end" in told
    found = problems_held_out(out)
    assert list(found) == [4, 6]
    task, training = build_task(TASK), TrainingConfig(steps=6, batch_size=2)
    asked = held_out_problems(task, training, HeldOutConfig(rows=3))
    reading = read_held_out(start_accelerator("cpu"), LanguageModel.load(out), answer_loss, asked)
    assert found[6] == {"mqar": {"loss": pytest.approx(reading.loss, rel=1e-6), "accuracy": reading.accuracy}}
    end = f"{reading.loss:.4f} nats a token that was asked for, {reading.accuracy:.3f} right on problems it was not"
    assert f"step 6: {end} trained on (mqar)" in told
    assert main(solve(tmp_path / "other", TASK, training__seed=1, held_out__every=4, held_out__rows=3)) == 0
    assert problems_held_out(tmp_path / "other")[6] != found[6]


def test_no_problems_are_held_out_where_nobody_wants_it_and_no_step_is_another(tmp_path: Path, capsys) -> None:
    assert main(solve(tmp_path / "without", TASK, held_out__share=0)) == 0
    assert "held out: nothing" in capsys.readouterr().err and problems_held_out(tmp_path / "without") == {}
    assert main(solve(tmp_path / "with", TASK, held_out__every=1)) == 0
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    assert same_weights(tmp_path / "with", tmp_path / "without")


def test_text_and_problems_are_told_apart(articles: Path, tmp_path: Path, capsys) -> None:
    """Of text bits per byte, of every task loss and accuracy, whichever turn it is."""
    out = tmp_path / "out"
    books = ["phonebook:trained=12", "phonebook:trained=13"]
    assert main(solve(out, "text", *books, "text", data=articles, held_out__every=5, training__steps=7)) == 0
    told = capsys.readouterr().err
    held = f"held out: 3 rows of text, 8 problems of {books[0]}, 8 problems of {books[1]} are read after every 5 steps"
    assert held in told
    assert list(held_out_bits(out)) == [5, 7] == list(problems_held_out(out))
    _, documents = hold_out(read_path(articles).documents, 0.05)
    assert held_out_bits(out)[7] == pytest.approx(expected(out, documents, 3), rel=1e-6)
    assert [one.keys() for one in problems_held_out(out)[7].values()] == [{"loss", "accuracy"}] * 2
    for name in ("bits per byte on text it was not", *(f"problems it was not trained on ({book})" for book in books)):
        assert name in told
    text, *_ = state(out)["data"].split()
    assert text == fingerprint(hold_out(read_path(articles).documents, 0.05)[0])


def test_a_run_of_problems_that_goes_on_reads_the_same(articles: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    parts = ["text", "phonebook:trained=12"]
    assert main(solve(whole, *parts, data=articles, held_out__every=2)) == 0
    with monkeypatch.context() as patch:
        interrupt_at(3, patch)
        assert main(solve(cut, *parts, data=articles, held_out__every=2)) == 130
    refuses(solve(cut, *parts, "--resume", data=articles, held_out__seed=1), "had something else held out", capsys)
    refuses(solve(cut, *parts, "--resume", data=articles, held_out__share=0), "had something else held out", capsys)
    assert main(["train", "--resume", "--out", str(cut)]) == 0
    assert (losses(cut), held_out_bits(cut)) == (losses(whole), held_out_bits(whole))
    assert problems_held_out(cut) == problems_held_out(whole) and same_weights(cut, whole)


def test_problems_of_the_time_before_go_on_as_they_began(tmp_path: Path, monkeypatch) -> None:
    """Their run was told of no problems that are held out, nor is it when it goes on, and on."""
    old = tmp_path / "old"
    with monkeypatch.context() as patch:
        interrupt_at(2, patch)
        assert main(solve(old, TASK, held_out__share=0)) == 130
    forget_what_was_held_out(old)
    with monkeypatch.context() as patch:
        interrupt_at(4, patch)
        assert main(solve(old, TASK, "--resume")) == 130
    assert main(solve(old, TASK, "--resume")) == 0
    assert problems_held_out(old) == {}
