"""The promise of the loop: exact gradients however a step is cut, exact continuation however it stopped."""

import dataclasses
import json
import math
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from toy_training import CONFIG, batches, course, loss_of, make_model, noisy_loss_of, run_program

from mnemonist.errors import CannotGoOn, UserError
from mnemonist.models import LanguageModel, ModelConfig
from mnemonist.training.accelerator import flushing_denormals, start_accelerator
from mnemonist.training.checkpoint import load_checkpoint
from mnemonist.training.configuration import TrainingConfig
from mnemonist.training.gradients import LossSum, normalise_and_clip
from mnemonist.training.language import next_token_loss
from mnemonist.training.loop import TrainingResult, train
from mnemonist.training.metrics import StepMetrics, read_metrics
from mnemonist.training.schedule import learning_rate

OnStep = Callable[[StepMetrics], None]


def run(
    folder: Path,
    config: TrainingConfig = CONFIG,
    *,
    dropout: float = 0.3,
    model: nn.Module | None = None,
    loss: Callable[[nn.Module, Any], LossSum] = noisy_loss_of,
    resume: bool = False,
    extra: dict[str, Any] | None = None,
    on_step: OnStep | None = None,
    **more: Any,
) -> TrainingResult:
    model = make_model(dropout) if model is None else model
    return train(
        model,
        batches(config),
        loss,
        config,
        folder,
        resume=resume,
        extra=extra,
        progress=False,
        on_step=on_step,
        **more,
    )


def with_changes(**changes: Any) -> TrainingConfig:
    return dataclasses.replace(CONFIG, **changes)


class Stop(Exception):
    """A crash, as far as the loop can tell."""


def stop_after(step: int, how: Callable[[], None]) -> OnStep:
    def on_step(metrics: StepMetrics) -> None:
        if metrics.step == step:
            how()

    return on_step


def crash() -> None:
    raise Stop


