"""A sampler that asks a server of the OpenAI protocol: vLLM, SGLang, llama.cpp, or one on the net.

Prompts go to ``/v1/completions`` as they are, several at a time; what the server says of tokens and their
log-probabilities is kept. A chat server (``chat=True``) puts each prompt into its own template, as the words of a user:
then a text cannot be begun for it, which budget forcing and tree search need.

What a server leaves open: it gives no token ids, so attempts have none; and it takes stop strings out of the text.
vLLM, SGLang and llama.cpp can say which one it was, so it is put back. Others do not say whether it was one at all;
from then on the policy writes on and the text is cut here, which costs the tokens behind the cut.

What a request leaves open, such servers fill with what the model's makers recommend or they themselves think best.
What is drawn would not be the policy's then, so a server that says what it is (in its list of models) is told all.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import queue
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

from mnemonist.errors import UserError, nearest
from mnemonist.reasoning.attempts import Attempt, Decoding, Finish, draw_numbers
from mnemonist.reasoning.ledger import Ledger
from mnemonist.reasoning.sampling.json_over_http import PASSING, Client, Refusal, words_of
from mnemonist.reasoning.sampling.text import first_stop

Stops = Literal["auto", "server", "client"]
OnAttempt = Callable[[int, Attempt], None]
"""Told the number of a prompt and its attempt, as soon as that is there and its cost in the ledger."""

OWNERS: Mapping[str, Mapping[str, Any]] = {
    "llamacpp": {"top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0, "verbose": True},
    "vllm": {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0},
    "sglang": {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0},
}
"""By what servers call themselves: fields that turn off their own taste, and let llama.cpp say why an attempt ended."""


class SamplingFailed(UserError):
    """A prompt could not be sampled; what was done before is in here.

    Args:
        reason: why.
        attempts: that are done, by the number of their prompt; all of them are in the ledger.
        asked: prompts.
        kept: where the attempts are, if they are in a file.
    """

    def __init__(
        self, reason: str, attempts: Mapping[int, Attempt], asked: int, kept: str | os.PathLike[str] | None = None
    ) -> None:
        where = "done" if kept is None else f"kept in {os.fspath(kept)}"
        super().__init__(f"{reason} ({len(attempts)} of {asked} attempts are {where})")
        self.reason, self.attempts, self.asked = reason, dict(attempts), asked


class ServerSampler:
    """Asks a server.

    Args:
        url: of the server, with or without ``/v1``.
        model: as the server calls it.
        api_key: if it wants one.
        chat: whether prompts are put as messages of a user.
        concurrency: prompts that are asked at a time.
        timeout: seconds that the server may be silent; it is while it writes.
        retries: tries after the first one, when the server is busy, broken or not there.
        patience: seconds before the second try, about; doubled for each one more.
        stops: who looks for stop strings; auto: the server, as long as it says which one it has found.
        close_thought: put between the thought and the rest, where a chat server gives the thought apart.
        open_thought: taken from the beginning of what a chat server writes after a prompt that ends in it: models that
            think open their thought themselves, and a text has it once.
        more: fields that every request has besides, such as ``{"min_p": 0.05}``.
        name: what tables call it; by default the model.
        flops_per_token: operations of the model for a token, if you know.

    Raises:
        UserError: the address is none, or a setting is out of range.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key: str | None = None,
        chat: bool = False,
        concurrency: int = 8,
        timeout: float = 300.0,
        retries: int = 5,
        patience: float = 1.0,
        stops: Stops = "auto",
        close_thought: str = "</think>\n",
        open_thought: str = "<think>\n",
        more: Mapping[str, Any] | None = None,
        name: str | None = None,
        flops_per_token: float = 0.0,
    ) -> None:
        if concurrency < 1 or stops not in get_args(Stops):
            raise UserError(
                f"concurrency is {concurrency} and stops {stops!r}; ask at least one prompt at a time, and let "
                f"{' or '.join(get_args(Stops))} look for stop strings"
            )
        base = url.rstrip("/")
        self.client = Client(base if base.endswith("/v1") else f"{base}/v1", api_key, timeout, retries, patience)
        self.model, self.chat, self.concurrency = model, chat, concurrency
        self.stops: Stops = stops
        self.close_thought, self.open_thought, self.more = close_thought, open_thought, dict(more or {})
        self.flops_per_token = flops_per_token
        self._name = name or model
        self._untold = False  # whether the server has kept a stop string to itself
        self._listed: list[Mapping[str, Any]] | None = None

    @property
    def name(self) -> str:
        """What tables and ledgers call the policy."""
        return self._name

    def sample(self, prompts: Sequence[str], decoding: Decoding, ledger: Ledger | None = None) -> list[Attempt]:
        """One attempt for each prompt, in their order; see `Sampler`.

        The server is given a seed that follows from the decoding's and `draw_numbers`; whether the same seed gives
        the same attempt is up to the server. Log-probabilities are asked for at temperature 0 and 1 alone, as servers
        give them at temperature 1.

        Raises:
            UserError: a prompt is empty.
            SamplingFailed: the server refuses, does not answer, or answers something else; attempts that are done are
                in it.
        """
        limits = [decoding.max_tokens] * len(prompts)
        return self.sample_each(prompts, decoding, limits, draw_numbers(prompts), ledger)

    def sample_each(
        self,
        prompts: Sequence[str],
        decoding: Decoding,
        limits: Sequence[int],
        numbers: Sequence[int],
        ledger: Ledger | None = None,
        on_attempt: OnAttempt | None = None,
    ) -> list[Attempt]:
        """As `sample`, with a limit of tokens for each prompt, and a number that its seed follows from.

        Args:
            prompts, decoding, ledger: as in `sample`.
            limits: in place of ``max_tokens``.
            numbers: see `draw_numbers`.
            on_attempt: called in the caller's thread.

        Raises:
            UserError: as `sample`.
            SamplingFailed: as `sample`.
        """
        for place, prompt in enumerate(prompts):
            if not prompt:
                raise UserError(f"prompt {place} is empty; give the policy something to go on from")
        owner = self._owner()
        bodies = [
            {**owner, **self._request(*each, decoding=decoding), **self.more}
            for each in zip(prompts, limits, numbers, strict=True)
        ]
        ledger = Ledger() if ledger is None else ledger
        done: dict[int, Attempt] = {}
        failure: UserError | None = None
        asked = _at_once(
            lambda place, stopped: self._ask(place, prompts[place], bodies[place], decoding, stopped),
            len(prompts),
            self.concurrency,
        )
        with ledger.timing(), contextlib.closing(asked):
            for place, outcome in asked:
                if isinstance(outcome, UserError):
                    failure = failure or outcome
                    continue
                attempt, read, lost = outcome
                written = attempt.tokens + lost
                flops = self.flops_per_token * (read + written)
                ledger.charge(prompt=read, generated=written, calls=1, flops=flops)
                done[place] = attempt
                if on_attempt is not None:
                    on_attempt(place, attempt)
        if failure is not None:
            raise SamplingFailed(str(failure), done, len(prompts)) from failure
        return [done[place] for place in range(len(prompts))]

    def _ask(
        self, place: int, prompt: str, body: Mapping[str, Any], decoding: Decoding, stopped: threading.Event
    ) -> tuple[Attempt, int, int]:
        """The attempt, the tokens that were read for it, and those that were written for nothing."""
        path = "/chat/completions" if self.chat else "/completions"
        by_client = self.stops == "client" or self._untold
        if by_client:
            body = {name: value for name, value in body.items() if name != "stop"}
        try:
            reply = self.client.ask(path, body, stopped)
        except Refusal as refusal:
            raise self._explained(refusal, place) from refusal
        try:
            attempt, read = self._attempt(prompt, reply, decoding, by_client)
            return attempt, read, 0
        except _Untold as untold:
            if self.stops == "server":
                raise UserError(
                    f"{self.client.url} does not say whether an attempt ended by itself or with a stop string; give "
                    "the sampler stops='client'"
                ) from untold
            self._untold = True
            attempt, read, lost = self._ask(place, prompt, body, decoding, stopped)
            return attempt, read + untold.read, lost + untold.tokens
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"the reply of {self.client.url}{path} is not what the OpenAI protocol says ({error!r}); check the "
                "server's version, or its log"
            ) from error

    def _request(self, prompt: str, limit: int, number: int, decoding: Decoding) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": limit,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "seed": _seed(decoding.seed, number),
        }
        body |= {"messages": [{"role": "user", "content": prompt}]} if self.chat else {"prompt": prompt}
        if decoding.top_k:
            body["top_k"] = decoding.top_k  # not of the protocol, but servers for open models have it
        if decoding.temperature in (0, 1):
            body["logprobs"] = True if self.chat else 1
        if decoding.stop:
            body["stop"] = list(decoding.stop)
        return body

    def _owner(self) -> Mapping[str, Any]:
        """Fields for the kind of server that it is; none if it does not say."""
        models = self._models()
        return OWNERS.get(str(models[0].get("owned_by", "")).lower(), {}) if models else {}

    def _models(self) -> list[Mapping[str, Any]]:
        """What the server says of its models; nothing if it cannot list them, or not now: then it is asked again."""
        if self._listed is None:
            try:
                reply = replace(self.client, timeout=min(10.0, self.client.timeout), retries=0).ask("/models", None)
                self._listed = [model for model in reply["data"] if isinstance(model, dict)]
            except (KeyError, TypeError):
                self._listed = []
            except UserError as error:
                if isinstance(error, Refusal) and error.status not in PASSING:
                    self._listed = []
        return self._listed or []

    def _attempt(
        self, prompt: str, reply: Mapping[str, Any], decoding: Decoding, by_client: bool
    ) -> tuple[Attempt, int]:
        if reply.get("error") and not reply.get("choices"):
            raise UserError(
                f"{self.client.url} answers with an error: {words_of(reply)}; change what it complains of, or look at "
                "its log"
            )
        choice = reply["choices"][0]
        text = self._text(prompt, choice)
        log_probs = _log_probs(choice)
        usage = reply.get("usage")
        if not isinstance(usage, dict) or not {"prompt_tokens", "completion_tokens"} <= usage.keys():
            raise UserError(
                f"{self.client.url} does not say how many tokens it has read and written (usage), which every attempt "
                "is charged with; make the server tell, or take one that does"
            )
        tokens = int(usage["completion_tokens"])
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        read = max(0, int(usage["prompt_tokens"]) - int(cached))
        finish: Finish = "end" if choice["finish_reason"] == "stop" else "length"
        if decoding.stop and by_client:
            end = first_stop(text, decoding.stop)
            if end is not None:
                text, finish, log_probs = text[:end], "stop", ()
        elif decoding.stop and finish == "end":
            mark = _stopped_by({**choice, **(reply.get("__verbose") or {})}, text, decoding.stop)
            if mark is None:
                raise _Untold(read, tokens)
            if mark:
                text, finish = text if text.endswith(mark) else text + mark, "stop"
        return Attempt(prompt, text, log_probs=log_probs, tokens=tokens, finish=finish), read

    def _text(self, prompt: str, choice: Mapping[str, Any]) -> str:
        if not self.chat:
            return _words(choice["text"])
        message = choice["message"]
        thought = message.get("reasoning_content") or message.get("reasoning") or ""
        said = message["content"] or ""
        text = f"{_words(thought)}{self.close_thought if thought else ''}{_words(said)}"
        mark = self.open_thought.strip()
        if mark and prompt.endswith(self.open_thought) and text.lstrip().startswith(mark):
            return text.lstrip().removeprefix(mark).removeprefix("\n")
        return text

    def _explained(self, refusal: Refusal, place: int) -> UserError:
        """What to do about a server's no."""
        if refusal.status in (401, 403):
            return UserError(f"{refusal}; give its key: as api_key, or to a command in the variable OPENAI_API_KEY")
        if refusal.status == 404:
            known = [str(model["id"]) for model in self._models() if "id" in model]
            if known and self.model not in known:
                near = nearest(self.model, known)
                return UserError(f"{self.client.url} has no model {self.model!r}{near}; it has {', '.join(known)}")
            return UserError(f"{refusal}; check the address and the model's name")
        if refusal.status in PASSING:
            return UserError(f"prompt {place}: {refusal}; the server is busy or broken, so look at its log")
        return UserError(f"prompt {place}: {refusal}; change what the server complains of")


