"""Models under the conventions of transformers: forward, cache and generate, over every kind of block."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from streams import SMALL, small_model
from transformers import DynamicCache
from transformers.generation.streamers import BaseStreamer

from mnemonist.models import BLOCKS, LanguageModel, MnemonistCache, MnemonistConfig, MnemonistForCausalLM

KINDS = tuple(BLOCKS)
PAD, END, VOCAB = 16, 15, 17


def wrapped(dtype: torch.dtype = torch.float64, **changes: object) -> MnemonistForCausalLM:
    return MnemonistForCausalLM.from_language_model(small_model(dtype, **{"blocks": KINDS, **changes}))


MODEL = wrapped()
IDS = torch.randint(0, END, (3, 11), generator=torch.Generator().manual_seed(1))
GREEDY = {"do_sample": False, "pad_token_id": PAD, "max_new_tokens": 7}


def left_padded(rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rows of unequal length, with a token at the padding that must not be read."""
    T = max(map(len, rows))
    return {
        "input_ids": torch.stack([F.pad(row, (T - len(row), 0), value=3) for row in rows]),
        "attention_mask": torch.stack([F.pad(torch.ones_like(row), (T - len(row), 0)) for row in rows]),
    }


ROWS = [IDS[0], IDS[1, :4], IDS[2, :8]]


# --- forward


def test_both_ways_share_the_weights():
    model = small_model()
    assert MnemonistForCausalLM.from_language_model(model).model is model
    assert torch.equal(MODEL(IDS).logits, MODEL.model(IDS).logits)
    assert MnemonistConfig.from_model_config(model.config).to_model_config() == model.config


def test_the_names_of_transformers():
    own = dataclasses.asdict(SMALL)
    config = MnemonistConfig(hidden_size=own.pop("width"), num_attention_heads=own.pop("heads"), **own)
    assert config.to_model_config() == SMALL
    assert (config.hidden_size, config.num_attention_heads) == (SMALL.width, SMALL.heads)


def test_a_new_model_begins_as_ours_does():
    config = MnemonistConfig.from_model_config(SMALL)
    torch.manual_seed(3)
    theirs = MnemonistForCausalLM(config).model
    torch.manual_seed(3)
    assert theirs.fingerprint() == LanguageModel(SMALL).fingerprint()


@pytest.mark.parametrize("side", ["left", "right", "middle"])
def test_padding_reads_as_nothing(side):
    spare = {"left": [0, 1, 2], "right": [8, 9, 10], "middle": [3, 4, 7]}[side]
    mask = torch.ones_like(IDS)
    mask[1, spare] = 0
    real = mask[1].bool()
    batch = MODEL(IDS, attention_mask=mask)
    alone = MODEL(IDS[1:2, real])
    torch.testing.assert_close(batch.logits[1, real], alone.logits[0])
    torch.testing.assert_close(batch.logits[0], MODEL(IDS[:1]).logits[0])


def test_a_row_of_padding_does_no_harm():
    mask = torch.ones_like(IDS)
    mask[1] = 0
    read = MODEL(IDS, attention_mask=mask)
    torch.testing.assert_close(read.logits[[0, 2]], MODEL(IDS[[0, 2]]).logits)
    again = MODEL(IDS, past_key_values=read.past_key_values)
    torch.testing.assert_close(again.logits[1], MODEL(IDS[1:2]).logits[0])


@pytest.mark.parametrize("full", [False, True], ids=["mask-of-the-piece", "mask-of-all"])
def test_reading_on_with_a_cache_equals_reading_at_once(full):
    mask = torch.ones_like(IDS)
    mask[0, :3], mask[1, 4:6], mask[2, 9:] = 0, 0, 0
    whole = MODEL(IDS, attention_mask=mask)
    cache, parts = MnemonistCache(), []
    for begin, end in ((0, 2), (2, 7), (7, 11)):
        part = mask[:, :end] if full else mask[:, begin:end]
        parts.append(MODEL(IDS[:, begin:end], attention_mask=part, past_key_values=cache).logits)
        assert (cache.get_seq_length(), cache.batch_size, len(cache)) == (end, 3, len(KINDS))
    real = mask.bool()
    torch.testing.assert_close(torch.cat(parts, 1)[real], whole.logits[real])


