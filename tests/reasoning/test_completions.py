"""Rows: the end mark is a target, padding is nothing, and a batch thinks what its rows think alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_tokenizers import chat_tokenizer
from toy_policies import TOKENIZER, ToySampler, make_policy

from mnemonist.data import IGNORED
from mnemonist.errors import UserError
from mnemonist.reasoning import completions
from mnemonist.reasoning.attempts import Attempt, Decoding
from mnemonist.reasoning.completions import Row, RowMaker, log_probs_of, read, stack

MAKER = RowMaker(TOKENIZER)
END = TOKENIZER.eos_id
ROWS = [Row((256, 50), (61, 51, END)), Row((256, 50, 43, 49), (61, END)), Row((256,), (61, 51, 52, 53, END))]


def test_a_text_begins_with_the_mark_that_opens_and_ends_with_the_one_that_closes() -> None:
    row = MAKER.of_text("2+1\n", "=3.")
    assert row == Row((256, *b"2+1\n"), (*b"=3.", END))


def test_targets_stand_above_the_token_before_them() -> None:
    batch = stack(ROWS[:2])
    assert batch["tokens"].tolist() == [[256, 50, 61, 51, END, 0], [256, 50, 43, 49, 61, END]]
    assert batch["attention"].tolist() == [[1, 1, 1, 1, 1, 0], [1] * 6]
    no = IGNORED
    assert batch["targets"].tolist() == [[no, 61, 51, END, no, no], [no, no, no, 61, END, no]]


def test_a_pad_that_is_the_end_mark_hides_no_end_mark() -> None:
    batch = stack(ROWS, fill=END)
    assert [(row == END).sum().item() for row in batch["targets"]] == [1, 1, 1]


def test_a_batch_thinks_what_its_rows_think_alone() -> None:
    model = make_policy().eval()
    with torch.no_grad():
        together = read(model, stack(ROWS), temperature=0.7, entropy=True)
        for i, row in enumerate(ROWS):
            alone = read(model, stack([row]), temperature=0.7, entropy=True)
            begin, end = len(row.prompt) - 1, len(row) - 1
            torch.testing.assert_close(together.log_probs_BT[i, begin:end], alone.log_probs_BT[0, begin:end])
            torch.testing.assert_close(together.entropy_BT[i, begin:end], alone.entropy_BT[0, begin:end])
            assert together.log_probs_BT[i].count_nonzero() == together.mask_BT[i].sum() == len(row.completion)


def test_log_probabilities_and_entropies_are_those_of_the_softmax() -> None:
    model = make_policy().eval()
    with torch.no_grad():
        opinion = read(model, stack(ROWS[:1]), temperature=2.0, entropy=True)
        logits = model(input_ids=torch.tensor([[256, 50, 61, 51, END]])).logits[0] / 2.0
    log_p = logits.log_softmax(-1)
    for place, token in ((1, 61), (2, 51), (3, END)):
        assert opinion.log_probs_BT[0, place].item() == pytest.approx(log_p[place, token].item(), abs=1e-5)
        expected = -(log_p[place].exp() * log_p[place]).sum().item()
        assert opinion.entropy_BT[0, place].item() == pytest.approx(expected, abs=1e-5)


def test_what_a_sampler_drew_is_what_the_policy_thinks_of_it() -> None:
    model = make_policy()
    attempts = ToySampler(model).sample(["2+1\n", "4+0\n"], Decoding(max_tokens=5, temperature=0.8))
    rows = [MAKER.drawn(attempt) for attempt in attempts]
    batch = stack(rows)
    with torch.no_grad():
        opinion = read(model.eval(), batch, 0.8)
    torch.testing.assert_close(opinion.log_probs_BT, batch["old"], rtol=1e-4, atol=1e-5)


class Plain(torch.nn.Module):
    """A model that gives all its logits, whatever is asked."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return self.model(input_ids=input_ids, attention_mask=attention_mask)


