"""``mnemonist generate``: write on after a prompt or a session, token by token, the memory learning as it goes."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mnemonist.cli import INTERRUPTED
from mnemonist.cli.options import Generate
from mnemonist.cli.process import prepare_torch, say
from mnemonist.cli.read import Reader, load_reader, load_session, progress_bars, track
from mnemonist.data import Tokenizer, read_document
from mnemonist.data.tokenizer import utf8
from mnemonist.errors import UserError
from mnemonist.files import require_writable
from mnemonist.models.session import Session
from mnemonist.training.interruption import stop_on_signals


class TextStreamer:
    """Writes text on stdout as its tokens come, and keeps the tokens; `generate` calls `put` and `end`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.ids: list[int] = []
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")  # characters may come in several tokens
        self._prompt = True

    def put(self, ids: Tensor) -> None:
        """Take the prompt, which comes first, or the next token."""
        if self._prompt:
            self._prompt = False
            return
        self.ids += ids.flatten().tolist()
        self._write(self._decoder.decode(self._tokenizer.decode_bytes(ids.flatten().tolist())))

    def end(self) -> None:
        """Write what is left of a character, and end the line."""
        self._write(self._decoder.decode(b"", final=True) + "\n")

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


def run_generate(options: Generate) -> int:
    """Read the prompt, write, and save the session if that is asked for."""
    check(options)
    prompt = find_prompt(options)
    if options.save_session is not None:
        require_writable(options.save_session)
    prepare_torch()
    reader = load_reader(options.model)
    begin = Session.begin(reader.model) if options.session is None else load_session(options.session, reader)
    session = read_prompt(reader, begin, prompt, learn=not options.frozen)
    streamer = TextStreamer(reader.tokenizer)
    with stop_on_signals() as stop:
        write(options, reader, session, streamer, lambda: stop.requested)
        if options.save_session is not None:
            if streamer.ids:
                # The text is read again at once: a session does not depend on how its tokens came.
                _, session = reader.model.read(torch.tensor([streamer.ids]), session, learn=not options.frozen)
            session.save(options.save_session)
            say(f"{options.save_session}: {session.position:,} tokens read, {session.nbytes:,} bytes")
    return INTERRUPTED if stop.requested else 0


def check(options: Generate) -> None:
    """Refuse what cannot be drawn from.

    Raises:
        UserError: an option is out of range, or two exclude each other.
    """
    if options.tokens < 1:
        raise UserError(f"tokens is {options.tokens}; write at least 1")
    if not 0 < options.temperature < float("inf"):
        raise UserError(
            f"temperature is {options.temperature}; it must be above 0 (--greedy takes the likeliest token)"
        )
    if not 0 < options.top_p <= 1:
        raise UserError(f"top_p is {options.top_p}; it must be above 0 and at most 1")
    if not 0 <= options.seed < 2**63:
        raise UserError(f"seed is {options.seed}; it must be at least 0 and below 2 to the 63rd")
    if options.top_k < 0:
        raise UserError(f"top_k is {options.top_k}; it must be at least 1, or 0 to draw from all")
    if options.prompt is not None and options.prompt_file is not None:
        raise UserError("there are two prompts; give either --prompt or --prompt-file")


def find_prompt(options: Generate) -> bytes:
    """The prompt, which may be empty.

    Raises:
        UserError: its file is missing or not text.
    """
    if options.prompt_file is not None:
        return read_document(options.prompt_file).text
    return utf8(options.prompt or "")


def read_prompt(reader: Reader, session: Session, prompt: bytes, *, learn: bool) -> Session:
    """The session after a prompt, which goes on from what was read; a new one begins a document first."""
    stream = reader.tokenizer.stream(session.remainder)
    parts = [stream.feed(prompt), stream.finish()]  # what comes next is written, so nothing is held back
    if session.position == 0:
        parts.insert(0, np.array([reader.tokenizer.bos_id]))
    ids = np.concatenate(parts)
    session = replace(session, remainder=b"", tokenizer=reader.tokenizer.fingerprint)
    if not len(ids):
        return session
    with progress_bars() as bars:
        bars.disable = len(ids) <= session.piece
        _, session = reader.model.read(
            torch.from_numpy(ids)[None], session, learn=learn, progress=track(bars, "prompt", len(ids), 1, "tokens")
        )
    return session


def write(
    options: Generate, reader: Reader, session: Session, streamer: TextStreamer, stop: Callable[[], bool]
) -> None:
    """Generate with transformers what comes after a session.

    After each token ``stop`` is asked; True ends the text.
    """
    from transformers import GenerationConfig, StoppingCriteriaList

    from mnemonist.models.hugging_face import MnemonistForCausalLM

    model, marks = reader.model, reader.tokenizer
    drawn: dict[str, Any] = {"do_sample": False}
    if not options.greedy:
        drawn = {"do_sample": True, "temperature": options.temperature, "top_p": options.top_p, "top_k": options.top_k}
    silent = {marks.bos_id, marks.pad_id, *range(marks.vocab_size, model.config.vocab_size)} - {marks.eos_id, None}
    torch.manual_seed(options.seed)
    wrapped: Any = MnemonistForCausalLM.from_language_model(model)
    wrapped.generate(
        **wrapped.inputs_of(session),
        streamer=streamer,
        learn=not options.frozen,
        stopping_criteria=StoppingCriteriaList(
            [lambda ids, scores, **_: torch.full((len(ids),), stop(), device=ids.device)]
        ),
        generation_config=GenerationConfig(
            max_new_tokens=options.tokens,
            eos_token_id=marks.eos_id,
            pad_token_id=marks.pad_id if marks.pad_id is not None else marks.eos_id,
            suppress_tokens=sorted(silent) or None,
            **drawn,
        ),
    )
