"""A state is a value: it is saved, loaded, forked and read on from, and stays as small as it was."""

from __future__ import annotations

import copy
import dataclasses
import gc
import json
import os
import re

import psutil
import pytest
import safetensors.torch
import torch
from oracle import make_inputs
from pieces import (
    PER_TOKEN,
    ROWS,
    assert_bit_equal_state,
    backends_of,
    read_in_pieces,
    span,
    state_tensors,
)

from mnemonist.errors import UserError
from mnemonist.memory import RULES, MemoryRule, MemoryState, initial_weights, memorize

RULES_UNDER_TEST = [
    *(rule.replace(chunk_size=6) for rule in ROWS),
    RULES["titans"].replace(name="channel-deep-4", depth=4, retention="channel", chunk_size=6),
    RULES["titans-linear"].replace(name="huber", objective="huber"),
]
each_rule = pytest.mark.parametrize("rule", RULES_UNDER_TEST, ids=lambda r: r.name)
CASES = [(rule, backend) for rule in RULES_UNDER_TEST for backend in backends_of(rule)]
each_case = pytest.mark.parametrize("rule, backend", CASES, ids=[f"{r.name}-{b}" for r, b in CASES])


def small(rule, T=20, **kwargs):
    return make_inputs(rule, T=T, K=4, V=4, dtype=torch.float32, **kwargs)


# --- files -------------------------------------------------------------------------------------------------


@each_rule
@pytest.mark.parametrize("cut", [1, 8, 12], ids=["one-token", "mid-chunk", "chunk-border"])
def test_a_saved_state_reads_on_bit_equal(rule, cut, tmp_path):
    inputs = small(rule)
    state = memorize(rule, **span(inputs, 0, cut)).state
    path = tmp_path / "memory.safetensors"
    state.save(path)
    loaded = MemoryState.load(path)
    assert_bit_equal_state(loaded, state)
    assert loaded.nbytes == state.nbytes
    if not rule.per_token:
        assert loaded.phase.tolist() == [cut % 6] * 2
    rest = span(inputs, cut, 20)
    one, two = memorize(rule, **rest, state=state), memorize(rule, **rest, state=loaded)
    assert torch.equal(one.y, two.y)
    assert_bit_equal_state(one.state, two.state)


@each_rule
def test_states_at_the_beginning_and_of_double_precision_are_saved_whole(rule, tmp_path):
    for dtype in (torch.float32, torch.float64):
        inputs = make_inputs(rule, K=4, V=4, dtype=dtype)
        fresh = MemoryState.fresh(rule, inputs["initial"], 3)
        fresh.save(tmp_path / "fresh.safetensors")
        assert_bit_equal_state(MemoryState.load(tmp_path / "fresh.safetensors"), fresh)


def test_rows_in_different_chunks_are_saved_with_their_phases(tmp_path):
    rule = RULES["titans"].replace(chunk_size=6)
    mask = torch.tensor([[True] * 5 + [False] * 3, [True] * 8])
    state = memorize(rule, **small(rule, T=8), mask=mask).state
    state.save(tmp_path / "memory")
    loaded = MemoryState.load(tmp_path / "memory")
    assert loaded.phase.tolist() == [5, 2]
    assert loaded.phase.dtype == torch.int64
    assert_bit_equal_state(loaded, state)


def test_a_saved_state_is_cut_from_the_graph_and_the_one_in_memory_is_not(tmp_path):
    rule = RULES["titans"]
    inputs = small(rule)
    inputs["k"].requires_grad_()
    state = memorize(rule, **inputs).state
    state.save(tmp_path / "memory")
    assert state.weights[0].requires_grad
    assert not MemoryState.load(tmp_path / "memory").weights[0].requires_grad


def saved(tmp_path, name="titans"):
    rule = RULES[name].replace(chunk_size=6)
    state = memorize(rule, **small(rule)).state
    path = tmp_path / "memory.safetensors"
    state.save(path)
    return path, state


def test_a_missing_file_is_named(tmp_path):
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(UserError, match=f"no file {re.escape(str(path))}; give the path"):
            MemoryState.load(path)