def test_logits_before_every_completion_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_policy().eval()
    seen: list[int] = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    batch = stack([Row((256, *b"1+1=?"), (50, END)), Row((256, *b"2+4+1="), (55, END))])
    whole = read(Plain(model), batch, 0.7, entropy=True)
    monkeypatch.setattr(completions, "ENTROPIES", 3)
    spared = read(model, batch, 0.7, entropy=True)
    assert seen == [batch["tokens"].shape[1], batch["tokens"].shape[1] - 5]
    for one, other in zip(vars(whole).values(), vars(spared).values(), strict=True):
        torch.testing.assert_close(one, other)
    nothing = read(model, {**batch, "targets": torch.full_like(batch["targets"], IGNORED)}, entropy=True)
    assert nothing.log_probs_BT.shape == batch["tokens"].shape and not nothing.mask_BT.any()


def test_the_gradient_reaches_nothing_but_completions() -> None:
    model = make_policy()
    logits: list[torch.Tensor] = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: logits.append(output) or output.retain_grad())
    read(model, stack(ROWS)).log_probs_BT.sum().backward()
    assert logits[0].grad is not None
    touched = logits[0].grad.abs().sum(-1) > 0
    assert torch.equal(touched, stack(ROWS)["targets"] != IGNORED)


def test_whole_completions_are_read_in_batches_and_leave_the_mode_as_it_was() -> None:
    model = make_policy(dropout=0.5).train()
    found = log_probs_of(model, ROWS, batch_size=2)
    assert model.training
    with torch.no_grad():
        alone = [read(model.eval(), stack([row])).log_probs_B.item() for row in ROWS]
    assert found == pytest.approx(alone, abs=1e-4)


@pytest.mark.parametrize(("finish", "end"), [("end", ()), ("stop", (END,)), ("length", ())])
def test_an_attempt_ends_as_it_ended_or_where_a_stop_string_stopped_it(finish: str, end: tuple[int, ...]) -> None:
    attempt = Attempt("2+1\n", "=3.", (256, 50), (61, 51), (-0.1, -0.2), 2, finish)  # type: ignore[arg-type]
    assert MAKER.of_attempt(attempt, 0.5) == Row((256, 50), (61, 51, *end), 0.5)
    assert MAKER.drawn(attempt) == Row((256, 50), (61, 51), 1.0, (-0.1, -0.2))


def test_an_attempt_of_a_server_is_read_as_text() -> None:
    assert MAKER.of_attempt(Attempt("2+1\n", "=3.")) == MAKER.of_text("2+1\n", "=3.")
    with pytest.raises(UserError, match="this sampler does not tell them"):
        MAKER.drawn(Attempt("2+1\n", "=3."))


def test_a_tokenizer_without_an_end_mark_is_refused() -> None:
    class Endless:
        end_ids: tuple[int, ...] = ()

        def encode(self, text: str) -> list[int]:
            return list(text.encode())

    with pytest.raises(UserError, match="no end mark, so a policy cannot learn to stop"):
        RowMaker(Endless())


def test_in_a_chat_the_mark_of_a_message_ends_a_row() -> None:
    tokenizer = chat_tokenizer()
    text, message = (tokenizer.convert_tokens_to_ids(mark) for mark in ("</s>", "<|im_end|>"))
    assert RowMaker(tokenizer).of_text("2+1", "3").completion[-1] == text
    assert RowMaker(tokenizer, "<|im_end|>").of_text("2+1", "3").completion[-1] == message
    with pytest.raises(UserError, match=r"'<\|im_start\|>' ends no text for this tokenizer"):
        RowMaker(tokenizer, "<|im_start|>")


def test_one_mark_may_open_and_end_texts() -> None:
    class OneMark:
        end_ids = (7,)

        def encode(self, text: str) -> list[int]:
            ids = [7 if letter == "|" else ord(letter) for letter in text]
            return ids if ids[:1] == [7] else [7, *ids]

    assert RowMaker(OneMark(), "|").of_text("2", "3") == Row((7, 50), (51, 7))


def test_a_row_knows_its_length() -> None:
    assert [len(row) for row in ROWS] == [5, 6, 6]
    assert len(replace(ROWS[0], completion=())) == 2
