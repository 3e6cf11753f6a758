"""`mnemonist generate`: what transformers would write after the whole text, from a session as from a prompt."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from commands import refuses, tree
from tiny_tokenizers import save_tokenizer

import mnemonist.cli.generate
from mnemonist.cli import main
from mnemonist.cli.generate import TextStreamer
from mnemonist.data import ByteTokenizer, Tokenizer, find_tokenizer
from mnemonist.models import LanguageModel, ModelConfig, Session

TINY = ModelConfig(
    blocks=("mag",), rule="titans:chunk_size=8,expansion=1", width=16, heads=2, head_dim=8, memory_heads=2,
    memory_head_dim=8, window=8, mlp_width=24,
)  # fmt: skip
TEXT = "the żółw 🐢 sat on the mat, and then there were two of them. " * 3
PROMPT = "so the cat "


@pytest.fixture(scope="module", params=["bytes", "subwords"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a lively model: it does not repeat itself, and no rounding decides which token is likeliest."""
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = find_tokenizer(save_tokenizer("gpt2", folder)) if request.param == "subwords" else None
    torch.manual_seed(0)
    model = LanguageModel(TINY if tokenizer is None else TINY.replace(vocab_size=tokenizer.vocab_size))
    with torch.no_grad():
        model.embedding.weight.mul_(50)
        for name, parameter in model.named_parameters():
            if name.endswith(("down.weight", "out_proj.weight")):
                parameter.mul_(60)
    model.save(folder, tokenizer)
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_bytes(TEXT.encode())
    Path("prompt.txt").write_text(PROMPT)
    Path("all.txt").write_text(TEXT + PROMPT)
    return tmp_path


def writing(model: Path, *more: str) -> list[str]:
    return ["generate", "--model", str(model), "--tokens", "24", *more]


def written(command: list[str], capfdbinary: pytest.CaptureFixture[bytes], code: int = 0) -> str:
    """What stands on stdout."""
    capfdbinary.readouterr()
    assert main(command) == code
    return capfdbinary.readouterr().out.decode()


def read_text(model: Path) -> None:
    assert main(["read", "text.txt", "--model", str(model), "--session", "s"]) == 0


def load(folder: Path) -> tuple[LanguageModel, Tokenizer]:
    torch.set_flush_denormal(True)  # as the command does
    model = LanguageModel.load(folder).eval()
    return model, find_tokenizer(folder, model.config.vocab_size)


def by_transformers(folder: Path, text: str, tokens: int = 24, **options: bool) -> str:
    """Greedily, from the whole text in one call."""
    from transformers import GenerationConfig

    from mnemonist.models.hugging_face import MnemonistForCausalLM

    model, tokenizer = load(folder)
    ids = torch.from_numpy(tokenizer.encode(text, bos=True))[None]
    quiet = [tokenizer.bos_id, 258] if isinstance(tokenizer, ByteTokenizer) else None
    config = GenerationConfig(
        max_new_tokens=tokens, do_sample=False, eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.eos_id,
        suppress_tokens=quiet,
    )  # fmt: skip
    found = MnemonistForCausalLM.from_language_model(model).generate(
        ids, attention_mask=torch.ones_like(ids), generation_config=config, **options
    )
    return tokenizer.decode(found[0, ids.shape[1] :].numpy())


def test_greedy_text_is_what_transformers_writes(here, model, capfdbinary):
    expected = by_transformers(model, PROMPT)
    assert len(set(expected)) > 3  # no dull model
    assert written(writing(model, "--prompt", PROMPT, "--greedy"), capfdbinary) == expected + "\n"
    assert written(writing(model, "--prompt-file", "prompt.txt", "--greedy"), capfdbinary) == expected + "\n"
    assert written(writing(model, "--greedy"), capfdbinary) == by_transformers(model, "") + "\n"
    frozen = by_transformers(model, PROMPT, learn=False)
    assert frozen != expected
    assert written(writing(model, "--prompt", PROMPT, "--greedy", "--frozen"), capfdbinary) == frozen + "\n"


