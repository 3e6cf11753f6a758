"""The models that come with the package open like any other, are equals, and do what their card says."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from mnemonist.data import find_tokenizer
from mnemonist.errors import UserError
from mnemonist.evals.planted import Planted
from mnemonist.evals.problems import draw
from mnemonist.evals.scoring import score
from mnemonist.models import SHIPPED, LanguageModel, find_model, model_cost, register
from mnemonist.models.shipped import folder_of

MEMORY, WINDOW = (find_model(f"shipped/{name}") for name in ("memory", "window"))


def test_they_are_small_and_two_are_equal():
    files = [path for path in MEMORY.parent.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 20 * 2**20
    memory, window = (LanguageModel.load(path) for path in (MEMORY, WINDOW))
    assert memory.parameter_count == pytest.approx(window.parameter_count, rel=0.01)
    assert memory.config.window == window.config.window
    assert memory.config.has_memory and not window.config.has_memory
    assert model_cost(memory.config).state_bytes_per_token == 0
    card = (MEMORY.parent / "README.md").read_text()
    assert all(name in card for name in SHIPPED) and f"{memory.parameter_count:,}" in card


def test_the_memory_recalls_what_the_window_cannot_see():
    recalled = {}
    for path in (MEMORY, WINDOW):
        model = LanguageModel.load(path).eval()
        recalled[path] = score(model, draw(Planted(), {"distance": 1024}, 20)).problems.mean()
    assert recalled[MEMORY] >= 0.5 and recalled[WINDOW] == 0


@pytest.mark.parametrize("name", SHIPPED)
def test_transformers_opens_them_too(name):
    register()
    folder = find_model(name)
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    model = LanguageModel.load(folder).eval()
    ids = torch.from_numpy(find_tokenizer(folder, model.config.vocab_size).encode("Make 28 from 12 4 5.", bos=True))[
        None
    ]
    with torch.no_grad():
        assert torch.equal(theirs(input_ids=ids).logits, model(ids).logits)


def test_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_model("runs/mine").as_posix() == "runs/mine"
    with pytest.raises(
        UserError, match=r"no model shipped/memroy \(did you mean 'shipped/memory'\?\); with the package"
    ):
        find_model("shipped/memroy")
    (tmp_path / "shipped" / "memory").mkdir(parents=True)
    assert find_model("shipped/memory").as_posix() == "shipped/memory"  # one's own comes first


def test_the_folder_that_a_path_is_in(tmp_path):
    (tmp_path / "model.safetensors").touch()
    assert folder_of(tmp_path) == folder_of(tmp_path / "model.safetensors") == tmp_path
    assert folder_of("shipped/memory") == MEMORY