def test_a_file_cut_short_is_refused_wherever_it_was_cut(tmp_path):
    path, _ = saved(tmp_path)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for length in (
        0,
        1,
        7,
        8,
        9,
        header // 2,
        header - 1,
        header,
        header + 1,
        len(whole) // 2,
        len(whole) - 1,
    ):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="not a whole safetensors file"):
            MemoryState.load(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(UserError, match="not a whole safetensors file"):
        MemoryState.load(path)


def test_random_bytes_are_refused(tmp_path):
    gen = torch.Generator().manual_seed(0)
    path = tmp_path / "noise"
    for length in (3, 8, 100, 5000):
        path.write_bytes(bytes(torch.randint(256, (length,), generator=gen).tolist()))
        with pytest.raises(UserError, match="not a whole safetensors file"):
            MemoryState.load(path)
    torch.save({"weights.0": torch.zeros(1)}, path)  # a pickle; nothing of it may run
    with pytest.raises(UserError, match="not a whole safetensors file"):
        MemoryState.load(path)


def rewrite(path, tensors=None, metadata=None):
    """The file again with other tensors or another header."""
    with safetensors.safe_open(path, framework="pt") as file:
        old = file.metadata()
    safetensors.torch.save_file(
        safetensors.torch.load_file(path) if tensors is None else tensors,
        path,
        old if metadata is None else {**old, **metadata},
    )


def test_foreign_and_newer_files_are_refused(tmp_path):
    path, state = saved(tmp_path)
    rewrite(path, metadata={"format": "mnemonist-memory-state/2"})
    with pytest.raises(UserError, match="holds 'mnemonist-memory-state/2', not 'mnemonist-memory-state/1'"):
        MemoryState.load(path)
    safetensors.torch.save_file(state.to_tensors(), path)
    with pytest.raises(UserError, match="holds 'something else', not 'mnemonist-memory-state/1'"):
        MemoryState.load(path)


@pytest.mark.parametrize("rule", ["", "{}", "titans", "[1]", '{"depth": 7}', '{"virtue": 1}'])
def test_a_rule_that_is_none_is_refused(rule, tmp_path):
    path, _ = saved(tmp_path)
    rewrite(path, metadata={"rule": rule})
    with pytest.raises(UserError, match=r"memory\.safetensors cannot be used: "):
        MemoryState.load(path)


def test_a_rule_with_a_choice_this_version_does_not_know_is_refused(tmp_path):
    path, state = saved(tmp_path)
    rewrite(path, metadata={"rule": json.dumps({**dataclasses.asdict(state.rule), "optimiser": "muon"})})
    with pytest.raises(UserError, match=r"not a memory rule of this version.*optimiser"):
        MemoryState.load(path)


@pytest.mark.parametrize("name", ["weights.0", "weights.1", "momentum.1", "anchor.0", "phase"])
def test_missing_tensors_are_named(name, tmp_path):
    path, state = saved(tmp_path)
    tensors = state.to_tensors()
    del tensors[name]
    rewrite(path, tensors)
    with pytest.raises(UserError, match=f"not a state of rule 'titans': {name} missing or left over"):
        MemoryState.load(path)


def test_tensors_left_over_are_named(tmp_path):
    path, state = saved(tmp_path, "titans-linear")
    rewrite(path, {**state.to_tensors(), "phase": torch.zeros(2, dtype=torch.int64)})
    with pytest.raises(UserError, match="phase missing or left over"):
        MemoryState.load(path)


@pytest.mark.parametrize(
    "name, change",
    [
        ("weights.0", lambda w: w[:1]),
        ("weights.1", lambda w: w[0]),
        ("weights.0", lambda w: w.long()),
        ("momentum.0", lambda w: w[:, :1]),
        ("anchor.1", lambda w: w.mT.contiguous()),
        ("phase", lambda p: p[:1]),
        ("phase", lambda p: p + 6),
        ("phase", lambda p: p - 6),
        ("phase", lambda p: p.float()),
    ],
)
def test_tensors_that_do_not_fit_each_other_are_refused(name, change, tmp_path):
    path, state = saved(tmp_path)
    tensors = state.to_tensors()
    tensors[name] = change(tensors[name]).contiguous()
    rewrite(path, tensors)
    with pytest.raises(UserError, match="not a state of rule 'titans': their shapes or types differ"):
        MemoryState.load(path)


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["OSError", "interrupt"])
def test_an_interrupted_save_keeps_the_old_file(error, tmp_path, monkeypatch):
    path, state = saved(tmp_path)
    later = memorize(state.rule, **small(state.rule, seed=1), state=state).state

    def fail(*args, **kwargs):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises((OSError, KeyboardInterrupt)):
            later.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["memory.safetensors"]
    assert_bit_equal_state(MemoryState.load(path), state)
    later.save(path)
    assert_bit_equal_state(MemoryState.load(path), later)


# --- values ------------------------------------------------------------------------------------------------


@each_case
def test_reading_changes_nothing_it_was_given(rule, backend):
    inputs = small(rule)
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[0, 3:5] = False
    state = memorize(rule, **small(rule, T=8, seed=1) | {"initial": inputs["initial"]}, backend=backend).state
    given = (inputs, mask, state)
    before = copy.deepcopy(given)
    for _ in range(2):
        memorize(rule, **inputs, state=state, mask=mask, backend=backend)
        memorize(rule, **inputs, state=state, backend=backend)
        memorize(rule, **inputs, backend=backend)
    assert_bit_equal_state(state, before[2])
    assert torch.equal(mask, before[1])
    for name in PER_TOKEN:
        if name in inputs:
            assert torch.equal(inputs[name], before[0][name]), name
    assert all(map(torch.equal, inputs["initial"], before[0]["initial"]))


