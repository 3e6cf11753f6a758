"""Sessions: everything a model has become while reading, to be put away and taken up again.

Going on from a session gives the very bits of never having stopped. Sums of floating-point numbers depend on where a
text is cut, so a session cuts it itself: into *pieces* of one length, whoever brings how many tokens at a time. It has
the state before the last piece (the *anchor*) and the tokens of that piece. Reading on reads these again together with
the new ones, in one call of the model: the call that an uninterrupted reading makes. The state after the last token and
the scores of the next one follow from that, so a file has no need of them.

A piece also ends where learning is switched on or off, since both halves of such a piece could not be one call.
"""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from mnemonist.errors import UserError
from mnemonist.evaluating import evaluating
from mnemonist.memory.reading import Surprise
from mnemonist.models.session_difference import SessionDifference, compare_states
from mnemonist.models.state import StreamState
from mnemonist.tensors import content_hash, load_tensors, save_tensors

if TYPE_CHECKING:
    from mnemonist.models.modeling import LanguageModel, ModelOutput, ModelState

FORMAT = "mnemonist-session/1"
PIECE = 1024
LOG_2 = 0.6931471805599453

Progress = Callable[[int, int], None]
"""Called with tokens read so far and tokens in all."""


@dataclass(frozen=True)
class Reading:
    """What reading T tokens cost, and what it did to the memories."""

    bits: Tensor
    """``[B, T]`` float32 on the CPU: ``-log2 p(token | all before it)``; NaN for the first token of a stream."""
    surprise: dict[int, Surprise]
    """Per block that has a memory, if asked for."""

    @staticmethod
    def join(readings: list[Reading]) -> Reading:
        """One after the other, as one."""
        surprise = {
            block: Surprise.join([reading.surprise[block] for reading in readings]) for block in readings[0].surprise
        }
        return Reading(torch.cat([reading.bits for reading in readings], dim=1), surprise)


