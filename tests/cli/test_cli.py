"""The command line as a person meets it: what it prints, what it leaves behind, and how it refuses."""

from __future__ import annotations

import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from html import unescape
from pathlib import Path

import pytest
import torch
from commands import FRACTION, environment, refuses, train, tree

import mnemonist.cli.options
import mnemonist.cli.read
from mnemonist.cli import main
from mnemonist.memory import RULES
from mnemonist.memory.feature_map_table import FEATURE_MAPS
from mnemonist.models import BLOCKS, PRESETS, LanguageModel, ModelConfig
from mnemonist.tensors import save_tensors

# Help.


@pytest.mark.parametrize("command", [[], ["demo"], ["train"], ["read"], ["models"]])
def test_help_answers_at_once(command: list[str]) -> None:
    """In two seconds of processor time, whatever else the machine does, and without torch."""
    code = (
        "import sys; from mnemonist.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as stop: print('LOADED', stop.code, 'torch' in sys.modules, 'numpy' in sys.modules)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    told = subprocess.run(
        [sys.executable, "-c", code, *command, "--help"], env=environment(), capture_output=True, text=True, timeout=120
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "LOADED 0 False False" in told.stdout, told.stderr
    assert "usage: mnemonist" in told.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


@pytest.mark.parametrize("command", ["demo", "train", "read"])
def test_every_option_is_explained(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    text = re.sub(r"[\s│]+", " ", capsys.readouterr().out)
    blocks = re.split(r" (?=--[a-z])", text)[1:]
    explained = [block for block in blocks if "(default:" in block or "(required)" in block]
    assert len(explained) > (4 if command != "train" else 20)
    for block in explained:
        words = re.sub(r"\(default:.*?\)|\(required\)|^\S+|[A-Z]{3,}|\{.*?\}|\[.*?\]", "", block).split()
        assert len(words) >= 2, block


def test_a_presets_sizes_are_the_defaults_that_help_shows(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--preset", "window-tiny", "--help"])
    assert "(default: window window)" in re.sub(r"[\s│]+", " ", capsys.readouterr().out)


def test_models_lists_every_row_of_every_table(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    for columns in ("80", "200"):
        monkeypatch.setenv("COLUMNS", columns)
        assert main(["models"]) == 0
        out = capsys.readouterr().out
        firsts = [line.split()[0] for line in out.splitlines() if line and not line.startswith(" ")]
        for table in (RULES, BLOCKS, PRESETS, FEATURE_MAPS):
            assert set(table) <= set(firsts), columns
        flat = re.sub(r"\s+", " ", out)
        for row in (*RULES.values(), *BLOCKS.values(), *FEATURE_MAPS.values()):
            assert row.source.split(",")[0] in flat, columns


# Reading.


def test_reading_a_file(texts, run, tmp_path, capsys) -> None:
    page = tmp_path / "new" / "page.html"
    assert main(["read", str(texts / "2.txt"), "--model", str(run), "--out", str(page)]) == 0
    told = capsys.readouterr()
    html = page.read_text()
    size = (texts / "2.txt").stat().st_size
    assert f"reading 1 x {size:,} bytes: 2.txt" in told.err
    for name in ("memory learning", "memory frozen"):
        found = re.search(rf"^{name}, bits per byte: ({FRACTION})$", told.out, flags=re.MULTILINE)
        assert found and 5 < float(found[1]) < 9
        assert name in html
    lines = told.out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "memory learning, bits per byte",
        "memory frozen, bits per byte",
        "bits saved per byte against memory frozen, second half",
        "state while reading, bytes per text",
        "speed, bytes per second",
        "page",
    ]  # results, and no progress bars
    for line in lines[:-1]:
        assert line.partition(": ")[2] in html
    assert "<title>Reading 2.txt" in html
    assert "not what a model without memory would do: a baseline shows that (--baseline)" in html
    assert f"mnemonist read {texts / '2.txt'} --model {run}" in html
    assert list(page.parent.iterdir()) == [page]


def test_the_figures_are_those_of_the_model(texts, run, tmp_path, capsys) -> None:
    from mnemonist.evals.reading import read_texts

    text = (texts / "1.txt").read_bytes()[:100]
    page = tmp_path / "page.html"
    command = ["read", str(texts / "1.txt"), "--model", str(run / "model.safetensors"), "--out", str(page)]
    assert main([*command, "--limit", "100"]) == 0
    out = capsys.readouterr().out
    model = LanguageModel.load(run / "model.safetensors")
    learning, frozen = read_texts(model, [text]), read_texts(model, [text], learn=False)
    assert f"memory learning, bits per byte: {learning.bits.mean():.3f}\n" in out
    assert f"memory frozen, bits per byte: {frozen.bits.mean():.3f}\n" in out
    saved = float(frozen.bits[:, 50:].mean() - learning.bits[:, 50:].mean())
    assert f"second half: {saved:.3f}\n" in out
    assert f"bytes per text: {learning.state_bytes:,}\n" in out


def test_reading_a_folder_side_by_side(texts, run, tmp_path, capsys, monkeypatch) -> None:
    """The longest texts first, cut to the length of the shortest; a folder may be named by a dot."""
    monkeypatch.chdir(texts)
    page = tmp_path / "page.html"
    assert main(["read", ".", "--model", str(run), "--out", str(page)]) == 0
    told = capsys.readouterr()
    shortest = min(path.stat().st_size for path in texts.glob("*.txt"))
    assert f"reading 3 x {shortest} bytes: 2.txt, 1.txt, 0.txt" in told.err
    assert re.search(rf"memory learning, bits per byte: {FRACTION} ± {FRACTION}\n", told.out)
    html = page.read_text()
    assert f"<title>Reading {texts.name}" in html
    for name in ("0.txt", "1.txt", "2.txt"):
        assert f'"title":"{name}"' in html
    monkeypatch.setattr(mnemonist.cli.read, "MOST_TEXTS", 2)
    assert main(["read", ".", "--model", str(run), "--out", str(page)]) == 0
    assert "bytes: 2.txt, 1.txt\n" in capsys.readouterr().err


def test_a_baseline_without_memory_is_read_too(texts, run, tmp_path, capsys) -> None:
    base = tmp_path / "base"
    assert main(train(texts, base, "--model.blocks", "window", training__steps=2)) == 0
    command = ["read", str(texts), "--out", str(tmp_path / "page.html")]
    assert main([*command, "--model", str(run), "--baseline", str(base)]) == 0
    out = capsys.readouterr().out
    assert re.search(rf"attention only, bits per byte: {FRACTION} ±", out)
    assert re.search(rf"bits saved per byte against attention only, second half: -?{FRACTION} ±", out)
    assert main([*command, "--model", str(base)]) == 0  # by itself it has nothing to hold still, and no map
    assert "frozen" not in capsys.readouterr().out
    page = (tmp_path / "page.html").read_text()
    assert '"maps":[]' in page and mnemonist.cli.read.FROZEN not in page


def test_the_command_on_the_page_repeats_the_reading(texts, run, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("two words.txt").write_bytes((texts / "2.txt").read_bytes())
    base = shutil.copytree(run, "a base")
    more = ["--baseline", str(base), "--out", "a page.html", "--start", "7", "--limit", "90", "--map-bytes", "50"]
    assert main(["read", "two words.txt", "--model", str(run), *more]) == 0
    figures = capsys.readouterr().out
    shown = re.search(r"mnemonist read [^<]*", Path("a page.html").read_text())
    assert shown
    command = shlex.split(unescape(shown[0]))[1:]
    assert command == ["read", "two words.txt", "--model", str(run), *more]
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines()[:-2] == figures.splitlines()[:-2]  # but for the speed


def test_an_interrupted_reading_leaves_no_page(texts, run, tmp_path, capsys, monkeypatch) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(mnemonist.cli.read, "read_texts", interrupted)
    assert main(["read", str(texts), "--model", str(run), "--out", str(tmp_path / "page.html")]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# The demo.


def test_the_demo_reads_and_recalls(tmp_path, capsys) -> None:
    """On the standard library as always, and with the models that come with the package."""
    out = tmp_path / "demo"
    command = ["demo", "--texts", "2", "--length", "600", "--streams", "2", "--times", "2", "--out", str(out)]
    assert main(command) == 0
    told = capsys.readouterr()
    assert sorted(path.name for path in out.iterdir()) == ["demo.html"]
    assert re.search(r"^\| 512 +\| \d\.\d{3} ", told.out, flags=re.MULTILINE)
    for name in ("memory learning", "memory frozen", "attention only"):
        assert re.search(rf"^{name}, bits per byte: {FRACTION} ± {FRACTION}$", told.out, flags=re.MULTILINE)
    html = (out / "demo.html").read_text()
    assert "mnemonist demo --texts 2 --length 600 --streams 2 --times 2 --seed 0" in html
    assert html.count('"title":"') == 2
    for name in ("memory", "window"):
        line = rf"^facts recalled after 256 · 512 bytes, {name}: ([012] · [012] of 2)$"
        found = re.search(line, told.out, flags=re.MULTILINE)
        assert found and found[1] in html
    before = told.out.splitlines()
    assert main(command) == 0
    again = capsys.readouterr().out.splitlines()
    assert [line for line in again if "speed" not in line] == [line for line in before if "speed" not in line]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--texts", "0"], "texts is 0"),
        (["--length", "0"], "length 0; both must be at least 1"),
        (["--length", "100000000"], "ask for fewer --texts or a lower --length"),
        (["--streams", "0"], "count 0"),
        (["--seed", "-1"], "seed -1"),
        (["--model", "nowhere"], "There is no model at nowhere"),
        (["--baseline", "shipped/windw"], "there is no model shipped/windw (did you mean 'shipped/window'?)"),
    ],
)
def test_impossible_demos(options, sentence, tmp_path, capsys) -> None:
    refuses(["demo", "--out", str(tmp_path / "demo"), *options], sentence, capsys)
    assert not list((tmp_path).rglob("*.html"))


# What is refused: exit code 2, one sentence on stderr, nothing on stdout, nothing written.


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("missing.txt", "mnemonist: there is no file missing.txt"),
        ("missing/file.txt", "mnemonist: there is no file missing/file.txt"),
        ("empty.txt/file", "mnemonist: there is no file empty.txt/file"),
        ("empty.txt", "mnemonist: empty.txt holds no text"),
        ("blank.txt", "mnemonist: blank.txt holds no text"),
        ("binary", "mnemonist: binary is not UTF-8 text: byte 15 is 0xff"),
        ("nothing", "mnemonist: no text in the folder nothing"),
        ("no_text", "mnemonist: no text in the folder no_text"),
        ("x" * 300, "mnemonist: cannot read"),
        ("/dev/null", "mnemonist: /dev/null is not a plain file"),
    ],
)
def test_text_that_cannot_be_read(path, sentence, place, run, capsys) -> None:
    before = tree(place)
    refuses(["read", path, "--model", str(run)], sentence, capsys)
    refuses(train(path, Path("new")), sentence, capsys)
    assert tree(place) == before


def test_models_that_are_none(place, texts, run, capsys) -> None:
    whole = (run / "model.safetensors").read_bytes()
    (place / "cut.safetensors").write_bytes(whole[:-100])
    (place / "stub.safetensors").write_bytes(whole[:6])
    (place / "text").write_bytes(b"a model? " * 40)
    config = ModelConfig().to_json()
    save_tensors(place / "foreign", {"a": torch.ones(1)}, format="theirs")
    save_tensors(place / "other", {"a": torch.ones(1)}, format="mnemonist-model/1", config=config)
    save_tensors(place / "odd", {"a": torch.ones(1)}, format="mnemonist-model/1", config='{"width": "wide"}')
    save_tensors(place / "bare", {"a": torch.ones(1)}, format="mnemonist-model/1")
    before = tree(place)
    read = ["read", str(texts / "0.txt")]
    for name, sentence in (
        ("missing", "There is no model at missing; train one with `mnemonist train` or name one with --model"),
        ("no_model", "There is no model at no_model/model.safetensors"),
        ("cut.safetensors", "cut.safetensors is not a whole safetensors file"),
        ("stub.safetensors", "stub.safetensors is not a whole safetensors file"),
        ("empty.txt", "empty.txt is not a whole safetensors file"),
        ("text", "text is not a whole safetensors file"),
        ("foreign", "foreign holds 'theirs', not 'mnemonist-model/1'"),
        ("other", "other does not hold the weights its configuration asks for"),
        ("odd", "odd does not hold the weights its configuration asks for"),
        ("bare", "bare does not hold the weights its configuration asks for"),
    ):
        refuses([*read, "--model", name], sentence, capsys)
        refuses([*read, "--model", str(run), "--baseline", name], sentence, capsys)
    assert tree(place) == before


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (["train", "--data", ""], "--data"),
        (["train", "--data", "DATA", "--out="], "--out"),
        (["read", "", "--model", "RUN"], "an argument"),
        (["read", "DATA", "--model", ""], "--model"),
        (["eval", "positions", "--model", "RUN", ""], "--model"),
        (["reason", "solve", "--out", ""], "--out"),
    ],
)
def test_an_empty_path_is_not_the_present_folder(place, texts, run, capsys, command, option) -> None:
    before = tree(place)
    named = [{"DATA": str(texts), "RUN": str(run)}.get(word, word) for word in command]
    refuses(named, f"{option} is empty; give a value, or leave it out", capsys)
    assert tree(place) == before