def same_weights(one: Path, other: Path) -> bool:
    left, right = load_checkpoint(one / "checkpoint"), load_checkpoint(other / "checkpoint")
    tensors = [(left.model, right.model), (left.optimiser, right.optimiser)]
    return all(a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in tensors)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all steps that never stopped."""
    folder = tmp_path_factory.mktemp("straight")
    result = run(folder)
    assert (result.step, result.interrupted, result.checkpoint) == (12, False, folder / "checkpoint")
    return folder


# What a step is.


def test_every_step_is_adamw_on_the_mean_over_all_targets(tmp_path: Path) -> None:
    config = with_changes(weight_decay=0.1, clip_norm=0.5, steps=4, warmup_steps=2)
    model, reference = make_model(0.0), make_model(0.0)
    run(tmp_path, config, model=model, loss=loss_of)

    batch_of = batches(dataclasses.replace(config, accumulation=1))
    weights = [p for p in reference.parameters() if p.ndim == 2]
    rest = [p for p in reference.parameters() if p.ndim < 2]
    adamw = torch.optim.AdamW([{"params": weights}, {"params": rest, "weight_decay": 0.0}], betas=config.betas)
    adamw.param_groups[0]["weight_decay"] = 0.1
    for step, logged in enumerate(course(tmp_path)):
        x_BTD, y_BT = batch_of(step, 0, 0, 1)
        loss = nn.functional.cross_entropy(reference(x_BTD).flatten(0, 1), y_BT.flatten())
        adamw.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
        for group in adamw.param_groups:
            group["lr"] = learning_rate(step, config)
        adamw.step()
        assert logged["loss"] == pytest.approx(loss.item(), rel=1e-6)
        assert logged["grad_norm"] == pytest.approx(norm.item(), rel=1e-5)
        assert logged["learning_rate"] == learning_rate(step, config)
        assert logged["tokens"] == (step + 1) * 8 * 6
    for own, expected in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-6)


def test_the_cut_of_a_step_does_not_matter(tmp_path: Path) -> None:
    courses = []
    for accumulation in (1, 2, 8):  # rows have different numbers of targets: a mean of means would differ
        run(tmp_path / str(accumulation), with_changes(accumulation=accumulation), dropout=0.0, loss=loss_of)
        courses.append(course(tmp_path / str(accumulation)))
    for other in courses[1:]:
        for one, two in zip(courses[0], other, strict=True):
            assert two == pytest.approx(one, rel=1e-4)


def test_a_part_without_targets_counts_nothing(tmp_path: Path) -> None:
    def half_masked(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> LossSum:
        x_BTD, y_BT = batch
        y_BT = y_BT.clone()
        y_BT[-4:] = -100  # with two micro-batches of four rows all of it, with one of eight the second half
        part = loss_of(model, (x_BTD, y_BT))
        return LossSum(part.loss, int(part.targets))

    def first_micro_only(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> LossSum:
        return loss_of(model, batch) if calls.pop(0) else half_masked(model, batch)

    calls = [True, False] * 4
    config = with_changes(steps=4)
    run(tmp_path / "two", config, dropout=0.0, loss=first_micro_only)
    run(tmp_path / "one", dataclasses.replace(config, accumulation=1), dropout=0.0, loss=half_masked)
    for one, two in zip(course(tmp_path / "one"), course(tmp_path / "two"), strict=True):
        assert two == pytest.approx(one, rel=1e-4)


def test_gradients_are_normalised_and_clipped() -> None:
    accelerator = start_accelerator("cpu")
    for clip_norm, expected in ((None, [3.0, 4.0]), (10.0, [3.0, 4.0]), (1.0, [0.6, 0.8])):
        parameter = nn.Parameter(torch.zeros(2))
        parameter.grad = torch.tensor([6.0, 8.0])
        norm = normalise_and_clip(accelerator, [parameter], torch.tensor(2.0, dtype=torch.float64), clip_norm)
        assert norm.item() == pytest.approx(5.0)
        assert parameter.grad.tolist() == pytest.approx(expected, rel=1e-5)


def test_it_learns(tmp_path: Path) -> None:
    config = with_changes(steps=150, learning_rate=0.02, save_every=150, accumulation=1)
    result = run(tmp_path, config, dropout=0.0, loss=loss_of)
    assert result.loss is not None
    assert result.loss < 0.5 * course(tmp_path)[0]["loss"]


# Going on exactly.


def test_a_stop_and_a_resumption_change_nothing(straight: Path, tmp_path: Path) -> None:
    terminate = stop_after(4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    result = run(tmp_path, on_step=terminate, extra={"corpus": "a"})
    assert (result.step, result.interrupted) == (5, True)
    result = run(tmp_path, resume=True)
    assert (result.step, result.interrupted) == (12, False)
    assert course(tmp_path) == course(straight)
    assert same_weights(tmp_path, straight)
    assert load_checkpoint(tmp_path / "checkpoint").extra == {"corpus": "a"}


@pytest.mark.parametrize(("signal_name", "kept"), [("SIGINT", 8), ("SIGKILL", 5)])
def test_a_process_that_is_stopped_or_killed_can_be_resumed(
    straight: Path, tmp_path: Path, signal_name: str, kept: int
) -> None:
    process = run_program(tmp_path, signal_name, 7, 0.3)
    out, err = process.communicate(timeout=120)
    if signal_name == "SIGINT":
        assert (process.returncode, json.loads(out)) == (0, [8, True]), err
        assert "interrupted after step 8 of 12" in err
        assert "--resume" in err
    else:
        assert process.returncode == -signal.SIGKILL
        assert len(course(tmp_path)) == 7  # two steps further than the checkpoint
    assert load_checkpoint(tmp_path / "checkpoint").step == kept
    run(tmp_path, resume=True)
    assert course(tmp_path) == course(straight)
    assert same_weights(tmp_path, straight)


def test_a_crash_between_checkpoints_repeats_no_line(straight: Path, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        run(tmp_path, on_step=stop_after(9, crash))
    assert [record["step"] for record in course(tmp_path)] == list(range(1, 10))
    run(tmp_path, resume=True)
    assert course(tmp_path) == course(straight)


def test_how_often_is_saved_and_logged_may_change(straight: Path, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        run(tmp_path, with_changes(save_every=2, log_every=2), on_step=stop_after(7, crash))
    run(tmp_path, with_changes(save_every=7, log_every=4), resume=True)
    kept = [record for record in course(straight) if record["step"] in (2, 4, 6, 8, 12)]
    assert course(tmp_path) == kept
    assert same_weights(tmp_path, straight)


def test_a_finished_run_has_nothing_to_resume(straight: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in straight.rglob("*")}
    model = make_model()
    result = run(straight, model=model, resume=True, on_step=lambda metrics: crash())
    assert (result.step, result.interrupted) == (12, False)
    assert result.loss == course(straight)[-1]["loss"]
    assert {path: path.stat().st_mtime_ns for path in straight.rglob("*")} == before
    trained = load_checkpoint(straight / "checkpoint").model
    assert all(torch.equal(value, trained[name]) for name, value in model.state_dict().items())


def test_the_clock_goes_on(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        run(tmp_path, on_step=stop_after(6, crash))
    path = tmp_path / "checkpoint" / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "seconds": 1000.0}))
    result = run(tmp_path, resume=True)
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert records[4].seconds < 1000 < records[5].seconds < result.seconds < 1100
    assert all(record.tokens_per_second > 1 for record in records)  # not over the thousand seconds


def test_tokens_are_counted_as_they_were_read_and_go_on(tmp_path: Path) -> None:
    """Batches of other lengths than a row; a checkpoint of the time before tokens were counted is taken at its rows."""

    def longer(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> LossSum:
        part = loss_of(model, batch)
        calls.append(1)
        return LossSum(part.loss, part.targets, 10 * len(calls))

    calls: list[int] = []
    with pytest.raises(Stop):
        run(tmp_path, dropout=0.0, loss=longer, on_step=stop_after(5, crash))  # before the checkpoint of step 5
    assert [record["tokens"] for record in course(tmp_path)] == [30, 100, 210, 360, 550]
    run(tmp_path / "five", dropout=0.0, more=lambda step: step < 2, loss=longer)
    run(tmp_path / "five", resume=True, dropout=0.0, more=lambda step: step < 3, loss=longer)
    assert [record["tokens"] for record in course(tmp_path / "five")] == [230, 500, 810]
    path = tmp_path / "five" / "checkpoint" / "state.json"
    state = json.loads(path.read_text())
    assert state.pop("tokens") == 810
    path.write_text(json.dumps(state))
    run(tmp_path / "five", resume=True, dropout=0.0, more=lambda step: step < 4, loss=longer)
    assert course(tmp_path / "five")[-1]["tokens"] == 3 * 8 * 6 + 350


def test_two_processes_take_the_steps_of_one_and_stop_together(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        run_program(tmp_path / "two", "SIGINT", 4, 0.0, environment={**shared, "RANK": r, "LOCAL_RANK": r})
        for r in ("0", "1")
    ]
    for process in processes:  # only the second has been sent the signal
        out, err = process.communicate(timeout=120)
        assert (process.returncode, json.loads(out or "0")) == (0, [5, True]), err
    run(tmp_path / "one", dropout=0.0, loss=loss_of)
    two = course(tmp_path / "two")
    assert len(two) == 5
    for one, other in zip(course(tmp_path / "one"), two, strict=False):
        assert other == pytest.approx(one, rel=1e-4)
    assert len(load_checkpoint(tmp_path / "two" / "checkpoint").rng) == 2
    with pytest.raises(UserError, match=r"processes \(was 2, now 1\)"):
        run(tmp_path / "two", resume=True)


# What is refused.


def test_resuming_with_other_settings_names_them(straight: Path) -> None:
    config = with_changes(steps=20, learning_rate=0.5, betas=(0.5, 0.6))
    with pytest.raises(UserError) as caught:
        run(straight, config, resume=True)
    message = str(caught.value)
    assert (
        "betas (was [0.9, 0.95], now [0.5, 0.6]), learning_rate (was 0.001, now 0.5), steps (was 12, now 20)" in message
    )
    assert "seed" not in message


def test_the_warm_up_that_is_left_open_is_the_same_written_out(tmp_path: Path) -> None:
    """A checkpoint keeps how many steps it has, as those did of the time when a number had to be given."""
    config = with_changes(warmup_steps=None)
    run(tmp_path, config, more=lambda step: step < 2)
    assert load_checkpoint(tmp_path / "checkpoint").config["warmup_steps"] == 6
    assert [line["learning_rate"] for line in course(tmp_path)] == pytest.approx([1e-3 / 6, 2e-3 / 6])
    run(tmp_path, with_changes(warmup_steps=6), resume=True, more=lambda step: step < 3)
    assert run(tmp_path, config, resume=True).step == 12


def test_resuming_another_model_is_refused(straight: Path) -> None:
    with pytest.raises(UserError, match="of another model"):
        run(straight, model=nn.Linear(8, 5), resume=True)


def test_a_checkpoint_is_neither_overwritten_nor_imagined(straight: Path, tmp_path: Path) -> None:
    before = (straight / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="already has a checkpoint: go on with --resume, or take another folder"):
        run(straight)
    assert (straight / "metrics.jsonl").read_bytes() == before
    with pytest.raises(UserError, match=r"no checkpoint in .* to resume from"):
        run(tmp_path / "empty", resume=True)
    assert not (tmp_path / "empty").exists()


def test_extra_that_is_no_json_is_refused_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="JSON values only"):
        run(tmp_path, extra={"when": object()}, on_step=lambda metrics: crash())


@pytest.mark.parametrize("what", ["loss", "gradient norm"])
def test_a_step_that_is_not_finite_is_not_taken(tmp_path: Path, what: str) -> None:
    def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> LossSum:
        calls.append(1)
        part = noisy_loss_of(model, batch)
        if len(calls) <= 2 * 6:
            return part
        if what == "loss":
            return LossSum(part.loss * float("nan"), part.targets)
        weight = model[0].weight  # type: ignore[index]
        zero = (weight - weight.detach()).sum()
        return LossSum(part.loss + zero.sqrt(), part.targets)  # finite, with an infinite slope

    calls: list[int] = []
    model = make_model()
    weights: list[torch.Tensor] = []
    copy = stop_after(6, lambda: weights.extend(p.detach().clone() for p in model.parameters()))
    with pytest.raises(CannotGoOn) as caught:
        run(tmp_path, model=model, loss=loss, on_step=copy)
    message = str(caught.value)
    assert f"the run diverged at step 7: the {what} is" in message
    assert "checkpoint holds step 6" in message
    assert "start a new run in another folder with a lower learning_rate" in message
    assert "\n" not in message
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))
    kept = load_checkpoint(tmp_path / "checkpoint")
    assert kept.step == 6  # though only every fifth step is saved
    assert all(torch.equal(p, kept.model[name]) for name, p in model.named_parameters())


def test_a_memory_that_is_given_nan_is_a_run_that_diverged(tmp_path: Path) -> None:
    """What the memory says is of a caller's tensors; who trains has none, and is told what to do about the run."""
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(blocks=("lmm",), width=16, memory_heads=2, memory_head_dim=8, mlp_width=16))
    tokens = torch.randint(0, 256, (8, 6))

    def loss(model: nn.Module, batch: object) -> LossSum:
        return next_token_loss(model, {"tokens": tokens, "targets": tokens, "starts": torch.zeros(8, 6).bool()})

    def break_it() -> None:
        with torch.no_grad():
            model.embedding.weight.fill_(math.nan)

    with pytest.raises(CannotGoOn, match="the run diverged at step 3: step_size holds NaN") as caught:
        run(tmp_path, model=model, loss=loss, on_step=stop_after(2, break_it))
    assert "start a new run in another folder with a lower learning_rate" in str(caught.value)
    assert "check the inputs" not in str(caught.value)
    assert load_checkpoint(tmp_path / "checkpoint").step == 2