@dataclass(frozen=True)
class Session(StreamState):
    """What a model has become while reading ``B`` streams side by side: a value, of constant size unless a block
    attends to everything. `fork`, `select`, `to` and `detach` are those of every state of a stream.
    """

    model: str
    """Fingerprint of the model: its configuration and weights."""
    config: str
    """Its configuration as JSON, to tell people which model that was."""
    anchor: ModelState
    """Before the last piece."""
    pending: Tensor
    """``[B, P]`` int64 on the CPU, P the length of a piece: the tokens of the last piece, then zeros."""
    count: int
    """Tokens of the last piece, 1 to P; 0 if nothing was read."""
    position: int
    """Tokens read since the beginning."""
    learn: bool
    """Whether the memories learned from the last piece."""
    state: ModelState
    """After the last token: what `LanguageModel.forward` goes on from."""
    next_logits: Tensor | None
    """``[B, vocab]``: scores of the next token; None if nothing was read."""
    origin: ModelState
    """Before the first token."""
    remainder: bytes = b""
    """Text behind the last token that has no tokens yet; see `mnemonist.data.TokenStream`. The same for every row."""
    tokenizer: str = ""
    """Fingerprint of the tokenizer, if whoever made the tokens has said."""

    @classmethod
    def begin(cls, model: LanguageModel, batch: int = 1, *, piece: int = PIECE) -> Session:
        """The session of ``batch`` streams before their first tokens.

        Raises:
            ValueError: ``batch`` or ``piece`` is not positive.
        """
        if min(batch, piece) < 1:
            raise ValueError(f"batch is {batch} and piece {piece}; both must be at least 1.")
        origin = _origin(model, batch)
        return cls(
            model=model.fingerprint(),
            config=model.config.to_json(),
            anchor=origin,
            pending=torch.zeros(batch, piece, dtype=torch.int64),
            count=0,
            position=0,
            learn=True,
            state=origin,
            next_logits=None,
            origin=origin,
        )

    @property
    def batch(self) -> int:
        """Streams ``B``."""
        return len(self.pending)

    @property
    def piece(self) -> int:
        """Tokens of a piece."""
        return self.pending.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes that `save` writes, the header aside."""
        return self.anchor.nbytes + self.pending.nbytes + len(self.remainder)

    def repeat(self, n: int) -> Session:
        """Every stream ``n`` times, copies side by side: for beams, or several continuations.

        Raises:
            ValueError: ``n`` is not positive.
        """
        if n < 1:
            raise ValueError(f"n is {n}; repeat a session at least once.")
        return self.select(torch.arange(self.batch).repeat_interleave(n))

    def before_last(self, model: LanguageModel) -> tuple[ModelState, Tensor]:
        """The state before the last token, and that token ``[B, 1]``, for those who must be given one to go on.

        Raises:
            ValueError: nothing was read.
            UserError: the session is of another model.
        """
        self.require_model(model)
        if self.count == 0:
            raise ValueError("Nothing was read in this session; read a start mark or a prompt first.")
        state = self.anchor
        if self.count > 1:
            state = _read(model, self.pending[:, : self.count - 1], state, self.learn, False).state
        return state, self.pending[:, self.count - 1 : self.count]

    def diff(self, other: Session) -> SessionDifference:
        """How far the memories of two sessions of one model are apart, per block, stream and head.

        Raises:
            ValueError: the sessions are of different models or numbers of streams.
        """
        if self.model != other.model:
            raise ValueError("The sessions are of different models; only memories of one model can be compared.")
        if self.batch != other.batch:
            raise ValueError(
                f"The sessions have {self.batch} and {other.batch} streams; session.select(rows) picks some."
            )
        return compare_states(self.state, other.state, self.origin)

    def require_model(self, model: LanguageModel) -> None:
        """Make sure that ``model`` is the one that read.

        Raises:
            UserError: it is another; the message says in what.
        """
        if self.model != model.fingerprint():
            raise UserError(f"the session cannot go on: {_other_model(self.config, model)}")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, whole or not at all.

        Raises:
            UserError: a memory has diverged; nothing is written then.
            FileError: the file cannot be written.
        """
        tensors = {f"anchor.{name}": tensor for name, tensor in self.anchor.to_tensors().items()}
        tensors |= {"pending": self.pending, "remainder": torch.tensor(list(self.remainder), dtype=torch.uint8)}
        if not (_finite(tensors) and _finite(self.state.to_tensors())):
            raise UserError("the session holds numbers that are not finite: a memory has diverged; it was not saved")
        header = {
            "model": self.model,
            "config": self.config,
            "position": f"{self.position:019d}",  # of one width, as the file is of one size
            "count": f"{self.count:09d}",
            "learn": str(self.learn).lower(),
            "tokenizer": self.tokenizer,
        }
        save_tensors(path, tensors, format=FORMAT, content=_content(header, tensors), **header)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: LanguageModel) -> Session:
        """Read what `save` wrote, for the model that had read; nothing in the file is executed.

        Raises:
            UserError: there is no such file, it is damaged or of a newer version, or it is of another model.
        """
        tensors, header = load_tensors(path, FORMAT)
        content = header.pop("content", None)
        del header["format"]
        if content != _content(header, tensors):
            raise UserError(f"{path} is damaged: its content is not what was saved; take an earlier copy")
        try:
            if header["model"] != model.fingerprint():
                raise UserError(_other_model(header["config"], model))
            session = _rebuilt(tensors, header, model)
            if session.count == 0:
                return session
            piece = session.pending[:, : session.count]
            return _after(session, _read(model, piece, session.anchor, session.learn, False))
        except KeyError as error:
            raise UserError(f"{path} cannot be used: {error} is missing") from error
        except ValueError as error:
            raise UserError(f"{path} cannot be used: {error}") from error