@pytest.mark.parametrize("how", [["--greedy"], ["--seed", "5", "--top-p", "0.95"]])
def test_a_session_stands_for_the_text_it_has_read(here, model, how, capfdbinary):
    read_text(model)
    before = Path("s").read_bytes()
    at_once = written(writing(model, "--prompt-file", "all.txt", *how), capfdbinary)
    assert written(writing(model, "--session", "s", "--prompt", PROMPT, *how), capfdbinary) == at_once
    assert Path("s").read_bytes() == before
    if how == ["--greedy"]:
        assert at_once == by_transformers(model, TEXT + PROMPT) + "\n"
        alone = written(writing(model, "--session", "s", *how), capfdbinary)
        assert alone == written(writing(model, "--prompt-file", "text.txt", *how), capfdbinary)
        assert alone != at_once


def test_going_on_from_a_saved_session_is_one_longer_text(here, model, capfdbinary):
    longer = written(writing(model, "--prompt", PROMPT, "--greedy", "--tokens", "48"), capfdbinary)
    part = ["--greedy", "--tokens", "24", "--save-session", "s"]
    first = written(writing(model, "--prompt", PROMPT, *part), capfdbinary)
    middle = Session.load("s", load(model)[0])
    second = written(writing(model, "--session", "s", *part), capfdbinary)
    assert middle.position + 24 == Session.load("s", load(model)[0]).position
    if "bytes" in model.name:  # of subwords, a character may be cut between the two
        assert len(first) + len(second) > 3
    ours, whole = (first.removesuffix("\n") + second).replace("\ufffd", ""), longer.replace("\ufffd", "")
    assert ours == whole


def test_the_saved_session_has_read_prompt_and_text(here, model, capfdbinary):
    """As reading them gives it, from which `read` goes on."""
    said = written(writing(model, "--prompt", PROMPT, "--seed", "1", "--save-session", "s"), capfdbinary)
    language_model, tokenizer = load(model)
    session = Session.load("s", language_model)
    ids = session.pending[0, : session.count]
    assert tokenizer.decode(ids.numpy()) == PROMPT + said.removesuffix("\n")
    _, expected = language_model.read(ids[None])
    assert all(torch.equal(t, session.to_tensors()[name]) for name, t in expected.to_tensors().items())
    assert main(["read", "text.txt", "--model", str(model), "--session", "s"]) == 0
    assert Session.load("s", language_model).position > session.position


@pytest.mark.parametrize("model", ["bytes"], indirect=True)
def test_draws_are_those_of_the_seed(here, model, capfdbinary):
    def drawn(*options: str) -> str:
        return written(writing(model, "--prompt", PROMPT, *options), capfdbinary)

    hot = ["--temperature", "3"]
    assert drawn(*hot) == drawn(*hot, "--seed", "0") != drawn(*hot, "--seed", "1")
    assert len({drawn("--seed", "7", *more) for more in ([], hot)}) == 2
    greedy = drawn("--greedy")
    assert drawn("--top-k", "1", *hot) == drawn("--top-p", "1e-9", *hot) == drawn("--temperature", "1e-4") == greedy
    assert len(drawn("--tokens", "1")) <= len(greedy)


