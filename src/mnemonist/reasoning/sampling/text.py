"""Tokens as text: what a sampler needs of a tokenizer, and the text of tokens that come one by one.

A token is not a piece of text: a character may take several, a token may hold the end of one word and the beginning of
another, and some tokenizers write a space or not depending on what stands before. So the text of an attempt is what
the tokens say *behind the last tokens of the prompt*, and a stop string is found in text, never in tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

CONTEXT = 4
"""Tokens that are decoded in front of those asked for, so that spaces come out as in the whole text."""
LONGEST_CHARACTER = 4
"""Tokens that a character of UTF-8 takes at most."""
UNFINISHED = "\N{REPLACEMENT CHARACTER}"
BORDER = "\N{SYMBOL FOR START OF TEXT}"
"""Put in the place of a question or a message to see what stands before and behind it."""
DAY = {"%d": "26", "%b": "Jul", "%B": "July", "%m": "07", "%Y": "2024", "%y": "24", "%a": "Fri", "%A": "Friday"}
"""That of chat templates that name one: the day that those of Llama 3.2 name where they cannot ask for it."""
_ONE_DAY = "".join(
    [
        "{% macro strftime_now(format) %}{{ format",
        *(f" | replace('{code}', '{said}')" for code, said in DAY.items()),
        " }}{% endmacro %}",
    ]
)


class TextTokenizer(Protocol):
    """Text to tokens and back, as a policy reads and writes it."""

    @property
    def end_ids(self) -> Collection[int]:
        """Marks that end a text; the first is the one to write."""
        ...

    def encode(self, text: str) -> list[int]:
        """Tokens of a prompt, with the mark before it that the policy was trained with."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of any tokens."""
        ...


class _Text:
    """A `TextTokenizer` of two functions."""

    def __init__(
        self, encode: Callable[[str], list[int]], decode: Callable[[list[int]], str], end_ids: Collection[int]
    ) -> None:
        self._encode, self._decode = encode, decode
        self.end_ids = tuple(end_ids)

    def encode(self, text: str) -> list[int]:
        return self._encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self._decode(list(ids))


def text_tokenizer(tokenizer: Any) -> TextTokenizer:
    """Any tokenizer as a `TextTokenizer`: one of ours, one of transformers, or one that is it already.

    Ours put their start mark before a prompt, as before every document. One of transformers puts what it is made to
    put there, once, also if the prompt begins with it as text (chat templates do that). Its marks are shown in text,
    as formats are written with them. Where its chat template has a mark of its own for the end of a message, that
    ends a text too.

    Raises:
        TypeError: it is none of these.
    """
    if hasattr(tokenizer, "end_ids"):
        known: TextTokenizer = tokenizer
        return known
    if hasattr(tokenizer, "decode_bytes"):
        end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
        size = tokenizer.vocab_size
        return _Text(
            lambda text: [int(i) for i in tokenizer.encode(text, bos=True)],
            # A model may have more outputs than its tokenizer has tokens.
            lambda ids: tokenizer.decode([i for i in ids if i < size]),
            end,
        )
    if hasattr(tokenizer, "eos_token_id") and hasattr(tokenizer, "encode"):
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        if (mark := end_of_message(tokenizer)) and (of_message := tokenizer.convert_tokens_to_ids(mark)) not in end:
            end.append(of_message)
        opening = _opening(tokenizer)

        def encode(text: str) -> list[int]:
            ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
            return ids if ids[: len(opening)] == opening else opening + ids

        return _Text(
            encode,
            lambda ids: tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False),
            end,
        )
    raise TypeError(
        f"{type(tokenizer).__name__} is no tokenizer: give one of ours, one of transformers, or a TextTokenizer."
    )


def _opening(tokenizer: Any) -> list[int]:
    """The marks that a tokenizer of transformers puts before a text."""
    bare = tokenizer.encode("a", add_special_tokens=False)
    marked = tokenizer.encode("a")
    for at in range(len(marked) - len(bare) + 1):
        if marked[at : at + len(bare)] == bare:
            return list(marked[:at])
    return []


def in_template(tokenizer: Any, messages: Sequence[Mapping[str, str]], *, answering: bool) -> str:
    """Messages as a chat template of transformers puts them, on any day the same.

    Some templates name the day, and what is asked, learned and resumed must not follow from that: they are told of one
    day for all.

    Args:
        tokenizer: one of transformers.
        messages: each has a role and a content.
        answering: whether an answer of the assistant is begun.
    """
    template = tokenizer.get_chat_template()
    if "strftime_now" in template:
        template = _ONE_DAY + template
    text: str = tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=answering
    )
    return text


def end_of_message(tokenizer: Any) -> str:
    """The mark that a chat template puts behind what an assistant says; "" if it puts none, or there is no template."""
    if not getattr(tokenizer, "chat_template", None):
        return ""
    said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": BORDER}]
    try:
        text = in_template(tokenizer, said, answering=False)
    except Exception:  # templates are programs of others; one that wants more than this is no reason to stop
        return ""
    behind = text.rpartition(BORDER)[2].lstrip()
    marks = [str(mark) for mark in tokenizer.added_tokens_decoder.values()]
    return max((mark for mark in marks if behind.startswith(mark)), key=len, default="")


def written_text(tokenizer: TextTokenizer, prompt_ids: Sequence[int], ids: Sequence[int]) -> str:
    """The text of ``ids`` where they stand, behind a prompt."""
    context = list(prompt_ids[-CONTEXT:])
    before = tokenizer.decode(context)
    whole = tokenizer.decode(context + list(ids))
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(ids)


def first_stop(text: str, stop: Sequence[str]) -> int | None:
    """The end of the stop string that is complete first, or None if there is none."""
    ends = [at + len(mark) for mark in stop if (at := text.find(mark)) >= 0]
    return min(ends, default=None)


class StopFinder:
    """Watches tokens as they are written until their text has a stop string; the cost of a token is constant.

    Only a short window of tokens is decoded each time. What it says more than before is new text, unless it ends in the
    middle of a character, which is then waited for.
    """

    def __init__(self, tokenizer: TextTokenizer, prompt_ids: Sequence[int], stop: Sequence[str]) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._kept = max(map(len, stop)) - 1
        self._tail = ""
        self._window = list(prompt_ids[-CONTEXT:])
        self._told = tokenizer.decode(self._window)
        self._pending = 0

    def push(self, token: int) -> bool:
        """Take the next token; whether a stop string is now complete."""
        self._window.append(token)
        self._pending += 1
        text = self._tokenizer.decode(self._window)
        if text.endswith(UNFINISHED) and self._pending < LONGEST_CHARACTER:
            return False
        self._pending = 0
        self._tail += text[len(self._told) :]
        found = any(mark in self._tail for mark in self._stop)
        self._tail = self._tail[-self._kept :] if self._kept else ""
        if len(self._window) > 3 * CONTEXT:
            self._window = self._window[-CONTEXT:]
            text = self._tokenizer.decode(self._window)
        self._told = text
        return found
