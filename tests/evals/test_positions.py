"""Bits by position are means over the right bytes of the right texts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mnemonist.data import Document
from mnemonist.errors import UserError
from mnemonist.evals.positions import Positions, long_texts
from mnemonist.evals.reading import read_texts
from mnemonist.models import LanguageModel, ModelConfig


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(5):
        (tmp_path / f"{i}.txt").write_bytes(rng.integers(97, 123, 700 + 100 * i).astype(np.uint8).tobytes())
    return tmp_path


def model():
    torch.manual_seed(0)
    config = ModelConfig(blocks=("lmm",), width=16, memory_heads=2, memory_head_dim=8, mlp_width=8, rule="deltanet")
    return LanguageModel(config)


def test_bins_double_and_cover_the_text():
    assert Positions(length=512).edges == [256, 512]
    assert Positions(length=1500).edges == [256, 512, 1024, 1500]
    assert Positions(length=4096).edges == [256, 512, 1024, 2048, 4096]


def test_rows_are_means_over_bins_of_what_reading_costs(folder):
    suite = Positions(data=str(folder), length=600, count=3)
    read = []
    rows = list(suite.run(model().eval(), suite.steps[0], read.append))
    texts = [(folder / f"{i}.txt").read_bytes()[:600] for i in range(3)]
    bits = read_texts(model().eval(), texts).bits
    assert [row.setting["position"] for row in rows] == [256, 512, 600]
    assert [row.mean for row in rows] == pytest.approx(
        [bits[:, a:b].mean() for a, b in ((0, 256), (256, 512), (512, 600))]
    )
    assert all(row.count == 3 and row.low < row.mean < row.high for row in rows)
    assert sum(read) == 3 * 600


def test_a_frozen_memory_reads_otherwise(folder):
    live, frozen = (Positions(data=str(folder), length=600, count=2, memory=how) for how in ("learning", "frozen"))
    means = [[row.mean for row in s.run(model().eval(), s.steps[0], lambda n: None)] for s in (live, frozen)]
    assert means[0] != means[1]
    assert live.identity() != frozen.identity()


def test_resetting_reads_each_stretch_as_a_text_of_its_own(folder):
    suite = Positions(data=str(folder), length=600, count=2, reset_every=300)
    read = []
    rows = list(suite.run(model().eval(), suite.steps[0], read.append))
    parts = [(folder / f"{i}.txt").read_bytes()[at : at + 300] for i in range(2) for at in (0, 300)]
    bits = read_texts(model().eval(), parts).bits.reshape(2, 600)
    assert [row.mean for row in rows] == pytest.approx(
        [bits[:, a:b].mean() for a, b in ((0, 256), (256, 512), (512, 600))]
    )
    assert sum(read) == 2 * 600
    assert suite.identity() != Positions(data=str(folder), length=600, count=2).identity()
    with pytest.raises(ValueError, match="reset_every is 250; it must divide length, 600, or be 0"):
        Positions(data=str(folder), length=600, reset_every=250)


def test_texts_are_whole_documents_if_enough_are_long_and_stretches_if_not():
    documents = [Document("b", b"b" * 30), Document("a", b"a" * 20), Document("c", b"c" * 5)]
    assert [(t.name, t.text) for t in long_texts(documents, 2, 10)] == [("a", b"a" * 10), ("b", b"b" * 10)]
    stretches = long_texts(documents, 2, 25)
    assert [t.text for t in stretches] == [b"b" * 25, b"b" * 5 + b"\n\n" + b"a" * 18]
    with pytest.raises(UserError, match="3 texts of 25 bytes are asked for, but there are 59 bytes in all"):
        long_texts(documents, 3, 25)


def test_seeds_read_other_texts(folder):
    first, second = (Positions(data=str(folder), length=512, count=2, seed=seed).texts() for seed in (0, 1))
    assert not {t.name for t in first} & {t.name for t in second}


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"length": 100}, "length is 100"), ({"memory": "off"}, "learning or frozen"), ({"count": 0}, "at least 1 text")],
)
def test_bad_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        Positions(**fields)
