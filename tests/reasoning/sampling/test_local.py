"""Attempts are those of a model asked alone and without a cache, whatever stands beside them in the batch."""

from __future__ import annotations

import copy
import inspect
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from toy_policies import Told
from transformers import MambaConfig, MambaForCausalLM, PreTrainedTokenizerFast

from mnemonist.data import ByteTokenizer
from mnemonist.errors import UserError
from mnemonist.reasoning.attempts import Decoding, draw_numbers
from mnemonist.reasoning.budget import Budget, BudgetForcing
from mnemonist.reasoning.formats import FORMATS
from mnemonist.reasoning.ledger import Ledger
from mnemonist.reasoning.sampling import LocalSampler
from mnemonist.reasoning.sampling.draws import uniform_numbers

BYTES = ByteTokenizer()
ENDS = frozenset(range(0, 256, 9))
PROMPTS = [
    "a", "hello there, this", "q: 3+4=", "hello there, this", "zz", "much longer than the others", "b", "a", "a",
    "q: 3+4=",
]  # fmt: skip
DECODING = Decoding(max_tokens=25, temperature=0.8, seed=3)


def alone(model, prompt, number, decoding, ends):
    """One token after the other, the whole text read again for each."""
    ids, log_probs = [256, *prompt.encode()], []
    start = len(ids)
    for u in uniform_numbers(decoding.seed, number, decoding.max_tokens):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1].numpy()
        p = np.exp((logits - logits.max()) / decoding.temperature)
        p /= p.sum()
        token = int(np.searchsorted(np.cumsum(p), u, side="right"))
        ids.append(token)
        log_probs.append(np.log(p[token]))
        if token in ends:
            break
    return tuple(ids[start:]), log_probs


@pytest.fixture(scope="module")
def expected(models):
    return {
        id(model): [
            alone(model, prompt, number, DECODING, ENDS)
            for prompt, number in zip(PROMPTS, draw_numbers(PROMPTS), strict=True)
        ]
        for model in models.values()
    }


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 16])
def test_company_changes_nothing(model, expected, batch_size):
    attempts = LocalSampler(model, BYTES, batch_size, end_ids=ENDS).sample(PROMPTS, DECODING)
    assert len({attempt.tokens for attempt in attempts}) > 4, "lengths must differ for rows to be exchanged"
    for attempt, prompt, (ids, log_probs) in zip(attempts, PROMPTS, expected[id(model)], strict=True):
        assert attempt.ids == ids
        np.testing.assert_allclose(attempt.log_probs, log_probs, rtol=0, atol=1e-9)
        assert attempt.prompt == prompt and attempt.prompt_ids == (256, *prompt.encode())
        ended = ids[-1] in ENDS
        assert attempt.finish == ("end" if ended else "length") and attempt.whole == ended
        assert attempt.tokens == len(ids)
        assert attempt.text == BYTES.decode(ids[: len(ids) - ended])


def test_greedy_is_the_greedy_of_generate(model):
    prompt = "q: 3+4="
    ids = torch.tensor([[256, *prompt.encode()]])
    theirs = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=9)
    attempts = LocalSampler(model, BYTES).sample(["b", prompt], Decoding(max_tokens=9, temperature=0))
    assert attempts[1].ids == tuple(theirs[0, ids.shape[1] :].tolist())
    assert all(value < 0 for value in attempts[1].log_probs)  # at temperature 1


def test_other_seeds_and_repetitions_give_other_attempts(any_model):
    sampler = LocalSampler(any_model, BYTES, end_ids=())
    decoding = Decoding(max_tokens=12, seed=1)
    first, second = sampler.sample(["same", "same"], decoding)
    other, _ = sampler.sample(["same", "same"], Decoding(max_tokens=12, seed=2))
    _, again, twice = sampler.sample(["else", "same", "same"], decoding)
    for before, after in ((first, again), (second, twice)):  # wherever they stand
        assert replace(before, log_probs=()) == replace(after, log_probs=())
        np.testing.assert_allclose(before.log_probs, after.log_probs, rtol=0, atol=1e-9)
    assert len({first.ids, second.ids, other.ids}) == 3