def test_what_can_be_asked_for():
    read = MODEL(IDS, output_hidden_states=True)
    assert len(read.hidden_states) == len(KINDS) + 1
    embeddings = MODEL.get_input_embeddings()
    assert torch.equal(read.hidden_states[0], embeddings(IDS))
    torch.testing.assert_close(F.linear(read.hidden_states[-1], embeddings.weight), read.logits)
    torch.testing.assert_close(MODEL(inputs_embeds=embeddings(IDS)).logits, read.logits)
    torch.testing.assert_close(MODEL(IDS, logits_to_keep=2).logits, read.logits[:, -2:])
    torch.testing.assert_close(MODEL(IDS, logits_to_keep=torch.tensor([4, 0])).logits, read.logits[:, [4, 0]])
    assert MODEL(IDS, use_cache=False).past_key_values is None
    logits, cache = MODEL(IDS, return_dict=False)
    assert torch.equal(logits, read.logits) and isinstance(cache, MnemonistCache)


def test_the_loss_is_that_of_the_next_token():
    labels = IDS.clone()
    labels[0, 2:5] = -100
    logits = MODEL(IDS).logits[:, :-1].flatten(0, 1).float()
    kept = int((labels[:, 1:] != -100).sum())
    total = F.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(MODEL(IDS, labels=labels).loss, total / kept)
    torch.testing.assert_close(MODEL(IDS, labels=labels, num_items_in_batch=100).loss, total / 100)


def test_padding_behind_rows_is_read_over_where_nothing_is_kept(monkeypatch):
    """Leaving it out would cost moving every token; its labels are left out, and gradients are the same."""
    model = wrapped().train()
    T = max(map(len, ROWS))
    ids = torch.stack([F.pad(row, (0, T - len(row)), value=3) for row in ROWS])
    mask = torch.stack([F.pad(torch.ones_like(row), (0, T - len(row))) for row in ROWS])
    masks = []
    forward = model.model.forward
    monkeypatch.setattr(
        model.model,
        "forward",
        lambda ids, state, mask, **given: masks.append(mask) or forward(ids, state, mask, **given),
    )

    def gradients(**given):
        model.zero_grad()
        model(ids, attention_mask=mask, labels=ids, **given).loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    fast, slow = gradients(), gradients(use_cache=True)
    assert masks[0] is None and torch.equal(masks[1], mask.bool())
    assert len(fast) == len(slow) > 0
    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one, other)
    model(ids.flip(1), attention_mask=mask.flip(1))
    model(inputs_embeds=torch.zeros(*ids.shape, model.config.width, dtype=torch.float64), attention_mask=mask)
    assert masks[2] is not None and masks[3] is not None


def test_the_loss_of_a_padded_batch_is_that_of_its_rows():
    batch = left_padded(ROWS)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    alone = [MODEL(row[None], labels=row[None]).loss * (len(row) - 1) for row in ROWS]
    together = MODEL(**batch, labels=labels).loss
    torch.testing.assert_close(together, sum(alone) / sum(len(row) - 1 for row in ROWS))


