"""Kernels are compiled once, never half, and done without where they cannot be had."""

from __future__ import annotations

import ctypes
import time

import pytest
import torch
from compiler import COMPILER, needs_compiler
from oracle import make_inputs

from mnemonist.memory import MemoryRule, memorize
from mnemonist.memory.kernels import native, native_chunks, native_linear, native_linear_layer

RULES = [MemoryRule(name="deep", gradient_at="chunk"), MemoryRule(name="linear")]


@needs_compiler
def test_a_kernel_is_compiled_once_and_never_half(tmp_path, caplog):
    source, header = tmp_path / "small.cpp", tmp_path / "small.h"
    header.write_text("#define ANSWER 42")
    source.write_text('#include "small.h"\nextern "C" int answer() { return ANSWER; }')
    first = native.compiled(COMPILER, source, tmp_path / "cache")
    again = native.compiled(COMPILER, source, tmp_path / "cache")
    assert first == again and len(caplog.records) == 1
    header.write_text("#define ANSWER 43")
    other = native.compiled(COMPILER, source, tmp_path / "cache")
    assert other != first
    source.write_text('extern "C" int answer() { return "fourty-two"; }')
    with pytest.raises(OSError, match="failed: .*error"):
        native.compiled(COMPILER, source, tmp_path / "cache")
    assert set((tmp_path / "cache").iterdir()) == {first, other}


@needs_compiler
def test_where_another_thread_comes_late_those_that_follow_do_without():
    """In place of torch's threads stands one that comes when we let it."""
    calls, late = [], 0.0

    @ctypes.CFUNCTYPE(None, ctypes.CFUNCTYPE(None, ctypes.c_void_p), ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    def team(work, data, threads, flags):
        calls.append(threads)
        time.sleep(late)
        work(data)

    kernel, until = native_linear_layer.linear_layer_kernel(), native._ALONE_UNTIL
    x, weight, threads = torch.randn(1, 512), torch.randn(1024, 512), torch.get_num_threads()

    def called():
        calls.clear()
        torch.testing.assert_close(native_linear_layer.linear(x, weight), x @ weight.T, rtol=1e-4, atol=1e-4)
        return len(calls)

    try:
        torch.set_num_threads(2)
        until.value = 0
        kernel.share_team(team, ctypes.byref(until))
        assert called() == 1
        until.value, late = 0, 0.005
        assert called() == 1 and until.value > 0
        assert called() == 0  # for a while
        until.value, late = 1, 0.0  # which is over
        assert called() == 1
    finally:
        torch.set_num_threads(threads)
        until.value = 0
        kernel.share_team(native._team(), ctypes.byref(until))


@pytest.mark.parametrize("why", ["off", "no compiler", "no folder"])
def test_without_one_torch_reads(why, monkeypatch, tmp_path):
    if why == "off":
        monkeypatch.setenv("MNEMONIST_KERNELS", "off")
    elif why == "no compiler":
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        (tmp_path / "file").write_text("in the way")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    native.kernel.cache_clear()
    try:
        assert native_chunks.chunk_kernel() is None and native_linear.linear_kernel() is None
        for rule in RULES:
            assert memorize(rule, **make_inputs(rule)).y.isfinite().all()
    finally:
        native.kernel.cache_clear()
