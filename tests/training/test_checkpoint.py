"""A checkpoint comes back bit by bit, or is refused in a sentence; a killed writer leaves one that works."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mnemonist.errors import UserError
from mnemonist.training.checkpoint import load_checkpoint, restore_model, save_checkpoint, saved_step
from mnemonist.training.configuration import TrainingConfig
from mnemonist.training.optimiser import load_optimiser_tensors, make_optimiser, optimiser_tensors
from mnemonist.training.randomness import capture_random_state

RNG = [capture_random_state(torch.device("cpu"))]


class Tied(nn.Module):
    """Tied weights, buffers kept and not kept, odd memory layouts, several dtypes, an empty tensor."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight
        self.turned = nn.Parameter(torch.randn(4, 2).to(torch.bfloat16).t())
        self.register_buffer("count", torch.tensor(seed + 7))
        self.register_buffer("part", torch.randn(10)[2:5])
        self.register_buffer("empty", torch.empty(0))
        self.register_buffer("also_empty", torch.empty(0))
        self.register_buffer("scratch", torch.randn(3), persistent=False)

    def forward(self) -> torch.Tensor:
        return self.head(self.embedding(torch.arange(5))).square().sum() + self.turned.float().sum()


class WithExtraState(nn.Module):
    def get_extra_state(self) -> dict[str, int]:
        return {"a": 1}


def trained(steps: int, seed: int = 0) -> tuple[Tied, torch.optim.Optimizer]:
    model = Tied(seed)
    optimiser = make_optimiser(model, TrainingConfig())
    for _ in range(steps):
        optimiser.zero_grad()
        model().backward()
        optimiser.step()
    return model, optimiser


def save(folder: Path, steps: int = 2, **extra: object) -> tuple[Tied, torch.optim.Optimizer]:
    model, optimiser = trained(steps)
    save_checkpoint(folder, model, optimiser, steps, RNG, extra, config={"seed": 3}, seconds=1.5)
    return model, optimiser


def test_everything_comes_back(tmp_path: Path) -> None:
    model, optimiser = save(tmp_path / "c", corpus="the text", epochs=[1, 2])
    checkpoint = load_checkpoint(tmp_path / "c")
    assert (checkpoint.step, checkpoint.seconds, checkpoint.config) == (2, 1.5, {"seed": 3})
    assert checkpoint.extra == {"corpus": "the text", "epochs": [1, 2]}
    assert json.dumps(checkpoint.rng) == json.dumps(RNG)

    other, _ = trained(0, seed=1)
    scratch = other.scratch.clone()
    restore_model(other, checkpoint)
    assert other.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
        assert other.state_dict()[name].dtype == value.dtype, name
    assert torch.equal(other.scratch, scratch)
    assert other.head.weight is other.embedding.weight

    new = make_optimiser(other, TrainingConfig())
    load_optimiser_tensors(new, other, checkpoint.optimiser)
    expected, found = optimiser_tensors(optimiser, model), optimiser_tensors(new, other)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_the_files_are_plain_and_hold_tied_weights_once(tmp_path: Path) -> None:
    save(tmp_path / "c")
    assert sorted(os.listdir(tmp_path)) == ["c"]
    assert sorted(os.listdir(tmp_path / "c")) == ["model.safetensors", "optimiser.safetensors", "state.json"]
    names = load_file(tmp_path / "c" / "model.safetensors").keys()
    assert names == {"embedding.weight", "turned", "count", "part", "empty", "also_empty"}


def test_a_new_checkpoint_takes_the_place_of_the_old(tmp_path: Path) -> None:
    save(tmp_path / "c", steps=1)
    save(tmp_path / "c", steps=2)
    assert load_checkpoint(tmp_path / "c").step == 2
    assert os.listdir(tmp_path) == ["c"]


def test_what_cannot_be_saved_is_said_and_the_old_one_stays(tmp_path: Path) -> None:
    model, optimiser = save(tmp_path / "c", steps=1)
    for extra in ({"model": model}, {"loss": float("nan")}):
        with pytest.raises(UserError, match="JSON values only"):
            save_checkpoint(tmp_path / "c", model, optimiser, 2, RNG, extra, config={})
    model.register_module("further", WithExtraState())
    with pytest.raises(UserError, match=r"keeps a dict as 'further\._extra_state'"):
        save_checkpoint(tmp_path / "c", model, optimiser, 2, RNG, {}, config={})
    assert load_checkpoint(tmp_path / "c").step == 1