def test_a_step_without_targets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="step 1 has no targets"):
        run(tmp_path, loss=lambda model, batch: LossSum(loss_of(model, batch).loss, 0))


def test_a_step_without_targets_can_be_skipped(tmp_path: Path) -> None:
    def loss(model: nn.Module, batch: Any) -> LossSum:
        calls.append(1)
        part = loss_of(model, batch)
        return LossSum(0 * part.loss, 0) if 2 < len(calls) <= 4 else part

    calls: list[int] = []
    model = make_model(0.0)
    seen: list[dict[str, torch.Tensor]] = []

    def on_step(metrics: StepMetrics) -> None:
        seen.append({name: p.detach().clone() for name, p in model.named_parameters()})

    run(tmp_path, with_changes(steps=3, accumulation=2), model=model, loss=loss, on_step=on_step, skip_empty=True)
    first, second, third = seen
    assert all(torch.equal(first[name], second[name]) for name in first)  # the optimiser's memory moves nothing either
    assert not all(torch.equal(second[name], third[name]) for name in first)
    assert [metrics.loss == 0 for metrics in read_metrics(tmp_path / "metrics.jsonl")] == [False, True, False]


def test_a_run_ends_well_where_no_more_is_wanted(tmp_path: Path) -> None:
    end = run(tmp_path, more=lambda step: step < 7)
    assert (end.step, end.interrupted) == (7, False)
    assert load_checkpoint(tmp_path / "checkpoint").step == 7
    again = run(tmp_path, resume=True, more=lambda step: step < 7)
    assert (again.step, again.interrupted) == (7, False)
    nothing = run(tmp_path / "nothing", more=lambda step: False)
    assert (nothing.step, nothing.interrupted) == (0, False)
    assert not (tmp_path / "nothing" / "checkpoint").exists()