def _words(given: object) -> str:
    """A text of a reply.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(given, str):
        raise TypeError(f"the text is {given!r}")
    return given


class _Untold(Exception):
    """A stop string may have ended an attempt, and the server does not say; what the attempt cost."""

    def __init__(self, read: int, tokens: int) -> None:
        super().__init__()
        self.read, self.tokens = read, tokens


def _stopped_by(told: Mapping[str, Any], text: str, stop: Sequence[str]) -> str | None:
    """The stop string that ended an attempt, "" if it was an end mark, None if there is no telling."""
    for name in ("stop_reason", "matched_stop", "stopping_word"):  # of vLLM, SGLang and llama.cpp
        if name in told:
            return told[name] if told[name] in stop else ""
    return next((mark for mark in stop if text.endswith(mark)), None)  # of servers that leave it in


def _at_once(
    ask: Callable[[int, threading.Event], tuple[Attempt, int, int]], count: int, threads: int
) -> Generator[tuple[int, tuple[Attempt, int, int] | UserError], None, None]:
    """Ask for all numbers, several at a time; what comes of each, as it comes.

    After a failure, or when the caller goes away, what is under way is finished and nothing more is begun. The threads
    do not keep the program from ending.
    """
    numbers: queue.SimpleQueue[int] = queue.SimpleQueue()
    outcomes: queue.SimpleQueue[tuple[int, Any] | None] = queue.SimpleQueue()
    stopped = threading.Event()
    for number in range(count):
        numbers.put(number)

    def work() -> None:
        while not stopped.is_set():
            try:
                number = numbers.get_nowait()
            except queue.Empty:
                break
            try:
                outcomes.put((number, ask(number, stopped)))
            except BaseException as error:  # told to the caller, in whose thread it is raised
                stopped.set()
                outcomes.put((number, error))
        outcomes.put(None)

    workers = [threading.Thread(target=work, daemon=True) for _ in range(min(threads, count))]
    for worker in workers:
        worker.start()
    working = len(workers)
    try:
        while working:
            outcome = outcomes.get()
            if outcome is None:
                working -= 1
            elif isinstance(outcome[1], BaseException) and not isinstance(outcome[1], UserError):
                raise outcome[1]
            else:
                yield outcome
    finally:
        stopped.set()


def _seed(seed: int, number: int) -> int:
    """Of a prompt: 31 bits, which every server takes."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:4], "big") >> 1


def _log_probs(choice: Mapping[str, Any]) -> tuple[float, ...]:
    """In the protocol's form for completions, or in that for chats, which some servers have for both."""
    given = choice.get("logprobs") or {}
    values = given.get("token_logprobs")
    if values is None:
        values = [entry["logprob"] for entry in given.get("content") or ()]
    numbers = tuple(float(value) for value in values)
    return numbers if all(math.isfinite(value) for value in numbers) else ()