class Watched:
    """What a model is called with."""

    def __init__(self, model, monkeypatch):
        self.read, self.stepped, self.columns = [], [], []
        forward = model.forward

        def watched(*args, **inputs):
            rows, width = inputs["input_ids"].shape
            if width > 1:
                self.read.append(rows)
            else:
                self.stepped.append(rows)
                cache = inputs["past_key_values"]
                self.columns.append(None if hasattr(cache, "state") else cache.get_seq_length())
            return forward(*args, **inputs)

        # Names of what it takes must stay to be seen.
        watched.__signature__ = inspect.signature(forward)
        monkeypatch.setattr(model, "forward", watched)


def test_no_row_idles(model, monkeypatch):
    watched = Watched(model, monkeypatch)
    attempts = LocalSampler(model, BYTES, 3, end_ids=ENDS).sample(PROMPTS, DECODING)
    # The last token of an attempt is not read; every other row of every step is one that is needed.
    assert sum(watched.stepped) == sum(attempt.tokens - 1 for attempt in attempts)
    assert max(watched.stepped) == 3
    assert len(watched.stepped) < sum(attempt.tokens for attempt in attempts) / 2


def test_columns_that_no_row_needs_are_dropped(any_model, monkeypatch):
    watched = Watched(any_model, monkeypatch)
    attempts = LocalSampler(any_model, BYTES, 2, end_ids=ENDS).sample(PROMPTS * 6, DECODING)
    longest = max(len(attempt.prompt_ids) + attempt.tokens for attempt in attempts)
    assert len(watched.stepped) > 3 * longest and max(watched.columns) <= longest
    last = attempts[-1]
    assert watched.columns[-1] < longest or last.tokens + len(last.prompt_ids) == longest


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_equal_prompts_are_read_once(model, monkeypatch, batch_size):
    watched, ledger = Watched(model, monkeypatch), Ledger()
    LocalSampler(model, BYTES, batch_size, end_ids=ENDS).sample(PROMPTS, DECODING, ledger)
    assert sum(watched.read) == len(set(PROMPTS))
    assert ledger.prompt_tokens == sum(len(prompt) + 1 for prompt in set(PROMPTS))


def test_the_ledger_has_every_token(any_model):
    ledger = Ledger(generated_tokens=5)
    attempts = LocalSampler(any_model, BYTES, 3, end_ids=ENDS, flops_per_token=10).sample(PROMPTS, DECODING, ledger)
    assert ledger.generated_tokens == 5 + sum(attempt.tokens for attempt in attempts)
    assert ledger.calls == len(PROMPTS) and ledger.seconds > 0 and ledger.discarded_tokens == 0
    assert ledger.flops == 10 * (ledger.prompt_tokens + ledger.generated_tokens - 5)
    parameters = sum(parameter.numel() for parameter in any_model.parameters())
    assert LocalSampler(any_model, BYTES).flops_per_token == 2 * parameters


def test_what_was_spent_is_charged_also_when_it_breaks(any_model, monkeypatch):
    forward, calls = any_model.forward, iter(range(100))

    def broken(*args, **inputs):
        if next(calls) == 4:
            raise KeyboardInterrupt
        return forward(*args, **inputs)

    broken.__signature__ = inspect.signature(forward)
    monkeypatch.setattr(any_model, "forward", broken)
    ledger = Ledger()
    with pytest.raises(KeyboardInterrupt):
        LocalSampler(any_model, BYTES, 2, end_ids=()).sample(["ab", "cde"], DECODING, ledger)
    assert (ledger.prompt_tokens, ledger.generated_tokens, ledger.calls) == (7, 8, 2)


def test_the_mode_of_every_module_comes_back(any_model, monkeypatch):
    model = copy.deepcopy(any_model).train()
    model.lm_head.eval()
    seen = []
    model.lm_head.register_forward_hook(lambda *_: seen.append((model.training, torch.is_grad_enabled())))
    sampler = LocalSampler(model, BYTES)
    sampler.sample(["a"], Decoding(max_tokens=2))
    assert set(seen) == {(False, False)}
    assert model.training and model.model.layers[0].training and not model.lm_head.training
    monkeypatch.setattr(sampler, "read_prompts", None)
    with pytest.raises(TypeError):
        sampler.sample(["a"], Decoding(max_tokens=2))
    assert model.training and not model.lm_head.training