@pytest.mark.parametrize("model", ["bytes"], indirect=True)
def test_bad_options_are_refused(here, model, capsys):
    read_text(model)
    Path("cut").write_bytes(Path("s").read_bytes()[:-5])
    Path("binary").write_bytes(b"text \xff")
    Path("empty").write_bytes(b"")
    Path("folder").mkdir()
    torch.manual_seed(9)
    other, tokenizer = load(model)
    LanguageModel(other.config).save("other", tokenizer)
    _, two = other.read(torch.randint(0, 200, (2, 30)))
    two.save("two")
    before = tree(here)
    for options, sentence in (
        (["--tokens", "0"], "tokens is 0; write at least 1"),
        (["--tokens", "-3"], "tokens is -3; write at least 1"),
        (["--temperature", "0"], "temperature is 0.0; it must be above 0 (--greedy takes the likeliest token)"),
        (["--temperature", "-1"], "temperature is -1.0; it must be above 0"),
        (["--temperature", "nan"], "temperature is nan; it must be above 0"),
        (["--temperature", "inf"], "temperature is inf; it must be above 0"),
        (["--top-p", "0"], "top_p is 0.0; it must be above 0 and at most 1"),
        (["--top-p", "1.5"], "top_p is 1.5; it must be above 0 and at most 1"),
        (["--top-p", "nan"], "top_p is nan"),
        (["--top-k", "-1"], "top_k is -1; it must be at least 1, or 0 to draw from all"),
        (["--seed", "-1"], "seed is -1; it must be at least 0"),
        (["--seed", "99999999999999999999"], "seed is 99999999999999999999; it must be at least 0 and below"),
        (["--prompt", "a", "--prompt-file", "prompt.txt"], "there are two prompts"),
        (["--prompt-file", "missing.txt"], "there is no file missing.txt"),
        (["--prompt-file", "binary"], "binary is not UTF-8 text"),
        (["--prompt-file", "empty"], "empty holds no text"),
        (["--prompt-file", "folder"], "folder is not a plain file"),
        (["--session", "missing"], "there is no file missing"),
        (["--session", "cut"], "cut is not a whole safetensors file"),
        (["--session", "text.txt"], "text.txt is not a whole safetensors file"),
        (["--session", "two"], "two holds 2 streams side by side"),
        (["--session", "s", "--model", "other"], "of another model (the same configuration with other weights)"),
        (["--save-session", "folder"], "cannot write folder: it is a folder"),
        (["--save-session", "text.txt/s"], "cannot write text.txt/s"),
        (["--model", "missing"], "There is no model at missing"),
        (["--greedily"], "--greedily"),
    ):
        refuses(writing(model, *options), sentence, capsys)
        assert tree(here) == before, options


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c(here, model, presses, capfdbinary, monkeypatch):
    """Once: the text ends, and the session that is saved has read what was written. Twice: at once, and nothing is."""
    whole = written(writing(model, "--prompt", PROMPT, "--greedy"), capfdbinary)
    put = TextStreamer.put

    def then_press(self: TextStreamer, ids: torch.Tensor) -> None:
        put(self, ids)
        if len(self.ids) == 10:
            for _ in range(presses):
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(TextStreamer, "put", then_press)
    said = written(writing(model, "--prompt", PROMPT, "--greedy", "--save-session", "s"), capfdbinary, code=130)
    assert whole.startswith(said.removesuffix("\n").rstrip("\ufffd"))
    if presses == 2:
        assert not Path("s").exists()
        return
    monkeypatch.setattr(TextStreamer, "put", put)
    assert said.endswith("\n")
    language_model, tokenizer = load(model)
    session = Session.load("s", language_model)
    ids = session.pending[0, : session.count].numpy()
    wrote = len(ids) - 1 - len(tokenizer.encode(PROMPT))
    assert wrote in (10, 11)  # transformers asks before it gives a token or after
    assert tokenizer.decode(ids) == PROMPT + said.removesuffix("\n")
    rest = written(writing(model, "--session", "s", "--greedy", "--tokens", str(24 - wrote)), capfdbinary)
    assert (said.removesuffix("\n") + rest).replace("\ufffd", "") == whole.replace("\ufffd", "")


def test_marks_are_not_written(here, model, capfdbinary, monkeypatch):
    """But for the one that ends a document; what it says after the end of one is nothing."""
    seen: list[int] = []
    put = mnemonist.cli.generate.TextStreamer.put

    def noted(self: TextStreamer, ids: torch.Tensor) -> None:
        put(self, ids)
        seen.extend(self.ids[-1:])

    monkeypatch.setattr(TextStreamer, "put", noted)
    for seed in range(3):
        written(writing(model, "--seed", str(seed), "--temperature", "100", "--tokens", "48"), capfdbinary)
    _, tokenizer = load(model)
    silent = {tokenizer.bos_id, tokenizer.pad_id} - {tokenizer.eos_id, None}
    assert len(seen) > 60 and not silent & set(seen)