def test_a_run_that_cannot_go_on_keeps_what_it_has_learned(tmp_path: Path, straight: Path) -> None:
    def more(step: int) -> bool:
        if step == 7:
            raise CannotGoOn("there is nothing to read")
        return True

    with pytest.raises(CannotGoOn, match="there is nothing to read"):
        run(tmp_path, more=more)
    assert load_checkpoint(tmp_path / "checkpoint").step == 7
    run(tmp_path, resume=True)
    assert same_weights(tmp_path, straight)


def test_a_device_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="finds no CUDA device"):
        run(tmp_path, with_changes(device="cuda"))


# What is left behind.


def test_the_model_and_the_process_are_as_before(tmp_path: Path) -> None:
    model = make_model()
    before, handler = set(vars(model)), signal.getsignal(signal.SIGINT)
    flushed = []

    def on_step(metrics: StepMetrics) -> None:
        flushed.append(sys.float_info.min / 2 == 0.0)
        model.eval()  # an evaluation that forgets to go back

    run(tmp_path, model=model, on_step=on_step)
    assert set(vars(model)) == before
    assert signal.getsignal(signal.SIGINT) is handler
    assert flushed == [True] * 12
    assert sys.float_info.min / 2 > 0.0


def test_dropout_stays_on_after_an_evaluation(straight: Path, tmp_path: Path) -> None:
    model = make_model()
    run(tmp_path, model=model, on_step=lambda metrics: model.eval() and None)
    assert course(tmp_path) == course(straight)


def test_denormals_are_flushed_inside_only() -> None:
    tiny = torch.tensor(1e-30)
    with flushing_denormals(torch.device("cpu")):
        assert (tiny * 1e-10).item() == 0.0
        with flushing_denormals(torch.device("cpu")):
            pass
        assert (tiny * 1e-10).item() == 0.0, "an inner block must leave the outer one's setting"
    assert (tiny * 1e-10).item() > 0.0