@pytest.mark.parametrize("words", [["--task"], ["--task", "--out", "x"], ["--out", "x", "--task="]])
def test_a_task_that_is_left_out_is_not_text(words, capsys) -> None:
    refuses(["train", *words], "--task is empty; give a value, or leave it out", capsys)


def test_a_prompt_may_be_empty() -> None:
    assert mnemonist.cli.options.parse(["generate", "--prompt", ""]).prompt == ""
    assert mnemonist.cli.options.parse(["generate", "--prompt="]).prompt == ""


def test_reading_nothing_is_refused(place, texts, run, capsys) -> None:
    before = tree(place)
    read = ["read", str(texts / "0.txt"), "--model", str(run)]
    for option, sentence in (
        (["--limit", "0"], "limit is 0; read at least 1 byte"),
        (["--limit", "-5"], "limit is -5; read at least 1 byte"),
        (["--map-bytes", "0"], "map_bytes is 0; it must be at least 1"),
        (["--map-bytes", "-5"], "map_bytes is -5; it must be at least 1"),
        (["--limit", "many"], "invalid"),
        (["--no-such-option"], "--no-such-option"),
    ):
        refuses([*read, *option], sentence, capsys)
    refuses(["read"], "PATH", capsys)
    refuses(["reed"], "reed", capsys)
    refuses([], "demo", capsys)
    assert tree(place) == before