@pytest.mark.parametrize("name", ["model.safetensors", "optimiser.safetensors", "state.json"])
def test_missing_truncated_and_foreign_files_are_refused(tmp_path: Path, name: str) -> None:
    save(tmp_path / "c")
    path = tmp_path / "c" / name
    whole = path.read_bytes()
    path.unlink()
    with pytest.raises(UserError, match=f"{name}: the file is missing"):
        load_checkpoint(tmp_path / "c")
    for size in (0, 4, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=f"{name}: the file is truncated"):
            load_checkpoint(tmp_path / "c")
    path.write_bytes(b"[1, 2]" if name == "state.json" else b"PK\x03\x04 a pickle, say")
    with pytest.raises(UserError, match=name) as caught:
        load_checkpoint(tmp_path / "c")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "format version 2 and this mnemonist reads up to 1; install a newer one"),
        ({"version": 0}, "missing or wrong"),
        ({"format": "another"}, "not written by mnemonist"),
        ({"step": "2"}, "'step' is missing or wrong"),
        ({"step": 3}, "does not belong to the checkpoint of step 3"),
        ({"rng": [1]}, "missing or wrong"),
        ({"extra": None}, "'extra' is missing or wrong"),
    ],
)
def test_a_state_that_makes_no_sense_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    save(tmp_path / "c")
    path = tmp_path / "c" / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=message):
        load_checkpoint(tmp_path / "c")


def test_files_of_different_checkpoints_are_not_mixed(tmp_path: Path) -> None:
    save(tmp_path / "one", steps=1)
    save(tmp_path / "two", steps=2)
    (tmp_path / "one" / "optimiser.safetensors").replace(tmp_path / "two" / "optimiser.safetensors")
    with pytest.raises(UserError, match=r"optimiser\.safetensors: the file does not belong"):
        load_checkpoint(tmp_path / "two")


@pytest.mark.parametrize("tied", ["3", "{", '{"head.weight": "nowhere"}', '{"head.weight": []}'])
def test_a_wrong_list_of_tied_tensors_is_refused(tmp_path: Path, tied: str) -> None:
    save(tmp_path / "c")
    path = tmp_path / "c" / "model.safetensors"
    save_file(load_file(path), path, {"step": "2", "tied": tied})
    with pytest.raises(UserError, match="tied"):
        load_checkpoint(tmp_path / "c")


def test_no_checkpoint_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no checkpoint in"):
        load_checkpoint(tmp_path / "c")


def test_the_step_is_told_without_reading_tensors(tmp_path: Path) -> None:
    assert saved_step(tmp_path / "checkpoint") == 0
    save(tmp_path / "checkpoint", steps=3)
    (tmp_path / "checkpoint" / "model.safetensors").unlink()
    assert saved_step(tmp_path / "checkpoint") == 3
    (tmp_path / "checkpoint" / "state.json").write_text("{")
    with pytest.raises(UserError, match=r"state.json: the file is truncated or no JSON"):
        saved_step(tmp_path / "checkpoint")


def test_another_model_is_refused_and_left_alone(tmp_path: Path) -> None:
    save(tmp_path / "c")
    checkpoint = load_checkpoint(tmp_path / "c")
    wider, fewer, more = Tied(1), Tied(1), Tied(1)
    wider.turned = nn.Parameter(torch.zeros(3, 3))
    del fewer.turned
    more.extra = nn.Parameter(torch.zeros(1))
    cases = [
        (wider, r"'turned' has shape \(2, 4\) there and \(3, 3\) here"),
        (fewer, "also has 'turned'"),
        (more, "lacks 'extra'"),
    ]
    for model, message in cases:
        before = model.embedding.weight.detach().clone()
        with pytest.raises(UserError, match=message):
            restore_model(model, checkpoint)
        assert torch.equal(model.embedding.weight, before)


def killed_savers(folder: Path) -> list[int]:
    """Save step 2 over step 1 again and again, each time killed one file operation later; what is left.

    Every operation on files raises an audit event just before it happens, and there the process kills itself.
    """
    left = []
    died = True
    while died:
        target = folder / str(len(left)) / "checkpoint"
        save(target, steps=1)
        model, optimiser = trained(2)
        child = os.fork()
        if child == 0:
            _kill_myself_at_operation(len(left))
            save_checkpoint(target, model, optimiser, 2, RNG, {}, config={})
            os._exit(0)
        died = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        checkpoint = load_checkpoint(target)
        other = Tied(1)
        restore_model(other, checkpoint)
        assert torch.equal(other.embedding.weight, trained(checkpoint.step)[0].embedding.weight)
        left.append(checkpoint.step)
    return left


def _kill_myself_at_operation(number: int) -> None:
    events = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir", "shutil.rmtree"}
    seen = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event in events:
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1

    sys.addaudithook(hook)


def test_a_saver_killed_at_any_file_operation_leaves_a_checkpoint(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, __file__, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert run.returncode == 0, run.stderr
    left = json.loads(run.stdout)
    assert len(left) > 10, "the child was to die at every one of many operations"
    assert left == sorted(left), "once the new checkpoint is in place it must stay"
    assert (left[0], left[-1]) == (1, 2)


if __name__ == "__main__":
    print(json.dumps(killed_savers(Path(sys.argv[1]))))
