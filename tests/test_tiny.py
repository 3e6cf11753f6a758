"""The whole promise in one file: fast equals its definition, a stream resumes, layers chain, a model trains."""

from __future__ import annotations

import torch

from mnemonist.data import Document
from mnemonist.memory import RULES, MemoryState, initial_weights, memorize
from mnemonist.models import LanguageModel, ModelConfig, NeuralMemory
from mnemonist.training import TrainingConfig, read_metrics, train
from mnemonist.training.language import next_token_loss, packed_batches

TINY = ModelConfig(
    blocks=("mag", "lmm"),
    rule="titans:chunk_size=8,expansion=2",
    width=16,
    heads=2,
    head_dim=8,
    memory_heads=2,
    memory_head_dim=8,
    window=8,
    mlp_width=32,
)


def tokens_and_gates(T: int, dtype: torch.dtype = torch.float64) -> tuple[list[torch.Tensor], dict]:
    torch.manual_seed(0)
    q, k = (torch.nn.functional.normalize(torch.randn(1, T, 2, 4, dtype=dtype), dim=-1) for _ in range(2))
    gates = {
        "step_size": torch.rand(1, T, 2, dtype=dtype) * 0.1,
        "log_momentum": torch.rand(1, T, 2, dtype=dtype).log(),
        "log_decay": -torch.rand(1, T, 2, dtype=dtype) * 0.1,
    }
    return [q, k, torch.randn(1, T, 2, 4, dtype=dtype)], gates


def test_fast_equals_definition():
    for name in ("titans", "titans-linear"):
        rule = RULES[name].replace(chunk_size=8)
        (q, k, v), gates = tokens_and_gates(27)
        initial = initial_weights(rule, 2, 4, 4, dtype=torch.float64)
        fast = memorize(rule, q, k, v, initial=initial, **gates)
        slow = memorize(rule, q, k, v, initial=initial, backend="recurrent", **gates)
        assert fast.backend != slow.backend
        assert (fast.y - slow.y).abs().max() < 1e-10
        assert (fast.state.weights[-1] - slow.state.weights[-1]).abs().max() < 1e-10


def test_a_stream_is_cut_saved_and_resumed(tmp_path):
    rule = RULES["titans"].replace(chunk_size=8)
    (q, k, v), gates = tokens_and_gates(27)
    initial = initial_weights(rule, 2, 4, 4, dtype=torch.float64)
    whole = memorize(rule, q, k, v, initial=initial, **gates)
    cut = [{n: g[:, part] for n, g in gates.items()} for part in (slice(0, 13), slice(13, 27))]
    first = memorize(rule, q[:, :13], k[:, :13], v[:, :13], initial=initial, **cut[0])
    first.state.save(tmp_path / "state.safetensors")
    state = MemoryState.load(tmp_path / "state.safetensors")
    second = memorize(rule, q[:, 13:], k[:, 13:], v[:, 13:], initial=initial, state=state, **cut[1])
    assert (torch.cat([first.y, second.y], 1) - whole.y).abs().max() < 1e-10


def test_layers_chain():
    x = torch.randn(2, 20, 16)
    for rule in RULES:
        layers = torch.nn.ModuleList([NeuralMemory(16, 2, 8, rule), NeuralMemory(16, 2, 8, rule)])
        y = x
        for layer in layers:
            y, _, _ = layer(y)
        assert y.shape == x.shape and y.isfinite().all()


def test_a_model_learns_a_text_by_heart(tmp_path):
    documents = [Document("rhyme", b"one for sorrow, two for joy, three for a girl and four for a boy. " * 40)]
    config = TrainingConfig(steps=60, batch_size=4, row_length=64, warmup_steps=5, learning_rate=2e-2, log_every=1)
    torch.manual_seed(0)
    model = LanguageModel(TINY)
    train(model, packed_batches(documents, config), next_token_loss, config, tmp_path, progress=False)
    losses = [line.loss for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert losses[0] > 5 > 1.0 > losses[-1]