def test_embeddings_of_more_tokens():
    model = wrapped()
    before = model(IDS).logits
    with torch.no_grad():
        model.resize_token_embeddings(VOCAB + 4, mean_resizing=False)
    assert model.config.vocab_size == model.model.config.vocab_size == VOCAB + 4
    torch.testing.assert_close(model(IDS).logits[..., :VOCAB], before)
    assert model(torch.full((1, 2), VOCAB + 3)).logits.isfinite().all()
    assert model.get_input_embeddings().weight[VOCAB:].std() < 0.1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"input_ids": torch.tensor([[1, VOCAB]])}, "token ids run from 1 to 17, but the vocabulary has ids 0 to 16"),
        ({"input_ids": IDS[:0]}, "at least one token"),
        ({"input_ids": IDS[:, :0]}, "at least one token"),
        ({}, "either input_ids or inputs_embeds"),
        ({"inputs_embeds": torch.zeros(1, 2, 5)}, "5 wide, but the model is 12"),
        ({"input_ids": IDS, "attention_mask": torch.ones(3, 9)}, r"attention_mask is \[3, 9\]; it must be \[3, 11\]\."),
        ({"input_ids": IDS, "attention_mask": torch.ones(3, 1, 11, 11)}, "attention_mask is"),
        (
            {"input_ids": IDS, "past_key_values": DynamicCache()},
            "DynamicCache, but this model keeps a state of its own",
        ),
        ({"input_ids": IDS, "output_attentions": True}, "no attention weights"),
        ({"input_ids": IDS, "labels": IDS, "logits_to_keep": 1}, "labels need the logits of every token"),
    ],
)
def test_bad_input(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        MODEL(**arguments)


# --- the cache


def test_a_cache_of_another_model_or_batch_is_refused():
    cache = MODEL(IDS).past_key_values
    with pytest.raises(ValueError, match="The cache has 3 rows but the batch has 1; cache.batch_repeat_interleave"):
        MODEL(IDS[:1], past_key_values=cache)
    with pytest.raises(ValueError, match="The cache is of another model"):
        wrapped(window=5)(IDS, past_key_values=cache)
    foreign = MnemonistCache.from_state(cache.state)  # which knows no more than its tensors
    with pytest.raises(ValueError, match="These tensors are not a state of this model: blocks"):
        wrapped(head_dim=6)(IDS, past_key_values=foreign)
    with pytest.raises(ValueError, match="cannot unread"):
        cache.crop(-1)


def test_copies_of_a_cache_go_their_own_ways():
    cache = MODEL(IDS[:, :6]).past_key_values
    copies = [copy.deepcopy(cache.__class__.from_state(cache.state.detach(), cache.length)) for _ in range(2)]
    expected = MODEL(IDS).logits[:, 6:]
    for other in (*copies, MnemonistCache.from_state(cache.state, cache.length), cache):
        torch.testing.assert_close(MODEL(IDS[:, 6:], past_key_values=other).logits, expected)


def test_rows_of_a_cache():
    cache = MODEL(IDS[:, :6]).past_key_values
    cache.batch_select_indices(torch.tensor([2, 0]))
    cache.batch_repeat_interleave(2)
    rows = torch.tensor([2, 2, 0, 0])
    torch.testing.assert_close(MODEL(IDS[rows, 6:], past_key_values=cache).logits, MODEL(IDS[rows]).logits[:, 6:])
    cache.reset()
    assert (cache.batch_size, cache.get_seq_length(), len(cache), bool(cache)) == (-1, 0, 0, True)


def test_rows_of_two_caches_read_on_together():
    first, second = MODEL(IDS[:2, :6]).past_key_values, MODEL(IDS[2:, :3]).past_key_values
    state = second.state
    first.batch_extend(second)
    assert (first.batch_size, first.length, second.batch_size) == (3, 6, 1) and second.state is state
    together = MODEL(IDS[:, 6:8], past_key_values=first).logits
    torch.testing.assert_close(together[:2], MODEL(IDS[:2, :8]).logits[:, 6:])
    alone = torch.cat([IDS[2:, :3], IDS[2:, 6:8]], 1)
    torch.testing.assert_close(together[2:], MODEL(alone).logits[:, 3:])
    with pytest.raises(ValueError, match="has read nothing"):
        first.batch_extend(MnemonistCache())
    other = wrapped(window=5)
    with pytest.raises(ValueError, match="different models"):
        first.batch_extend(other(IDS[:1]).past_key_values)


def test_rows_of_a_cache_are_taken_over_and_leave():
    with torch.inference_mode():
        first, second = MODEL(IDS[:, :6]).past_key_values, MODEL(IDS[1:2, :8]).past_key_values
        state = second.state
        first.overwrite([0], second, [0])
        assert (first.batch_size, first.length) == (3, 8) and second.state is state
        first.shrink([0, 2])
        assert first.batch_size == 2
        together = MODEL(IDS[1:, 8:], past_key_values=first).logits
        torch.testing.assert_close(together[0], MODEL(IDS[1:2]).logits[0, 8:])
        alone = torch.cat([IDS[2:, :6], IDS[2:, 8:]], 1)
        torch.testing.assert_close(together[1], MODEL(alone).logits[0, 6:])
        with pytest.raises(ValueError, match="has read nothing"):
            MnemonistCache().overwrite([0], first, [0])
        with pytest.raises(ValueError, match="different models"):
            first.overwrite([0], wrapped(window=5)(IDS[:1]).past_key_values, [0])


# --- generate


def test_a_padded_batch_generates_what_its_rows_do_alone():
    together = MODEL.generate(**left_padded(ROWS), **GREEDY)
    for row, sequence in zip(ROWS, together, strict=True):
        alone = MODEL.generate(row[None], **GREEDY)
        assert torch.equal(sequence[len(IDS[0]) :], alone[0, len(row) :])


@pytest.mark.parametrize("use_cache", [True, False])
def test_generated_scores_are_those_of_the_finished_text(use_cache):
    batch = left_padded(ROWS)
    made = MODEL.generate(**batch, **GREEDY, use_cache=use_cache, return_dict_in_generate=True, output_logits=True)
    mask = F.pad(batch["attention_mask"], (0, 7), value=1)
    taught = MODEL(made.sequences, attention_mask=mask).logits[:, -8:-1]
    torch.testing.assert_close(torch.stack(made.logits, 1), taught.float())


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 3},
        {"do_sample": True, "num_beams": 2, "top_k": 5},
        {"prefill_chunk_size": 3},
    ],
    ids=str,
)
def test_the_cache_changes_nothing(options):
    results = []
    for use_cache in (True, False):
        torch.manual_seed(5)
        chunk = {} if use_cache else {"prefill_chunk_size": None}
        arguments = left_padded(ROWS) | GREEDY | options | chunk
        results.append(MODEL.generate(**arguments, use_cache=use_cache))
    assert torch.equal(*results)
    assert len(results[0]) == 3 * options.get("num_return_sequences", 1)


