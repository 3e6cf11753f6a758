"""Kernels are compiled once, never half, and done without where they cannot be had."""

from __future__ import annotations

import pytest
from compiler import COMPILER, needs_compiler
from oracle import make_inputs

from mnemonist.memory import MemoryRule, memorize
from mnemonist.memory.kernels import native, native_chunks, native_linear

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
