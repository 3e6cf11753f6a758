"""`mnemonist read --session`: reading on, in other processes, leaves what reading at once leaves."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import environment, refuses, tree
from tiny_tokenizers import save_tokenizer

import mnemonist.cli.read
from mnemonist.cli import main
from mnemonist.data import find_tokenizer
from mnemonist.evals.reading import read_on
from mnemonist.models import LanguageModel, ModelConfig, Session, find_preset
from mnemonist.tensors import read_tensors

TINY = ModelConfig(
    blocks=("mag",), rule="titans:chunk_size=64,expansion=1", width=16, heads=2, head_dim=8, memory_heads=2,
    memory_head_dim=8, window=64, mlp_width=24,
)  # fmt: skip
TEXT = ("the żółw 🐢 sat on the mat, and then there were %d of them. " * 40 % tuple(range(40))).encode()
TURTLE = TEXT.index("🐢".encode(), 1200) + 2  # in the middle of a character, behind the first piece
INSIDE = TEXT.index(b"then", 1500) + 2  # in the middle of a word


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of models that have learned nothing, which is enough to remember."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("bytes", "subwords")}
    tokenizer = find_tokenizer(save_tokenizer("gpt2", folders["subwords"]))
    torch.manual_seed(0)
    LanguageModel(TINY).save(folders["bytes"])
    LanguageModel(TINY.replace(vocab_size=tokenizer.vocab_size)).save(folders["subwords"], tokenizer)
    return folders


@pytest.fixture(params=["bytes", "subwords"])
def model(request: pytest.FixtureRequest, models: dict[str, Path]) -> Path:
    return models[request.param]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The text whole and in two files, and a folder to stand in."""
    monkeypatch.chdir(tmp_path)
    for cut in (TURTLE, INSIDE):
        Path(f"a{cut}.txt").write_bytes(TEXT[:cut])
        Path(f"b{cut}.txt").write_bytes(TEXT[cut:])
    Path("ab.txt").write_bytes(TEXT)
    return tmp_path


def reading(path: str, model: Path, session: str, *more: str) -> list[str]:
    return ["read", path, "--model", str(model), "--session", session, "--out", "page.html", *more]


