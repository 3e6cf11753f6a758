"""A session is what never stopping would have left: bit for bit, whatever the cuts, through files and processes."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from streams import small_model
from torch import Tensor

from mnemonist.errors import UserError
from mnemonist.memory.reading import Surprise
from mnemonist.models import BLOCKS, LanguageModel
from mnemonist.models.session import Reading, Session, read_pieces

PIECE, T = 16, 45  # two whole pieces and a part of one
MODELS = {kind: (kind,) for kind in BLOCKS} | {"mixed": ("mag", "attention", "mac", "lmm")}
NEAR = {"rtol": 1e-3, "atol": 1e-3}  # other calls of the model, in float32
SPLITS = {
    "one by one": [*[1] * 20, 6, *[1] * 19],
    "at the borders": [16, 16, 13],
    "beside the borders": [15, 2, 14, 2, 12],
    "the last piece in parts": [34, 5, 6],
    "at random": [7, 1, 22, 3, 9, 3],
}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return new_model(blocks=MODELS[request.param])


@pytest.fixture(scope="module")
def lmm() -> LanguageModel:
    return new_model(blocks=("lmm", "mag"))


def new_model(**changes: object) -> LanguageModel:
    """In float32 and away from its beginning, so that rounding shows; the same at every call."""
    torch.manual_seed(0)
    return small_model(torch.float32, **changes)


def text(rows: int = 1, length: int = T, seed: int = 0) -> Tensor:
    return torch.randint(0, 17, (rows, length), generator=torch.Generator().manual_seed(seed))


def begin(model: LanguageModel, rows: int = 1) -> Session:
    return Session.begin(model, rows, piece=PIECE)


def read(
    model: LanguageModel, tokens: Tensor, session: Session, split: Sequence[int] | None = None, **options: bool
) -> tuple[list[Reading], Session]:
    """A reading for each part of the split."""
    readings = []
    for part in tokens.split(list(split) if split else tokens.shape[1], dim=1):
        reading, session = model.read(part, session, **options)
        readings.append(reading)
    return readings, session


def saved(session: Session, folder: Path, name: str = "session.safetensors") -> bytes:
    session.save(folder / name)
    return (folder / name).read_bytes()


def assert_same(one: Session, other: Session) -> None:
    a, b = one.to_tensors(), other.to_tensors()
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name
    for field in dataclasses.fields(Session):
        if isinstance(value := getattr(one, field.name), str | int | bytes):
            assert getattr(other, field.name) == value, field.name


# Any split.


@pytest.mark.parametrize("split", SPLITS)
def test_any_split_leaves_the_very_file_and_costs_the_very_bits(model, split, tmp_path):
    tokens, parts = text(), SPLITS[split]
    (whole,), expected = read(model, tokens, begin(model))
    readings, session = read(model, tokens, begin(model), parts)
    assert saved(session, tmp_path) == saved(expected, tmp_path)
    assert_same(session, expected)
    ends = list(itertools.accumulate(parts))
    for reading, first, end in zip(readings, [0, *ends], ends, strict=False):
        bits = whole.bits[:, first:end]
        assert reading.bits[:, int(first == 0) :].numpy() == pytest.approx(bits[:, int(first == 0) :].numpy(), abs=3e-5)
        # Tokens of a piece that goes on behind this reading were read by another call of the model.
        sure = end - first if end == T else max(0, end // PIECE * PIECE - first)
        assert torch.equal(reading.bits[:, :sure].nan_to_num(), bits[:, :sure].nan_to_num())


def test_a_file_at_every_cut_changes_nothing(model, tmp_path):
    """As if each part were read in a process of its own, which begins with loading."""
    tokens, draw = text(rows=2), random.Random(0)
    cuts = sorted(draw.sample(range(1, T), 4))
    parts = [b - a for a, b in itertools.pairwise([0, *cuts, T])]
    (whole,), expected = read(model, tokens, begin(model, 2))
    session = begin(model, 2)
    for part in tokens.split(parts, dim=1):
        session.save(tmp_path / "s")
        (reading,), session = read(model, part, Session.load(tmp_path / "s", model))
    assert torch.equal(reading.bits, whole.bits[:, cuts[-1] :])
    assert saved(session, tmp_path) == saved(expected, tmp_path)


def test_a_stream_in_chunks_is_read_piece_by_piece(lmm):
    asked: list[int] = []

    def chunks():
        for n, part in enumerate(text().split(9, dim=1)):
            asked.append(n)
            yield part

    seen = [(session.position, len(asked)) for _, session in read_pieces(lmm, chunks(), begin(lmm))]
    assert seen == [(16, 2), (32, 4), (45, 5)]  # no chunk is asked for before it is needed


def test_the_surprise_is_that_of_reading_at_once_and_asking_for_it_changes_nothing(lmm):
    (whole,), expected = read(lmm, text(), begin(lmm), surprise=True)
    assert_same(read(lmm, text(), begin(lmm))[1], expected)
    with torch.no_grad():
        forward = lmm(text(), surprise=True).surprise
    (first, second), _ = read(lmm, text(), begin(lmm), [27, 18], surprise=True)
    for block, seen in forward.items():
        for name in (field.name for field in dataclasses.fields(Surprise)):
            assert torch.equal(getattr(second.surprise[block], name), getattr(whole.surprise[block], name)[:, 27:])
            joined = Reading.join([first, second]).surprise[block]
            torch.testing.assert_close(getattr(joined, name), getattr(seen, name), **NEAR)


def test_reading_is_what_forward_gives(model):
    """From the definition: a token costs the logarithm of what the model said of it after the token before."""
    tokens = text(rows=2)
    (reading,), session = read(model, tokens, begin(model, 2))
    with torch.no_grad():
        output = model(tokens)
    probability = output.logits.double().softmax(-1)[:, :-1].gather(2, tokens[:, 1:, None])[..., 0]
    assert bool(reading.bits[:, 0].isnan().all())
    assert reading.bits[:, 1:].numpy() == pytest.approx(-probability.log2().numpy(), abs=3e-5)
    torch.testing.assert_close(session.next_logits, output.logits[:, -1], **NEAR)
    for name, tensor in output.state.to_tensors().items():
        torch.testing.assert_close(session.state.to_tensors()[name], tensor, **NEAR)
    assert session.position == T
    assert read(model, tokens, session)[1].position == 2 * T


def test_the_first_token_of_a_call_is_predicted_from_the_call_before(lmm):
    _, session = read(lmm, text(), begin(lmm))
    for token in range(3):
        reading, _ = lmm.read(torch.tensor([[token]]), session)
        assert session.next_logits is not None
        expected = -torch.log_softmax(session.next_logits.double(), -1)[0, token] / torch.log(torch.tensor(2.0))
        assert float(reading.bits[0, 0]) == pytest.approx(float(expected), abs=1e-5)


# Holding the memories still.


def test_learning_is_switched_on_and_off(model, tmp_path):
    """Wherever the reading stops within, the phases leave one file; and they are what forward makes of them."""
    tokens = text()
    phases = [(10, True), (17, False), (1, False), (17, True)]

    def go(split_of) -> Session:
        session, at = begin(model), 0
        for length, learn in phases:
            _, session = read(model, tokens[:, at : at + length], session, split_of(length), learn=learn)
            session.save(tmp_path / "s")
            session, at = Session.load(tmp_path / "s", model), at + length
        return session

    whole, cut = go(lambda n: None), go(lambda n: [n - n // 2, n // 2] if n > 1 else None)
    assert saved(whole, tmp_path) == saved(cut, tmp_path)
    with torch.no_grad():
        state = model(tokens[:, :10]).state
        state = model(tokens[:, 10:28], state, learn=False).state
        state = model(tokens[:, 28:], state).state
    for name, tensor in state.to_tensors().items():
        torch.testing.assert_close(whole.state.to_tensors()[name], tensor, **NEAR)


@pytest.mark.parametrize("kind", [kind for kind, info in BLOCKS.items() if info.memory])
def test_a_memory_held_still_is_the_same_memory(kind):
    """Whatever momentum it had: that neither carries it on nor fades."""
    model = new_model(blocks=(kind,))
    _, before = read(model, text(), begin(model))
    _, held = read(model, text(seed=1), before, learn=False)
    _, learned = read(model, text(seed=1), before)
    assert held.position == learned.position == 2 * T
    names = [name for name in before.state.to_tensors() if ".weights." in name or ".momentum." in name]
    assert len(names) == 4  # of two layers
    for name in names:
        assert torch.equal(held.state.to_tensors()[name], before.state.to_tensors()[name])
        assert not torch.equal(learned.state.to_tensors()[name], before.state.to_tensors()[name])


# Files.


def test_save_and_load_give_everything_back(model, tmp_path):
    for tokens in (text(2), text(2, 3 * PIECE), text(2, 1)):
        _, session = read(model, tokens, begin(model, 2))
        session = dataclasses.replace(session, remainder="🐢".encode()[:3], tokenizer="0123456789abcdef")
        before = saved(session, tmp_path)
        again = Session.load(tmp_path / "session.safetensors", model)
        assert_same(again, session)  # state and next_logits too, which are in no file
        assert again.next_logits is not None
        assert saved(again, tmp_path) == before


def test_a_session_that_has_read_nothing(model, tmp_path):
    session = begin(model)
    session.save(tmp_path / "s")
    again = Session.load(tmp_path / "s", model)
    assert_same(again, session)
    assert (again.position, again.next_logits) == (0, None)
    assert_same(read(model, text(), again)[1], read(model, text(), session)[1])


def test_the_session_of_a_model_in_bfloat16(tmp_path):
    model = new_model().to(torch.bfloat16)
    _, expected = read(model, text(), begin(model))
    _, session = read(model, text()[:, :29], begin(model))
    session.save(tmp_path / "s")
    _, session = read(model, text()[:, 29:], Session.load(tmp_path / "s", model))
    assert saved(session, tmp_path) == saved(expected, tmp_path)


@pytest.mark.parametrize("kind", [kind for kind in BLOCKS if kind != "attention"])
def test_a_file_has_one_size_however_much_was_read(kind, tmp_path):
    model = new_model(blocks=(kind,), window=32, rule="titans:chunk_size=32,expansion=2")
    sizes = set()
    session = Session.begin(model)
    for length in (0, 100, 4900):
        if length:
            _, session = model.read(text(length=length), session)
        file = saved(session, tmp_path)
        header = 8 + int.from_bytes(file[:8], "little")
        assert session.nbytes == len(file) - header
        sizes.add(len(file))
    assert session.position == 5000
    assert len(sizes) == 1


def test_full_attention_grows_by_what_it_keeps(tmp_path):
    """Keys and values of every token of whole pieces: that much, and no more."""
    model = new_model(blocks=("attention",))
    sizes = [read(model, text(length=n * PIECE), begin(model))[1].nbytes for n in (1, 2, 5)]
    token = 2 * 2 * 4 * 4  # keys and values, of 2 heads, 4 wide, 4 bytes each
    assert [size - sizes[0] for size in sizes] == [0, PIECE * token, 4 * PIECE * token]


# Copies and rows.


def test_a_fork_is_independent(model, tmp_path):
    _, session = read(model, text(), begin(model))
    before = saved(session, tmp_path)
    _, expected = read(model, text(seed=1), session)
    fork = session.fork()
    assert_same(fork, session)
    assert_same(read(model, text(seed=1), fork)[1], expected)
    for tensor in (fork.pending, *_live(fork.state), *_live(fork.anchor), *_live(fork.origin)):
        tensor.zero_()
    assert saved(session, tmp_path) == before
    assert_same(read(model, text(seed=1), session)[1], expected)


def _live(state: object) -> list[Tensor]:
    """The tensors themselves, not copies."""
    if isinstance(state, Tensor):
        return [state]
    parts = state if isinstance(state, tuple) else vars(state).values() if hasattr(state, "__dict__") else ()
    return [tensor for part in parts for tensor in _live(part)]


def test_rows_are_streams_of_their_own(model):
    tokens = text(rows=3)
    (together,), session = read(model, tokens, begin(model, 3))
    for row in range(3):
        (alone,), one = read(model, tokens[row : row + 1], begin(model))
        torch.testing.assert_close(together.bits[row], alone.bits[0], **NEAR, equal_nan=True)
        picked = session.select(torch.tensor([row]))
        assert picked.batch == 1
        for name, tensor in one.to_tensors().items():
            torch.testing.assert_close(picked.to_tensors()[name], tensor, **NEAR)


def test_select_and_repeat_go_on_like_the_rows_they_are_of(model, tmp_path):
    _, session = read(model, text(rows=3), begin(model, 3))
    more = text(rows=3, length=21, seed=1)
    (whole,), _ = read(model, more, session)
    rows = torch.tensor([2, 0])
    picked = session.select(rows)
    picked.save(tmp_path / "s")
    (some,), after = read(model, more[rows], Session.load(tmp_path / "s", model))
    assert (after.batch, after.position, after.piece) == (2, T + 21, PIECE)
    torch.testing.assert_close(some.bits, whole.bits[rows], **NEAR)

    twice = session.repeat(2)
    assert torch.equal(twice.pending, session.pending.repeat_interleave(2, dim=0))
    (copies,), _ = read(model, more.repeat_interleave(2, dim=0), twice)
    torch.testing.assert_close(copies.bits, whole.bits.repeat_interleave(2, dim=0), **NEAR)
    with pytest.raises(ValueError, match="n is 0; repeat a session at least once"):
        session.repeat(0)


# The model, before and after.


def test_training_goes_on_from_a_session():
    model = new_model()
    tokens = text(rows=2)
    _, session = read(model, tokens[:, :28], begin(model, 2))
    model.train()
    output = model(tokens[:, 28:], state=session.state)
    F.cross_entropy(output.logits.flatten(0, 1), text(2, 17, seed=2).flatten()).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.embedding.parameters())
    with torch.no_grad():
        torch.testing.assert_close(output.logits, model(tokens).logits[:, 28:], **NEAR)


def test_the_model_is_left_as_it_was(tmp_path):
    model = new_model()
    model.train()
    model.blocks[1].eval()  # one part alone, as who freezes it would
    modes = [module.training for module in model.modules()]
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    _, session = read(model, text(), begin(model))
    session.save(tmp_path / "s")
    assert_same(Session.load(tmp_path / "s", model), session)
    with pytest.raises(ValueError, match="vocabulary"):
        model.read(torch.tensor([[17]]), session)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_progress_counts_tokens_up_to_the_last(lmm):
    told: list[tuple[int, int]] = []
    _, session = lmm.read(text(), begin(lmm), progress=lambda *at: told.append(at))
    assert told == [(16, T), (32, T), (T, T)]
    told.clear()
    lmm.read(text(), session, progress=lambda *at: told.append(at))
    assert told == [(3, T), (19, T), (35, T), (T, T)]


# What cannot be read.


def test_tokens_that_cannot_be_read(lmm):
    _, session = read(lmm, text(rows=2), begin(lmm, 2))
    before = session.to_tensors()
    for tokens, sentence in (
        (text(rows=3), r"\[3, 45\], but the session reads int64 \[2, T\]; session.select\(rows\) and session.repeat"),
        (text(rows=2).int(), "tokens are torch.int32"),
        (text(rows=2).float(), "tokens are torch.float32"),
        (text(rows=2)[:, :0], r"tokens is \[2, 0\]; it must be \[B, T\] with at least one token"),
        (text()[0], r"tokens is \[45\]; it must be \[B, T\]"),
        (torch.full((2, 3), 17), r"token ids run from \d+ to 17, but the vocabulary has ids 0 to 16"),
        (torch.full((2, 3), -1), "token ids run from -1 to"),
    ):
        with pytest.raises(ValueError, match=sentence) as caught:
            lmm.read(tokens, session)
        assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in session.to_tensors().items())
    for rows, piece in ((0, 16), (1, 0), (-1, 16)):
        with pytest.raises(ValueError, match="both must be at least 1"):
            Session.begin(lmm, rows, piece=piece)


def test_a_session_of_another_model_does_not_go_on(lmm):
    _, session = read(lmm, text(), begin(lmm))
    other = new_model(blocks=("lmm", "mag"), window=6)
    with pytest.raises(UserError, match=r"another model \(window 4 there, 6 here\); use the model that had read"):
        other.read(text(), session)
    trained = new_model(blocks=("lmm", "mag"))
    trained.load_state_dict(lmm.state_dict())
    read(trained, text(), session)  # equal weights are the same model
    with torch.no_grad():
        trained.norm.weight[0] += 1e-6
    with pytest.raises(UserError, match=r"another model \(the same configuration with other weights\)"):
        trained.read(text(), session)