@pytest.mark.parametrize("batch_size", [2, 16])
def test_limits_and_numbers_of_their_own(model, expected, batch_size):
    """What `sample` gives prompt 4 of a call is what it gives here under that number, cut at its own limit."""
    sampler = LocalSampler(model, BYTES, batch_size, end_ids=ENDS)
    numbers, limits = [4, 1, 5, 9, 0], [3, 25, 1, 7, 2]
    draws = [draw_numbers(PROMPTS)[n] for n in numbers]
    attempts = sampler.sample_each([PROMPTS[n] for n in numbers], DECODING, limits, draws)
    for attempt, number, limit in zip(attempts, numbers, limits, strict=True):
        assert attempt.ids == expected[id(model)][number][0][:limit]


def test_thoughts_under_a_budget_do_not_see_each_other(any_model):
    budget = Budget(most=9, extensions=1, answer=4)
    found = []
    for batch_size in (1, 2, 16):
        sampler = LocalSampler(any_model, BYTES, batch_size, end_ids=ENDS)
        found.append(BudgetForcing(sampler, FORMATS["think"], budget).think(PROMPTS[:4], Decoding(seed=0)))
    assert found[0] == found[1] == found[2]
    assert {thought.extensions for thought in found[0]} == {0, 1}
    for thought in found[0]:
        assert thought.thinking_tokens <= 9 and thought.answer_tokens <= 4
        assert "</think>\n<answer>" in thought.attempt.text and thought.attempt.text.endswith("</answer>")


# --- where attempts end


ODD = {90: "", 91: "\n\n", 92: "stop!"}


class Pairs:
    """Token 10 a + b is the text of two digits; a few are something else."""

    end_ids = frozenset({99})

    def encode(self, text):
        return [int(text[i : i + 2]) for i in range(0, len(text), 2)]

    def decode(self, ids):
        return "".join(ODD.get(token, f"{token:02d}") for token in ids)


class Script(torch.nn.Module):
    """A model that writes a text whatever it reads: the one that the last token of the prompt names."""

    _is_stateful = True

    def __init__(self, *texts):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.texts = texts

    def forward(self, input_ids, past_key_values=None, use_cache=True, return_dict=True):
        # Which text each row is writing, and where.
        cache = past_key_values or Told([(int(name), 0) for name in input_ids[:, -1]])
        logits = torch.full((len(input_ids), 1, 100), -50.0)
        for row, (name, at) in enumerate(cache.rows):
            logits[row, 0, self.texts[name][at]] = 50.0
        cache.rows = [(name, at + 1) for name, at in cache.rows]
        return SimpleNamespace(past_key_values=cache, logits=logits)


def scripted(text, **decoding):
    """What becomes of a text that is written as it stands."""
    model = Script(text)
    return LocalSampler(model, Pairs()).sample(["00"], Decoding(**decoding))[0]


def test_a_stop_string_is_found_across_tokens_and_cut_within_one():
    attempt = scripted([12, 34, 56, 78], stop=("45",))
    assert (attempt.text, attempt.ids, attempt.finish) == ("12345", (12, 34, 56), "stop")
    assert attempt.tokens == 3 and not attempt.whole


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        (("34",), "1234"),
        (("6", "2"), "12"),  # whichever comes first
        (("zz", "345678"), "12345678"),
        (("23", "123"), "123"),
        (("\n",), "12345678\n"),
        (("\n\n",), "12345678\n\n"),
        (("op",), "12345678\n\nstop"),
        (("nothing of it",), "12345678\n\nstop!"),
    ],
)
def test_stop_strings(stop, text):
    attempt = scripted([12, 34, 90, 56, 90, 90, 78, 91, 92, 99], stop=stop)
    assert attempt.text == text
    assert attempt.finish == ("end" if stop == ("nothing of it",) else "stop")


def test_a_stop_string_of_the_prompt_does_not_count():
    attempt = scripted([12, 34, 99], stop=("01", "0"))
    assert attempt.text == "1234" and attempt.finish == "end"