def test_beam_search_finds_the_best_of_all():
    """With as many beams as continuations nothing is pruned."""
    model = wrapped(vocab_size=5)
    ids = torch.tensor([[1, 2, 3]])
    found = model.generate(ids, num_beams=25, max_new_tokens=2, do_sample=False, pad_token_id=0)[0, 3:]
    texts = torch.cat([ids.expand(25, -1), torch.cartesian_prod(torch.arange(5), torch.arange(5))], dim=1)
    scores = model(texts).logits[:, 2:-1].log_softmax(-1).gather(2, texts[:, 3:, None]).sum((1, 2))
    assert torch.equal(found, texts[scores.argmax(), 3:])


@pytest.mark.parametrize("new", [0, 4])
def test_a_returned_cache_is_gone_on_from(new):
    batch = left_padded(ROWS)
    more = torch.randint(0, END, (3, new), generator=torch.Generator().manual_seed(2))
    first = MODEL.generate(**batch, **GREEDY, return_dict_in_generate=True)
    longer = torch.cat([first.sequences, more], dim=1)
    mask = F.pad(batch["attention_mask"], (0, 7 + new), value=1)
    state = first.past_key_values.state
    expected = MODEL.generate(longer, attention_mask=mask, **GREEDY)
    assert torch.equal(
        MODEL.generate(longer, attention_mask=mask, **GREEDY, past_key_values=first.past_key_values), expected
    )
    assert first.past_key_values.length == longer.shape[1] + 6 and state is not first.past_key_values.state
    cache = MnemonistCache.from_state(state, 11 + 6)  # new columns alone, under the mask of all
    tail = MODEL.generate(longer[:, 17:], attention_mask=mask, **GREEDY, past_key_values=cache)
    assert torch.equal(tail, expected[:, 17:])


def test_rows_that_have_ended_read_no_more():
    """What a batch returns can be gone on from, though its rows ended at different times."""
    alone, ends = [], []
    batch = left_padded(ROWS)
    free = MODEL.generate(**batch, **GREEDY)[:, 11:]
    marks = {"eos_token_id": [int(free[0, 1]), int(free[1, 4])], "pad_token_id": PAD}
    made = MODEL.generate(**batch, **(GREEDY | marks), return_dict_in_generate=True)
    for row in ROWS:
        single = MODEL.generate(row[None], **(GREEDY | marks), return_dict_in_generate=True)
        ends.append(single.sequences.shape[1] - len(row))
        alone.append(single)
    assert len(set(ends)) > 1, "the rows must end at different times for this test to say anything"
    T = made.sequences.shape[1]
    new = torch.tensor([[2, 3, 4]]).expand(3, -1)
    mask = F.pad(batch["attention_mask"], (0, T - 11), value=1)
    for i, end in enumerate(ends):
        mask[i, 11 + end :] = 0
    full = torch.cat([made.sequences, new], 1)
    together = MODEL(
        full[:, made.past_key_values.length :],
        attention_mask=F.pad(mask, (0, 3), value=1),
        past_key_values=made.past_key_values,
    )
    for i, single in enumerate(alone):
        row = torch.cat([single.sequences, new[:1]], 1)
        # The end mark of a row that ended early was read while others went on; the last to end has not read its own.
        torch.testing.assert_close(together.logits[i, -3:], MODEL(row).logits[0, -3:])


