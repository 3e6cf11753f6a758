"""Half precision: activations in bfloat16 as on GPUs, memories and losses in float32."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from mnemonist.data import Document, PackedRows
from mnemonist.models import LanguageModel, ModelConfig, with_blocks
from mnemonist.models.alignment import AlignedMixers, MixerTeacher
from mnemonist.training import HeldOutConfig, TrainingConfig
from mnemonist.training.accelerator import prepared
from mnemonist.training.distillation import distillation_loss, mixer_loss, mixer_weights
from mnemonist.training.gradients import loss_parts
from mnemonist.training.held_out import read_held_out
from mnemonist.training.language import held_out_batches, packed_batches, truncated_next_token_loss

SIZES = {
    "width": 32,
    "heads": 2,
    "head_dim": 16,
    "memory_heads": 2,
    "memory_head_dim": 16,
    "mlp_width": 48,
    "window": 8,
}
DOCUMENTS = [Document(str(n), bytes((17 * n + i * i) % 256 for i in range(100 + 61 * n))) for n in range(6)]


@pytest.mark.parametrize("kind", ["lmm", "mag", "mac", "mal"])
def test_under_accelerates_autocast(kind):
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(blocks=(kind, kind), rule="titans:chunk_size=8,expansion=2", **SIZES))
    rows = packed_batches(DOCUMENTS, TrainingConfig(batch_size=4, row_length=64))(0, 0, 0, 1)
    exact = sum(part.loss.detach() for part in truncated_next_token_loss(32)(model, rows))
    AcceleratorState._reset_state()
    try:
        wrapped = Accelerator(cpu=True, mixed_precision="bf16").prepare(model)
        found = 0.0
        for part in truncated_next_token_loss(32)(wrapped, rows):  # goes on from a state
            assert part.loss.dtype == torch.float32
            part.loss.backward()
            found += part.loss.item()
        state = wrapped(rows["tokens"]).state
    finally:
        AcceleratorState._reset_state()
    assert found == pytest.approx(exact.item(), rel=0.01) and found != exact.item()
    memories = {name: tensor for name, tensor in state.to_tensors().items() if ".memory.memory." in f".{name}"}
    assert memories and all(t.dtype == torch.float32 for t in memories.values() if t.is_floating_point())
    assert all(p.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


def test_held_out_text_is_read_at_the_precision_of_training():
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(blocks=("mag",), rule="titans:chunk_size=8", **SIZES))
    config = TrainingConfig(batch_size=4, row_length=64)
    held_out = held_out_batches(PackedRows(DOCUMENTS, 64, 0), config, HeldOutConfig(rows=6))
    found = {}
    for precision in ("no", "bf16"):
        AcceleratorState._reset_state()
        try:
            accelerator = Accelerator(cpu=True, mixed_precision=precision)
            with prepared(accelerator, model, torch.optim.SGD(model.parameters())) as (wrapped, _):
                reading = read_held_out(accelerator, wrapped, truncated_next_token_loss(32), held_out)
                found[precision] = reading.bits_per_byte
        finally:
            AcceleratorState._reset_state()
    assert found["bf16"] == pytest.approx(found["no"], rel=0.01) and found["bf16"] != found["no"]


@pytest.mark.parametrize("match", ["mixers", "logits"])
def test_a_teacher_reads_at_the_precision_of_training(match):
    torch.manual_seed(0)
    teacher = LanguageModel(ModelConfig(blocks=("attention",) * 2, rule="titans-linear:chunk_size=8", **SIZES))
    student, _ = with_blocks(teacher, ["lmm"])
    rows = packed_batches(DOCUMENTS, TrainingConfig(batch_size=4, row_length=64))(0, 0, 0, 1)
    found = {}
    for precision in ("no", "bf16"):
        AcceleratorState._reset_state()
        try:
            accelerator = Accelerator(cpu=True, mixed_precision=precision)
            shows = MixerTeacher(teacher, (0, 1), accelerator.autocast)
            if match == "mixers":
                model, loss_of = AlignedMixers(student, (0, 1)), mixer_loss(shows, mixer_weights(shows, rows))
            else:
                model, loss_of = student, distillation_loss(teacher, None, accelerator.autocast)
            said = shows(rows["tokens"], rows["starts"], rows["targets"] >= 0).answers[0]
            assert said.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)
            with prepared(accelerator, model, torch.optim.SGD(model.parameters())) as (wrapped, _):
                (part,) = loss_parts(loss_of, wrapped, rows)
                assert part.loss.dtype == torch.float32
                accelerator.backward(part.loss)
            found[precision] = part.loss.item() / float(part.targets)
        finally:
            AcceleratorState._reset_state()
    assert found["bf16"] == pytest.approx(found["no"], rel=0.02) and found["bf16"] != found["no"]
    assert all(
        p.grad is None or (p.grad.dtype == torch.float32 and p.grad.isfinite().all()) for p in model.parameters()
    )