def read_tokens(
    model: LanguageModel,
    tokens: Tensor,
    session: Session | None = None,
    *,
    learn: bool = True,
    surprise: bool = False,
    progress: Progress | None = None,
) -> tuple[Reading, Session]:
    """Read ``tokens [B, T]`` and return what came of it; see `LanguageModel.read`."""
    if tokens.dim() != 2 or tokens.numel() == 0:
        raise ValueError(f"tokens is {list(tokens.shape)}; it must be [B, T] with at least one token.")
    after = Session.begin(model, len(tokens)) if session is None else session
    begin = after.position
    readings = []
    for reading, after in read_pieces(model, [tokens], after, learn=learn, surprise=surprise):  # noqa: B020
        readings.append(reading)
        if progress is not None:
            progress(after.position - begin, tokens.shape[1])
    return Reading.join(readings), after


def read_pieces(
    model: LanguageModel,
    chunks: Iterable[Tensor],
    session: Session,
    *,
    learn: bool = True,
    surprise: bool = False,
) -> Iterator[tuple[Reading, Session]]:
    """Read a stream that comes in chunks of any size, piece by piece: what each cost, and the session after it.

    Args:
        model: the one that the session is of.
        chunks: int64 ``[B, T]``, T of any size; the next is asked for when the ones before do not fill a piece.
        session: what to go on from.
        learn: False reads with every memory as it is.
        surprise: whether to report the surprise of every memory.

    Raises:
        UserError: the session is of another model.
        ValueError: tokens of another type or number of streams, or outside the vocabulary.
    """
    session.require_model(model)
    waiting = session.pending[:, :0]
    for chunk in chunks:
        if chunk.dtype != torch.int64 or chunk.dim() != 2 or len(chunk) != session.batch:
            raise ValueError(
                f"tokens are {chunk.dtype} {list(chunk.shape)}, but the session reads int64 [{session.batch}, T]; "
                "session.select(rows) and session.repeat(n) change its number of streams."
            )
        waiting = torch.cat([waiting, chunk.cpu()], dim=1)
        while waiting.shape[1] >= (room := _room(session, learn)):
            reading, session = _read_piece(model, session, waiting[:, :room], learn, surprise)
            waiting = waiting[:, room:]
            yield reading, session
    if waiting.shape[1]:
        yield _read_piece(model, session, waiting, learn, surprise)


def _room(session: Session, learn: bool) -> int:
    """Tokens that still fit into the piece that is next to be read."""
    return session.piece - (0 if _is_over(session, learn) else session.count)


def _is_over(session: Session, learn: bool) -> bool:
    """Whether the next token begins a new piece."""
    return session.count == session.piece or learn != session.learn


def _read_piece(
    model: LanguageModel, session: Session, new: Tensor, learn: bool, surprise: bool
) -> tuple[Reading, Session]:
    """Read on by tokens ``[B, t]`` that fit into the last piece, or into a new one if that is over."""
    over = _is_over(session, learn)
    anchor, count = (session.state, 0) if over else (session.anchor, session.count)
    piece = torch.cat([session.pending[:, :count], new], dim=1)
    output = _read(model, piece, anchor, learn, surprise)

    before = session.next_logits if count == 0 else None
    bits = _bits(output.logits, piece, before)[:, count:]
    seen = {block: report.each(lambda part: part[:, count:]) for block, report in output.surprise.items()}
    after = replace(
        session,
        anchor=anchor,
        pending=F.pad(piece, (0, session.piece - piece.shape[1])),
        count=piece.shape[1],
        position=session.position + new.shape[1],
        learn=learn,
    )
    return Reading(bits, seen), _after(after, output)


def _after(session: Session, output: ModelOutput) -> Session:
    """The session with what reading its last piece gave."""
    return replace(session, state=_as_saved(output.state), next_logits=output.logits[:, -1].clone())


def _read(model: LanguageModel, tokens: Tensor, state: ModelState, learn: bool, surprise: bool) -> ModelOutput:
    with _reading(model) as device:
        return model(tokens.to(device), state=state, learn=learn, surprise=surprise)


@contextmanager
def _reading(model: LanguageModel) -> Iterator[torch.device]:
    """No gradients, and the model as it is used; not inference mode, so that training may go on from a state.

    Yields the device that the model is on.
    """
    with evaluating(model), torch.no_grad():
        yield next(model.parameters()).device