def test_the_end_mark_is_a_token_but_no_text():
    attempt = scripted([12, 99])
    assert (attempt.text, attempt.ids, attempt.tokens, attempt.finish) == ("12", (12, 99), 2, "end")
    assert scripted([99]).text == ""
    assert scripted([12, 34, 99], max_tokens=2).finish == "length"


def test_the_last_position_ends_an_attempt(any_model):
    sampler = LocalSampler(any_model, BYTES, end_ids=())
    attempts = sampler.sample(["a" * 60, "b", "c" * 62], Decoding(max_tokens=100))
    assert [attempt.tokens for attempt in attempts] == [3, 62, 1]
    assert {attempt.finish for attempt in attempts} == {"length"}


# --- tokenizers


def spelling(marks: bool) -> PreTrainedTokenizerFast:
    """Letters, one merge, and marks that are written in text."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: n for n, letter in enumerate(letters)} | {"th": 256, "<s>": 257, "</s>": 258}
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=[("t", "h")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    if marks:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 257), ("</s>", 258)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("marks", [True, False])
def test_a_tokenizer_of_transformers_puts_its_mark_once(any_model, marks):
    sampler = LocalSampler(any_model, spelling(marks), 2)
    plain, templated = sampler.sample(["the", "<s>the"], Decoding(max_tokens=3))
    assert templated.prompt_ids[:2] == (257, 256)
    assert plain.prompt_ids == (templated.prompt_ids if marks else templated.prompt_ids[1:])
    assert 258 in sampler.end_ids
    assert plain.text == spelling(marks).decode(plain.ids)


def test_marks_that_end_are_those_of_tokenizer_and_model(any_model):
    assert LocalSampler(any_model, BYTES).end_ids == {257}
    assert LocalSampler(any_model, Pairs()).end_ids == {99, 257}
    assert LocalSampler(any_model, Pairs(), end_ids=[3]).end_ids == {3}


def test_a_token_that_the_tokenizer_does_not_know_is_no_text():
    class Wide(ByteTokenizer):
        vocab_size = 50

    model = Script([40, 60, 41, 257])
    attempt = LocalSampler(model, Wide(), end_ids={41}).sample(["\0"], Decoding())[0]
    assert (attempt.text, attempt.ids) == ("(", (40, 60, 41))


# --- bad input


def test_nothing_to_do(any_model):
    ledger = Ledger()
    assert LocalSampler(any_model, BYTES).sample([], DECODING, ledger) == []
    assert ledger.tokens == 0


def test_bad_input_ends_in_one_sentence(any_model):
    sampler = LocalSampler(any_model, BYTES, name="tiny")
    with pytest.raises(UserError, match="prompt 1 is empty"):
        sampler.sample(["a", ""], DECODING)
    with pytest.raises(UserError, match="prompt 1 has 64 tokens, but tiny has 64 positions"):
        sampler.sample(["a", "b" * 63], DECODING)
    with pytest.raises(UserError, match="at most 0 tokens"):
        sampler.sample_each(["a", "b"], DECODING, [1, 0], [0, 1])
    with pytest.raises(UserError, match="batch_size is 0"):
        LocalSampler(any_model, BYTES, 0)
    with pytest.raises(TypeError, match="dict is no tokenizer"):
        LocalSampler(any_model, {})


def test_a_model_whose_rows_cannot_be_exchanged_is_refused():
    model = MambaForCausalLM(MambaConfig(vocab_size=259, hidden_size=8, num_hidden_layers=1, state_size=2))
    with pytest.raises(UserError, match="cannot be exchanged"):
        LocalSampler(model, BYTES).sample(["ab"], Decoding(max_tokens=2))


def test_logits_that_are_no_numbers(any_model):
    model = copy.deepcopy(any_model)
    with torch.no_grad():
        model.lm_head.weight[5] = torch.nan
    with pytest.raises(UserError, match="no numbers"):
        LocalSampler(model, BYTES).sample(["ab"], Decoding(max_tokens=2))


def test_names(any_model):
    assert LocalSampler(any_model, BYTES).name == "LlamaForCausalLM"
    model = copy.deepcopy(any_model)
    model.config.name_or_path = "folder/of/SmolLM2/"
    assert LocalSampler(model, BYTES).name == "SmolLM2"