@each_case
def test_inference_and_no_grad_give_the_bits_of_training(rule, backend):
    inputs = small(rule)
    leaves = {n: x.clone().requires_grad_() for n, x in inputs.items() if n in PER_TOKEN}
    y, state, _ = read_in_pieces(rule, inputs | leaves, [7, 13], backend=backend)
    assert y.requires_grad
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            quiet, after, _ = read_in_pieces(rule, inputs, [7, 13], backend=backend)
            assert not quiet.requires_grad
            assert torch.equal(quiet, y)
            assert_bit_equal_state(after, state)
            read_on = memorize(rule, **inputs, state=state.detach(), backend=backend).y
        assert torch.equal(read_on, memorize(rule, **inputs, state=state, backend=backend).y)


@each_rule
def test_fork_owns_its_memory_and_select_its_rows(rule):
    inputs = small(rule)
    inputs["k"].requires_grad_()
    state = memorize(rule, **inputs).state
    fork = state.fork()
    assert_bit_equal_state(fork, state)
    ours = {t.untyped_storage().data_ptr() for t in state_tensors(state)}
    theirs = [t.untyped_storage().data_ptr() for t in state_tensors(fork)]
    assert ours.isdisjoint(theirs)
    assert len(set(theirs)) == len(theirs)

    chosen = state.select(torch.tensor([1, 1, 0]))
    assert chosen.batch == 3
    for mine, all_rows in zip(state_tensors(chosen), state_tensors(state), strict=True):
        assert torch.equal(mine, all_rows[[1, 1, 0]])

    cut = state.detach()
    assert_bit_equal_state(cut, state)
    assert not any(t.requires_grad for t in state_tensors(cut))
    assert any(t.requires_grad for t in state_tensors(state))


def test_a_state_cannot_be_assigned_to():
    state = memorize("titans", **small(RULES["titans"])).state
    with pytest.raises(dataclasses.FrozenInstanceError):
        state.weights = ()


# --- beginnings --------------------------------------------------------------------------------------------


def test_a_linear_memory_starts_empty_and_a_deep_one_does_not():
    assert not initial_weights(RULES["titans-linear"], 2, 4, 5)[0].any()
    weights = initial_weights(RULES["titans"], 2, 4, 4)
    assert [tuple(w.shape) for w in weights] == [(2, 4, 16), (2, 16, 4)]
    assert all(w.any(dim=-1).all() for w in weights)


def test_initial_weights_come_from_the_generator_alone():
    rule = MemoryRule(depth=3)

    def drawn(seed):
        return initial_weights(rule, 2, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    assert all(map(torch.equal, drawn(1), drawn(1)))
    assert not any(map(torch.equal, drawn(1), drawn(2)))
    assert all(w.dtype == torch.float64 for w in drawn(1))


@pytest.mark.parametrize("activation", ["silu", "gelu", "relu", "tanh"])
@pytest.mark.parametrize("depth", [2, 3, 4])
def test_signals_keep_their_size_on_the_way_through_a_fresh_memory(depth, activation):
    rule = MemoryRule(depth=depth, activation=activation, gradient_at="chunk")
    gen = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(1, 400, 8, 32, generator=gen), dim=-1)
    weights = initial_weights(rule, 8, 32, 32, generator=gen)
    none = torch.zeros(1, 400, 8)
    y = memorize(rule, x, x, x, step_size=none, initial=weights).y
    assert 0.7 < y.std() < 1.4


# --- size --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["titans", "titans-linear"])
def test_a_stream_of_100k_tokens_needs_no_more_memory_than_one_of_1k(name):
    rule = RULES[name]
    inputs = make_inputs(rule, B=1, T=500, H=1, K=4, V=4, dtype=torch.float32)
    inputs["step_size"] *= 0.1
    process, state, sizes, resident = psutil.Process(), None, set(), []
    with torch.no_grad():
        for piece in range(200):
            read = memorize(rule, **inputs, state=state)
            state = read.state
            sizes.add(state.nbytes)
            if piece % 50 == 49:
                gc.collect()
                resident.append(process.memory_info().rss)
    assert read.y.isfinite().all()
    assert len(sizes) == 1
    assert max(resident[1:]) - resident[0] < 5e6
    # The tensors are what they seem: no view keeps a longer storage alive.
    held = sum(t.untyped_storage().nbytes() for t in state_tensors(state))
    assert held <= 2 * state.nbytes


@each_rule
def test_nbytes_is_what_the_tensors_hold(rule):
    state = memorize(rule, **small(rule)).state
    assert state.nbytes == sum(t.numel() * t.element_size() for t in state_tensors(state))
