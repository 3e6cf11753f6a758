"""The operations that are counted are those that are done."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mnemonist.memory import memorize
from mnemonist.memory.kernels import native_chunks


@pytest.mark.parametrize("expansion,chunk", [(4.0, 16), (2.0, 8), (1.0, 32)])
def test_operations_are_those_that_torch_counts(expansion, chunk, monkeypatch):
    from cpu_reference import deep_rule, tokens_for
    from work import DeepWork

    monkeypatch.setattr(native_chunks, "chunk_kernel", lambda: None)  # what it does is not seen by torch
    work, tokens = DeepWork(heads=3, dim=16, expansion=expansion, chunk=chunk), 4 * chunk
    given = tokens_for(deep_rule(work), work.heads, work.dim, tokens)
    # Of the products that torch counts by itself, those in place are left out.
    in_place = {torch.ops.aten.baddbmm_: lambda base, a, b, *_, **__: 2 * a[0] * a[1] * a[2] * b[2]}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        memorize(deep_rule(work), **given, surprise=False)
    assert counter.get_total_flops() / tokens == pytest.approx(work.flops, rel=0.02)


def test_parts_and_bytes_of_the_reference_work():
    from cpu_measure import FULL

    work = FULL.reference
    assert work.weights == 32768 and work.width == 256
    assert work.flops == 4 * (11 * 32768 + 4 * 64 * 64 * 5 + 2 * 64**2)
    # Four tokens of 64 numbers, three gates, and M and S both ways once in 64 tokens.
    assert work.bytes == 4 * 4 * (4 * 64 + 3 + 4 * 32768 / 64)
    longer = work.with_chunk(128)
    assert longer.bytes < work.bytes and longer.flops > work.flops


def test_products_make_as_many_operations_as_they_say():
    from cpu_reference import products
    from work import DeepWork

    work = DeepWork(heads=2, dim=8, expansion=2.0, chunk=4)
    multiply, made = products(work, 10_000.0)
    with FlopCounterMode(display=False) as counter:
        multiply()
    assert counter.get_total_flops() == made
    assert made == pytest.approx(10_000, abs=2 * 2 * 4 * 8 * 16 / 2)