def test_beams_from_a_cache_of_one_row():
    read = MODEL(IDS[:1]).past_key_values
    before = read.state
    arguments = {"num_beams": 3, "num_return_sequences": 2} | GREEDY
    whole = MODEL.generate(torch.cat([IDS[:1], IDS[1:2]], 1), **arguments)
    for _ in range(2):  # the cache is as it was
        cache = MnemonistCache.from_state(read.state)  # of text that `generate` does not see
        made = MODEL.generate(IDS[1:2], past_key_values=cache, **arguments)
        assert torch.equal(made, whole[:, 11:])
        assert cache.state is before and cache.batch_size == 1


def test_one_session_answers_many_questions():
    cache = MnemonistCache.from_state(MODEL(IDS[:1]).past_key_values.state)
    questions = left_padded(ROWS[1:])
    together = MODEL.generate(**questions, **GREEDY, past_key_values=cache)
    for row, answer in zip(ROWS[1:], together, strict=True):
        alone = MODEL.generate(torch.cat([IDS[:1], row[None]], 1), **GREEDY)
        assert torch.equal(answer[8:], alone[0, 11 + len(row) :])


def test_a_streamer_gets_every_token():
    class Collect(BaseStreamer):
        def __init__(self):
            self.tokens, self.ended = [], False

        def put(self, value):
            self.tokens += value.flatten().tolist()

        def end(self):
            self.ended = True

    streamer = Collect()
    made = MODEL.generate(IDS[:1], **GREEDY, streamer=streamer)
    assert streamer.tokens == made[0].tolist() and streamer.ended


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"prompt_lookup_num_tokens": 2}, "assisted generation is not supported with stateful models"),
        ({"cache_implementation": "static"}, "cache_implementation is 'static'.*leave it out"),
        ({"attention_mask": torch.tensor([[0] * 11])}, "row 0 is all padding; begin with a mark"),
        ({"attention_mask": torch.tensor([[1] * 9 + [0] * 2])}, "row 0 ends in padding; pad on the left"),
        ({"past_key_values": DynamicCache()}, "DynamicCache, but this model keeps a state of its own"),
        ({"past_key_values": MnemonistCache(), "use_cache": False}, "exclude each other"),
        ({"past_key_values": "longer"}, "The cache has read 11 tokens, but input_ids has no more than that"),
        ({"past_key_values": "wider"}, "The cache has 3 rows but the batch has 1"),
    ],
)
def test_generation_that_is_refused(arguments, sentence):
    if isinstance(cache := arguments.get("past_key_values"), str):
        read = MODEL(IDS[:1] if cache == "longer" else IDS).past_key_values
        arguments = {"past_key_values": read if cache == "longer" else MnemonistCache.from_state(read.state)}
    with pytest.raises(ValueError, match=sentence):
        MODEL.generate(IDS[:1], **(GREEDY | arguments))


# --- memory


def test_gradient_checkpointing_gives_the_same_gradients_from_less():
    model = wrapped(torch.float32).train()
    ids = torch.randint(0, END, (1, 60), generator=torch.Generator().manual_seed(4))

    def gradients() -> tuple[list[torch.Tensor], int]:
        kept = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += tensor.nbytes
            return tensor

        model.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = model(ids, labels=ids).loss
        loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters()], kept

    plain, before = gradients()
    model.activation_checkpointing_enable()
    again, after = gradients()
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))
    assert after < before / 10
    model.activation_checkpointing_disable()
    assert gradients()[1] == before
