"""What a teacher expects, and what its mixers do, as losses: their values, their gradients, and runs that go on."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mnemonist.training.distillation
from mnemonist.data import IGNORED, Document, PackedRows
from mnemonist.errors import UserError
from mnemonist.models import LanguageModel, ModelConfig, with_blocks
from mnemonist.models.alignment import AlignedMixers, MixerTeacher
from mnemonist.training import HeldOutConfig, TrainingConfig, load_checkpoint, read_metrics, train
from mnemonist.training.accelerator import start_accelerator
from mnemonist.training.distillation import distillation_loss, divergence, mixer_loss, mixer_weights
from mnemonist.training.gradients import accumulate_gradients, loss_parts, normalise_and_clip
from mnemonist.training.held_out import read_held_out
from mnemonist.training.interruption import StopRequest
from mnemonist.training.language import Rows, held_out_batches, next_token_loss, packed_batches

DOCUMENTS = [Document(str(n), bytes((17 * n + i * i) % 256 for i in range(20 + 41 * n))) for n in range(6)]
SMALL = ModelConfig(
    blocks=("attention",) * 3, rule="titans:chunk_size=5,expansion=1", width=8, heads=2, head_dim=4, memory_heads=2,
    memory_head_dim=4, mlp_width=8, window=4, persistent_tokens=0,
)  # fmt: skip
CONFIG = TrainingConfig(
    steps=6, batch_size=4, row_length=48, warmup_steps=2, save_every=2, log_every=1, seed=3, device="cpu"
)


def teacher_of(dtype: torch.dtype = torch.float64) -> LanguageModel:
    torch.manual_seed(0)
    model = LanguageModel(SMALL)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(dtype)


def student_of(teacher: LanguageModel, *blocks: str) -> LanguageModel:
    torch.manual_seed(1)
    return with_blocks(teacher, blocks or ("lmm",))[0]


def batch(config: TrainingConfig = CONFIG) -> Rows:
    rows = packed_batches(DOCUMENTS, config)(0, 0, 0, 1)
    assert rows["starts"][:, 1:].any(), "documents must begin within the rows"
    assert (rows["targets"] == IGNORED).any(), "and one of their starts must be a target"
    return rows


# The divergence of logits.


def logits(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("at_once", [1, 60, 1 << 22])
def test_it_is_that_of_torch_however_many_are_computed_at_once(at_once, monkeypatch):
    monkeypatch.setattr(mnemonist.training.distillation, "AT_ONCE", at_once)
    p, q = logits(2, 7, 19), logits(2, 7, 19, seed=1).requires_grad_()
    counted = torch.rand(2, 7, generator=torch.Generator().manual_seed(2)) > 0.3
    found = divergence(p, q, counted)
    expected = F.kl_div(q[counted].log_softmax(-1), p[counted].softmax(-1), reduction="sum")
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(2.5 * loss, q)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)
    assert not gradients[0][~counted].any()
    assert torch.autograd.gradcheck(lambda q: divergence(p, q, counted), q)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_of_equal_logits_it_is_nothing(dtype):
    p = logits(2, 7, 19, dtype=dtype)
    q = p.clone().requires_grad_()
    loss = divergence(p, q, torch.ones(2, 7, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0 and not q.grad.any() and q.grad.dtype == dtype
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_halves_are_compared_in_single_precision():
    p, q = logits(1, 5, 300, dtype=torch.bfloat16), logits(1, 5, 300, seed=1, dtype=torch.bfloat16)
    counted = torch.ones(1, 5, dtype=torch.bool)
    exact = divergence(p.double(), q.double(), counted)
    assert divergence(p, q, counted).item() == pytest.approx(exact.item(), rel=1e-5)


def test_it_goes_from_the_teacher_to_the_student():
    """By hand: two tokens, of which the teacher is sure of one."""
    p, q = torch.tensor([[[math.log(9.0), 0.0]]]), torch.zeros(1, 1, 2)
    expected = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert divergence(p, q, torch.ones(1, 1, dtype=torch.bool)).item() == pytest.approx(expected, rel=1e-6)


def test_beyond_its_gradient_nothing_large_is_kept():
    p, q = logits(4, 64, 500, dtype=torch.float32), logits(4, 64, 500, seed=1, dtype=torch.float32).requires_grad_()
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        loss = divergence(p, q, torch.ones(4, 64, dtype=torch.bool))
    assert sum(kept) == q.nbytes and loss.requires_grad


def test_other_vocabularies_are_refused():
    with pytest.raises(ValueError, match=r"teacher's logits are \[1, 2, 5\], the student's \[1, 2, 4\]"):
        divergence(torch.zeros(1, 2, 5), torch.zeros(1, 2, 4), torch.ones(1, 2, dtype=torch.bool))


def differentiated(model: nn.Module, loss_of: Any, rows: Rows) -> tuple[float, float, list[Tensor]]:
    model.zero_grad()
    loss = targets = 0.0
    for part in loss_parts(loss_of, model, rows):
        part.loss.backward()
        loss, targets = loss + part.loss.item(), targets + float(part.targets)
    return loss, targets, [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


def test_a_models_loss_is_the_divergence_of_what_both_read():
    teacher = teacher_of()
    student, rows = student_of(teacher), batch()
    with torch.no_grad():
        p = teacher(rows["tokens"], starts=rows["starts"]).logits
        q = student(rows["tokens"], starts=rows["starts"]).logits
    counted = rows["targets"] != IGNORED
    expected = F.kl_div(q[counted].log_softmax(-1), p[counted].softmax(-1), reduction="sum")
    loss, targets, _ = differentiated(student, distillation_loss(teacher), rows)
    assert loss == pytest.approx(expected.item(), rel=1e-9) and targets == int(counted.sum())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_of_the_model_itself_there_is_nothing_to_learn():
    """Exactly, where both are read alike; with a way back other kernels read, which round otherwise."""
    teacher = teacher_of()
    student, rows = copy.deepcopy(teacher), batch()
    with torch.no_grad():
        (part,) = loss_parts(distillation_loss(teacher), student, rows)
    assert part.loss.item() == 0
    loss, _, gradients = differentiated(student, distillation_loss(teacher), rows)
    assert abs(loss) < 1e-9 and max(float(gradient.abs().max()) for gradient in gradients) < 1e-9


@pytest.mark.parametrize("truncation", [7, 24, 48])
def test_rows_may_be_cut_and_both_go_on(truncation):
    teacher = teacher_of()
    student, rows = student_of(teacher, "mag", "attention"), batch()
    whole = differentiated(student, distillation_loss(teacher), rows)
    cut = differentiated(student, distillation_loss(teacher, truncation), rows)
    assert cut[:2] == pytest.approx(whole[:2], rel=1e-6)
    felt = max(float((a - b).abs().max()) for a, b in zip(whole[2], cut[2], strict=True))
    assert felt < 1e-9 if truncation == 48 else felt > 1e-6


def test_a_teacher_without_a_state_cannot_be_read_in_pieces():
    rows = batch()
    told = nn.Module()
    told.forward = lambda tokens, starts: SimpleNamespace(logits=torch.zeros(*tokens.shape, 259))  # type: ignore
    with pytest.raises(UserError, match="truncation needs a model that goes on from a state"):
        list(distillation_loss(told, 24)(student_of(teacher_of()), rows))


# The share that mixers leave unexplained.


def aligned(dtype: torch.dtype = torch.float64) -> tuple[LanguageModel, AlignedMixers, MixerTeacher]:
    teacher = teacher_of(dtype)
    student = student_of(teacher)
    return student, AlignedMixers(student, (0, 1, 2)), MixerTeacher(teacher, (0, 1, 2))


def test_blocks_weigh_alike_and_the_loss_is_a_share():
    _, module, teacher = aligned()
    rows = batch()
    weights = mixer_weights(teacher, rows)
    loss, explained, _ = differentiated(module, mixer_loss(teacher, weights), rows)
    example = teacher(rows["tokens"], rows["starts"], rows["targets"] != IGNORED)
    shares = module(example) / example.squares
    assert loss / explained == pytest.approx(shares.mean().item(), rel=1e-9), "on the rows that the weights are of"
    other = packed_batches(DOCUMENTS, CONFIG)(1, 0, 0, 1)
    loss, explained, _ = differentiated(module, mixer_loss(teacher, weights), other)
    example = teacher(other["tokens"], other["starts"], other["targets"] != IGNORED)
    shares = (module(example) / example.squares).tolist()
    assert min(shares) < loss / explained < max(shares)


def test_a_mixer_that_says_nothing_cannot_be_learned_from():
    _, _, teacher = aligned()
    with torch.no_grad():
        teacher.model.blocks[1].mixer.attention.out_proj.weight.zero_()
    with pytest.raises(ValueError, match="what mixer 1 of the teacher answers is 0.0"):
        mixer_weights(teacher, batch())


@pytest.mark.parametrize("match", ["mixers", "logits"])
def test_a_step_has_one_gradient_however_it_is_cut(match):
    found = []
    for accumulation in (1, 2, 4):
        student, module, teacher = aligned()
        loss_of = mixer_loss(teacher, mixer_weights(teacher, batch()))
        trained: nn.Module = module
        if match == "logits":
            trained, loss_of = student, distillation_loss(teacher.model)
        config = dataclasses.replace(CONFIG, accumulation=accumulation)
        accelerator = start_accelerator("cpu")
        batch_of = packed_batches(DOCUMENTS, config)
        totals = accumulate_gradients(accelerator, trained, batch_of, loss_of, config, 0, StopRequest())
        parameters = [parameter for parameter in trained.parameters() if parameter.grad is not None]
        norm = normalise_and_clip(accelerator, parameters, totals[1], None)
        found.append([(totals[0] / totals[1]).reshape(1), norm.reshape(1), *(p.grad for p in parameters)])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-6, atol=1e-9)


# Runs.


def run(folder: Path, match: str, **more: Any) -> LanguageModel:
    student, module, teacher = aligned(torch.float32)
    config = more.pop("config", CONFIG)
    batch_of = packed_batches(DOCUMENTS, config)
    held_out = held_out_batches(PackedRows(DOCUMENTS, config.row_length, 9), config, HeldOutConfig(every=3))
    how: dict[str, Any] = {"progress": False, **more}
    if match == "mixers":
        loss_of = mixer_loss(teacher, mixer_weights(teacher, batch_of(0, 0, 0, 4)))
        train(module, batch_of, loss_of, config, folder, held_out=held_out, unit="unexplained share", **how)
    else:
        held_out = dataclasses.replace(held_out, loss_of=next_token_loss)
        train(student, batch_of, distillation_loss(teacher.model), config, folder, held_out=held_out, **how)
    return student


def course(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "tokens_per_second")} for line in lines]


@pytest.mark.parametrize("match", ["mixers", "logits"])
def test_a_run_that_was_stopped_goes_on_to_the_same_end(match, tmp_path):
    """The teacher is in no checkpoint, and of the student what is trained alone."""
    whole = run(tmp_path / "whole", match)

    def stop(metrics: Any) -> None:
        if metrics.step == 3:
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        run(tmp_path / "cut", match, on_step=stop)
    cut = run(tmp_path / "cut", match, resume=True)
    assert course(tmp_path / "cut") == course(tmp_path / "whole")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), cut.parameters(), strict=True))
    begun, _, _ = aligned(torch.float32)
    moved = {n for (n, a), b in zip(whole.named_parameters(), begun.parameters(), strict=True) if not torch.equal(a, b)}
    kept = load_checkpoint(tmp_path / "cut" / "checkpoint").model
    if match == "mixers":
        assert moved == {name for name, _ in whole.named_parameters() if ".mixer" in name}
        assert all(name.split(".")[0] in ("norms", "mixers") for name in kept)
    else:
        assert kept.keys() == whole.state_dict().keys() and "embedding.weight" in moved


def test_a_share_is_told_as_a_share(tmp_path, capsys):
    run(tmp_path, "mixers", progress=True)
    lines = course(tmp_path)
    assert all(line["unit"] == "unexplained share" and "bits" not in line for line in lines)
    assert [line["step"] for line in lines if "held_out_unexplained_share" in line] == [3, 6]
    assert not any("held_out_bits_per_byte" in line for line in lines)
    assert 0 < lines[-1]["held_out_unexplained_share"] < lines[2]["held_out_unexplained_share"]
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    assert metrics[-1].held_out_unexplained_share == lines[-1]["held_out_unexplained_share"]
    assert f"held out {lines[-1]['held_out_unexplained_share']:.3f} unexplained" in capsys.readouterr().err


def test_of_logits_the_text_that_is_held_out_costs_what_it_costs(tmp_path):
    """Bits per byte, not the divergence."""
    student = run(tmp_path, "logits")
    held_out = held_out_batches(PackedRows(DOCUMENTS, CONFIG.row_length, 9), CONFIG, HeldOutConfig(every=3))
    expected = read_held_out(start_accelerator("cpu"), student, next_token_loss, held_out).bits_per_byte
    assert course(tmp_path)[-1]["held_out_bits_per_byte"] == pytest.approx(expected, rel=1e-6)
    assert "unit" not in course(tmp_path)[-1]
