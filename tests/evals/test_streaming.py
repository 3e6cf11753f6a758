"""Asking a copy of the state gives what a text read from the beginning gives, and leaves the stream as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mnemonist.data import ByteTokenizer, standard_library
from mnemonist.errors import UserError
from mnemonist.evals import streaming
from mnemonist.evals.evaluation import evaluate
from mnemonist.evals.needles import NOISE
from mnemonist.evals.problems import Problems, Question
from mnemonist.evals.scoring import score
from mnemonist.evals.streaming import Streaming, _Stream
from mnemonist.models import LanguageModel, ModelConfig


def model(*blocks):
    torch.manual_seed(0)
    config = ModelConfig(blocks=blocks, width=16, heads=2, head_dim=8, memory_heads=2, memory_head_dim=8, mlp_width=8,
                         rule="titans-linear:chunk_size=8", window=8)  # fmt: skip
    return LanguageModel(config).eval()


@pytest.mark.parametrize("blocks", [("mag",), ("lmm", "attention")])
def test_every_distance_is_as_a_text_of_its_own(blocks, monkeypatch):
    monkeypatch.setattr(streaming, "PIECE", 100)
    suite, reader = Streaming(nearest=400, times=4, count=3), model(*blocks)
    read = []
    rows = list(suite.run(reader, suite.steps[0], read.append))
    assert [row.setting["distance"] for row in rows] == [400, 800, 1600]
    for row in rows:
        whole = []
        for index in range(3):
            stream = _Stream(suite, index)
            context = bytes(stream.up_to(row.setting["distance"])[1:].astype(np.uint8)).decode()
            assert row.setting["distance"] - 91 < len(context) + 1 <= row.setting["distance"]
            question = stream.question
            assert question.answer.strip() in context.splitlines()[1]  # the needle
            assert set(context.splitlines()[2:]) == {NOISE}
            whole.append(Question(context + question.text, question.answer).problem(ByteTokenizer()))
        scores = score(reader, Problems.stack(whole))
        assert row.mean == scores.problems.mean()
        assert row.more["bits_per_token"] == pytest.approx(scores.bits.sum() / scores.asked.sum(), rel=1e-4)


def test_a_stream_of_source_code_has_its_fact_at_the_beginning():
    suite, reader = Streaming(nearest=400, times=4, count=2, haystack="source"), model("mag")
    stream = _Stream(suite, 1)
    parts = [stream.up_to(distance) for distance in (400, 1600)]
    text = bytes(np.concatenate(parts)[1:].astype(np.uint8)).decode()
    assert 1300 < len(text) < 1600 and text.endswith("\n")
    first, _, rest = text.partition("\n")
    assert first == f"# remember: {stream.question.text[len('# recall: ') : -len(' =')]} ={stream.question.answer}"
    assert rest in "\n\n".join(d.text.decode() for d in standard_library("heldout"))
    [one, *_] = suite.run(reader, suite.steps[0][:1], lambda n: None)
    stream = [_Stream(suite, index) for index in range(2)]
    whole = [
        Question(bytes(s.up_to(400)[1:].astype(np.uint8)).decode() + s.question.text, s.question.answer) for s in stream
    ]
    scores = score(reader, Problems.stack([question.problem(ByteTokenizer()) for question in whole]))
    assert one.more["bits_per_token"] == pytest.approx(scores.bits.sum() / scores.asked.sum(), rel=1e-4)
    assert suite.identity() != Streaming(nearest=400, times=4, count=2).identity()


def test_it_goes_on_with_what_is_missing(tmp_path):
    suite, reader, path = Streaming(nearest=300, times=4, count=2), model("mag"), tmp_path / "r.json"
    whole = evaluate(reader, suite)
    part = evaluate(reader, suite, path, stop=lambda: True)
    assert len(part.rows) == 1 and not part.complete
    rest = evaluate(reader, suite, path)
    assert rest.complete and [r.setting for r in rest.rows] == [r.setting for r in whole.rows]
    for one, other in zip(rest.rows, whole.rows, strict=True):
        assert one.more["bits_per_token"] == pytest.approx(other.more["bits_per_token"], rel=1e-5)


def test_what_cannot_be_done():
    suite = Streaming(nearest=2**20, times=1024, count=16)
    with pytest.raises(UserError, match=r"keeps 2,048 GiB of 16 streams of 1,073,741,824 tokens, since it attends"):
        next(suite.run(model("attention"), suite.steps[0], lambda n: None))
    near = Streaming(nearest=50, count=1)
    with pytest.raises(UserError, match=r"the needle takes \d+ tokens; 50 are too near"):
        next(near.run(model("mag"), near.steps[0], lambda n: None))
    with pytest.raises(ValueError, match="times 0"):
        Streaming(times=0)
    with pytest.raises(ValueError, match="haystack is 'hay'"):
        Streaming(haystack="hay")