def _bits(logits_BTV: Tensor, tokens_BT: Tensor, before_BV: Tensor | None) -> Tensor:
    """What each token cost, given the scores after the token before it."""
    B, T = tokens_BT.shape
    targets = tokens_BT.to(logits_BTV.device)
    nats = logits_BTV.new_full((B, T), torch.nan, dtype=torch.float32)
    if before_BV is not None:
        nats[:, 0] = F.cross_entropy(before_BV.float(), targets[:, 0], reduction="none")
    if T > 1:
        rest = F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), targets[:, 1:].flatten(), reduction="none")
        nats[:, 1:] = rest.view(B, T - 1)
    return nats.cpu() / LOG_2


def _origin(model: LanguageModel, batch: int) -> ModelState:
    """The state before the first token."""
    with _reading(model):
        return _as_saved(model.initial_state(batch))


def _as_saved(state: ModelState) -> ModelState:
    """The state as a file would give it back: how tensors lie in memory may decide the last bit of a product."""
    return state.rebuilt(state.to_tensors())


def _rebuilt(tensors: dict[str, Tensor], header: dict[str, str], model: LanguageModel) -> Session:
    """A session up to what reading its last piece again will give.

    Raises:
        ValueError: tensors or header are not what a session of this model holds.
        KeyError: one of them is missing.
    """
    pending, remainder = tensors.pop("pending"), tensors.pop("remainder")
    count, position = (_counter(header, name) for name in ("count", "position"))
    if pending.dtype != torch.int64 or pending.dim() != 2 or pending.numel() == 0:
        raise ValueError("its tokens are not int64 [B, P].")
    if remainder.dtype != torch.uint8 or remainder.dim() != 1:
        raise ValueError("the text without tokens is not a row of bytes.")
    if not min(1, position) <= count <= min(position, pending.shape[1]) or bool(pending[:, count:].any()):
        raise ValueError("its counters contradict each other or its tokens.")
    if header["learn"] not in ("true", "false"):
        raise ValueError("whether the memories learned is neither true nor false.")
    if not _finite(tensors):
        raise ValueError("it holds numbers that are not finite: a memory had diverged.")
    origin = _origin(model, len(pending))
    anchor = origin.rebuilt({name.removeprefix("anchor."): tensor for name, tensor in tensors.items()})
    if anchor.batch != len(pending):
        raise ValueError(f"its state has {anchor.batch} streams, but its tokens {len(pending)}.")
    anchor = _as_saved(anchor).to(next(model.parameters()).device)
    return Session(
        model=header["model"],
        config=header["config"],
        anchor=anchor,
        pending=pending.clone(),
        count=count,
        position=position,
        learn=header["learn"] == "true",
        state=anchor,
        next_logits=None,
        origin=origin,
        remainder=bytes(remainder.tolist()),
        tokenizer=header["tokenizer"],
    )


def _counter(header: dict[str, str], name: str) -> int:
    """A whole number in a header."""
    text = header[name]
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ValueError(f"its {name} is {text[:20]!r}, not a number.")
    return int(text)


def _content(header: dict[str, str], tensors: dict[str, Tensor]) -> str:
    """A checksum of everything in a file."""
    return content_hash(json.dumps(header, sort_keys=True), tensors)


def _finite(tensors: dict[str, Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors.values() if tensor.is_floating_point())


def _other_model(config: str, model: LanguageModel) -> str:
    """What to say of a session of another model, which may be of a version that has other fields."""
    ours = json.loads(model.config.to_json())
    try:
        theirs = dict(json.loads(config))
    except (ValueError, TypeError, RecursionError):
        theirs = {}
    odd = [f"{name} {theirs.get(name)!r} there, {ours[name]!r} here" for name in ours if theirs.get(name) != ours[name]]
    how = textwrap.shorten(", ".join(odd[:3]), 300) if odd else "the same configuration with other weights"
    return f"it is of another model ({how}); use the model that had read"