def test_reading_on_in_another_process_leaves_the_file_of_reading_at_once(here, models, capsys):
    cases = [(name, cut) for name in models for cut in (TURTLE, INSIDE)]
    for name, cut in cases:
        assert main(reading(f"a{cut}.txt", models[name], f"{name}{cut}")) == 0
        assert f"beginning {name}{cut}: {cut:,} bytes of a{cut}.txt" in capsys.readouterr().err
        shutil.copy(f"{name}{cut}", f"copy{name}{cut}")
    code = "import sys, json; from mnemonist.cli import main; sys.exit(max(map(main, json.loads(sys.argv[1]))))"
    commands = [reading(f"b{cut}.txt", models[name], f"{name}{cut}", "--json") for name, cut in cases]
    told = subprocess.run(
        [sys.executable, "-c", code, json.dumps(commands)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert told.returncode == 0, told.stderr

    for name, model in models.items():
        assert main(reading("ab.txt", model, f"whole-{name}")) == 0
    capsys.readouterr()
    bits = {name: whole_bits(model) for name, model in models.items()}
    for (name, cut), line in zip(cases, told.stdout.splitlines(), strict=True):
        whole = Path(f"whole-{name}").read_bytes()
        assert Path(f"{name}{cut}").read_bytes() == whole
        assert re.search(rf"going on from token [\d,]+ of {name}{cut}: ", told.stderr)
        # The second part costs what it costs from there on in one file, and within a single reading.
        assert main(reading("ab.txt", models[name], f"copy{name}{cut}", "--json", "--start", str(cut))) == 0
        assert Path(f"copy{name}{cut}").read_bytes() == whole
        there, here = json.loads(line), json.loads(capsys.readouterr().out)
        for figure in here.keys() - {"seconds", "session", "texts"}:
            assert there[figure] == here[figure], figure
        per_byte = here["bits_per_byte"]
        assert per_byte["memory learning"] == float(bits[name][-here["bytes"] :].mean())
        assert per_byte["memory frozen"] != per_byte["memory learning"]


def whole_bits(folder: Path) -> np.ndarray:
    """Of every byte, by the Python API."""
    torch.set_flush_denormal(True)  # as the command does
    model = LanguageModel.load(folder)
    tokenizer = find_tokenizer(folder, model.config.vocab_size)
    return read_on(model, [TEXT], Session.begin(model), tokenizer=tokenizer).bits[0]


def test_many_cuts_and_the_session_of_the_parts(here, model, capsys):
    """Of one file, by --start and --limit; some within characters, words and units of the tokenizer."""
    assert main(reading("ab.txt", model, "whole")) == 0
    ends = [1, 2, 30, TEXT.index("ż".encode()) + 1, 700, TURTLE, INSIDE, len(TEXT)]
    start = 0
    for end in sorted(ends):
        assert main(reading("ab.txt", model, "s", "--start", str(start), "--limit", str(end - start))) == 0
        start = end
    assert Path("s").read_bytes() == Path("whole").read_bytes()
    assert capsys.readouterr().out


def test_a_new_document(here, model, capsys):
    """A folder is read in the order of names, each file behind a start mark; so is a text that is said to be new."""
    (here / "folder").mkdir()
    for name, part in (("1", TEXT[:300]), ("2", TEXT[300:450])):
        (here / "folder" / name).write_bytes(part)
    assert main(reading("folder", model, "whole")) == 0
    assert main(reading("folder/1", model, "s")) == 0
    shutil.copy("s", "other")
    assert main(reading("folder/2", model, "s", "--new-document")) == 0
    assert Path("s").read_bytes() == Path("whole").read_bytes()
    shutil.copy("other", "third")
    assert main(reading("folder", model, "third", "--start", "300")) == 0  # where a document begins
    assert Path("third").read_bytes() == Path("whole").read_bytes()
    assert main(reading("folder/2", model, "other")) == 0
    assert Path("other").read_bytes() != Path("whole").read_bytes()
    capsys.readouterr()


@pytest.mark.parametrize(
    ("more", "pieces"),
    [([], 1), (["--start", "40", "--limit", "2300"], 1), (["--new-document"], 0), (["--new-document"], 1)],
)
def test_ctrl_c_leaves_a_session_that_the_printed_command_goes_on_from(here, model, more, pieces, capsys, monkeypatch):
    for session in ("whole", "s"):
        assert main(reading("ab.txt", model, session, "--limit", "40")) == 0
    assert main(reading("ab.txt", model, "whole", *more)) == 0
    with monkeypatch.context() as patch:
        press_ctrl_c_after(pieces, patch)
        assert main(reading("ab.txt", model, "s", *more)) == 130
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("interrupted after byte ")
    name, *command = shlex.split(told.partition("read on: ")[2])
    assert name == "mnemonist"
    assert Session.load("s", LanguageModel.load(model)).position > 0
    assert Path("s").read_bytes() != Path("whole").read_bytes()
    assert main(command) == 0
    assert Path("s").read_bytes() == Path("whole").read_bytes()


def press_ctrl_c_after(pieces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the first text is read."""
    track, pressed = mnemonist.cli.read.track, []

    def then_press(*arguments, **options):
        advance, told = track(*arguments, **options), []

        def pressing(done: int, total: int) -> None:
            advance(done, total)
            told.append(done)
            if len(told) == pieces and not pressed:
                pressed.append(os.kill(os.getpid(), signal.SIGINT))

        if not pieces:
            pressed.append(os.kill(os.getpid(), signal.SIGINT))
        return pressing

    monkeypatch.setattr(mnemonist.cli.read, "track", then_press)


def test_ctrl_c_when_all_was_read(here, model, capsys, monkeypatch):
    assert main(reading("ab.txt", model, "whole", "--limit", "50")) == 0
    capsys.readouterr()
    with monkeypatch.context() as patch:
        press_ctrl_c_after(1, patch)
        assert main(reading("ab.txt", model, "s", "--limit", "50")) == 130
    assert "interrupted after byte 50 of ab.txt; all was read" in capsys.readouterr().err
    assert Path("s").read_bytes() == Path("whole").read_bytes()


def test_what_is_said_of_a_session(here, model, capsys):
    assert main(reading("ab.txt", model, "s", "--limit", "1500", "--json")) == 0
    told = capsys.readouterr()
    numbers = json.loads(told.out)
    session = Session.load("s", LanguageModel.load(model))
    assert (numbers["session"], numbers["from_token"], numbers["to_token"]) == ("s", 0, session.position)
    held = len(session.remainder)
    assert numbers["bytes"] == 1500 - held
    assert f"s: {session.position:,} tokens read, {session.nbytes:,} bytes" in told.err
    assert f"{held} of them text held back" in told.err
    assert "--session s" in Path("page.html").read_text()
    with pytest.raises(SystemExit):
        main(["read", "--help"])
    assert "--new-document" in capsys.readouterr().out


# What is refused: the file stays as it is.


@pytest.fixture(scope="module")
def bytes_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(1)
    LanguageModel(TINY).save(folder)
    return folder


def test_sessions_that_are_refused(here, bytes_model, capsys):
    model = LanguageModel.load(bytes_model)
    torch.manual_seed(2)
    LanguageModel(TINY).save("others")
    LanguageModel(TINY.replace(window=8)).save("shorter")
    _, session = model.read(torch.randint(0, 256, (1, 50)))
    session.save("s")
    _, two = model.read(torch.randint(0, 256, (2, 50)))
    two.save("two")
    Path("cut").write_bytes(Path("s").read_bytes()[:-9])
    Path("folder").mkdir()
    before = tree(here)
    for options, sentence in (
        (reading("ab.txt", Path("others"), "s"), "s cannot be used: it is of another model (the same configuration"),
        (reading("ab.txt", Path("shorter"), "s"), "another model (window 64 there, 8 here); use the model that had"),
        (reading("ab.txt", bytes_model, "cut"), "cut is not a whole safetensors file"),
        (reading("ab.txt", bytes_model, "ab.txt"), "ab.txt is not a whole safetensors file"),
        (reading("ab.txt", bytes_model, "two"), "two holds 2 streams side by side"),
        (reading("ab.txt", bytes_model, "folder"), "cannot write folder: it is a folder"),
        (reading("ab.txt", bytes_model, "ab.txt/s"), "cannot write ab.txt/s"),
        (reading("missing.txt", bytes_model, "s"), "there is no file missing.txt"),
        (reading("ab.txt", bytes_model, "s", "--baseline", str(bytes_model)), "leave out --baseline or --session"),
        (reading("ab.txt", bytes_model, "s", "--start", "99999"), "--start 99999 leaves nothing"),
        (reading("ab.txt", bytes_model, "s", "--limit", "0"), "limit is 0; read at least 1 byte"),
        (reading("ab.txt", bytes_model, "s", "--start", "-1"), "start is -1; it must be at least 0"),
    ):
        refuses(options, sentence, capsys)
        assert tree(here) == before, options


def test_a_session_of_another_tokenizer(here, tmp_path_factory, capsys):
    """The same model with a tokenizer of as many tokens, which has other merges."""
    folder = tmp_path_factory.mktemp("swapped")
    tokenizer = find_tokenizer(save_tokenizer("gpt2", folder))
    torch.manual_seed(0)
    LanguageModel(TINY.replace(vocab_size=tokenizer.vocab_size)).save(folder, tokenizer)
    assert main(reading("ab.txt", folder, "s", "--limit", "400")) == 0
    definition = json.loads((folder / "tokenizer.json").read_text())
    definition["model"]["merges"] = definition["model"]["merges"][:-1]
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    before = Path("s").read_bytes()
    refuses(reading("ab.txt", folder, "s"), "read with another tokenizer than this one", capsys)
    assert Path("s").read_bytes() == before
    assert read_tensors("s")[1]["tokenizer"] == tokenizer.fingerprint


def test_text_that_is_none_is_refused_with_a_session_too(here, bytes_model, capsys):
    """A part of a text may begin and end within a character, and nothing else."""
    for name, content in (
        ("binary", b"text \xff text"),
        ("middle", b"text \x80\x80 text"),
        ("empty", b""),
        ("nul", b"\0"),
    ):
        Path(name).write_bytes(content)
        refuses(reading(name, bytes_model, "s"), f"{name} ", capsys)
    Path("part").write_bytes("🐢 and 🐢".encode()[2:-1])
    refuses(["read", "part", "--model", str(bytes_model)], "part is not UTF-8 text: byte 0 is 0x90", capsys)
    assert not Path("s").exists()


# The page that explains them.

PAGE = Path(__file__).parents[2] / "docs" / "sessions.md"


def test_the_sizes_on_the_page():
    rows = re.findall(r"^\| `([\w-]+)`(?: with rule `([\w-]+)`)? \| [\d.]+ M \| ([\d,]+) \|$", PAGE.read_text(), re.M)
    assert len(rows) == 5
    for preset, rule, size in rows:
        config = find_preset(preset)
        session = Session.begin(LanguageModel(config.replace(rule=rule) if rule else config))
        assert f"{session.nbytes:,}" == size, preset