def test_places_that_cannot_be_written(place, texts, run, capsys) -> None:
    before = tree(place)
    (place / "page.html").mkdir()
    read = ["read", str(texts / "0.txt"), "--model", str(run), "--limit", "20"]
    refuses([*read, "--out", "binary/page.html"], "mnemonist: cannot write binary/page.html", capsys)
    refuses([*read, "--out", "page.html"], "mnemonist: cannot write page.html: it is a folder", capsys)
    refuses(train(texts, Path("binary/run")), "mnemonist: cannot write binary/run/metrics.jsonl", capsys)
    refuses(["demo", "--out", "binary/demo", "--length", "600"], "cannot write binary/demo/demo.html", capsys)
    assert tree(place) == before


def test_a_failing_command_tells_its_shell(place) -> None:
    command = [sys.executable, "-m", "mnemonist", "read", "missing.txt", "--model", "missing"]
    told = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr.splitlines()[-1].startswith("mnemonist: There is no model at missing")


@pytest.mark.parametrize("module", ["options", "models"])
@pytest.mark.parametrize("fails", ["at once", "later"])
def test_ctrl_c_while_libraries_are_imported_is_no_failure(module, fails, monkeypatch, capsys) -> None:
    """Also where one of them takes it for a missing part and comes to grief over that."""

    class Importing:
        def find_spec(self, name: str, *_: object) -> None:
            if name != f"mnemonist.cli.{module}":
                return
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(10)
            except KeyboardInterrupt:
                if fails == "at once":
                    raise
            raise RecursionError("of a library that is half imported")

    monkeypatch.delitem(sys.modules, f"mnemonist.cli.{module}")
    monkeypatch.setattr(sys, "meta_path", [Importing(), *sys.meta_path])
    before = signal.getsignal(signal.SIGINT)
    assert main(["models"]) == 130
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "mnemonist: interrupted; nothing half-written was left behind\n")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_failure_that_nobody_has_interrupted_is_one(monkeypatch) -> None:
    def fail() -> int:
        raise RecursionError("ours")

    monkeypatch.setattr(mnemonist.cli.options.Models, "run", lambda self: fail())
    with pytest.raises(RecursionError, match="ours"):
        main(["models"])
