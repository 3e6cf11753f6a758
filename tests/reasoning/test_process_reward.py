"""Process rewards: a tiny judge learns what makes a path hopeless, from the truth and from rollouts alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from toy_policies import FORMAT, TOKENIZER, VowelsTask, make_policy, problems_of, with_changes

from mnemonist.errors import UserError
from mnemonist.reasoning.ledger import Ledger
from mnemonist.reasoning.process_reward import ProcessRewardModel, ProcessScorer, StepReader, train_process_reward
from mnemonist.reasoning.step_labels import Labelled, gold_labels, random_path
from mnemonist.reasoning.step_quality import step_quality

TASK = VowelsTask()
EXAMPLES = [gold_labels(TASK, problem, random_path(TASK, problem, seed=0)) for problem in problems_of(TASK, 160)]
OTHERS = [gold_labels(TASK, problem, random_path(TASK, problem, seed=1)) for problem in problems_of(TASK, 100, "test")]
CONFIG = with_changes(batch_size=32, learning_rate=5e-3, warmup_steps=5)


def make() -> ProcessRewardModel:
    return ProcessRewardModel(make_policy())


def fit(
    model: ProcessRewardModel, folder: Path, examples: list[Labelled] = EXAMPLES, epochs: int = 10, **more: Any
) -> None:
    train_process_reward(model, examples, TOKENIZER, FORMAT, CONFIG, folder, epochs=epochs, progress=False, **more)


def quality(model: ProcessRewardModel) -> Any:
    scores = ProcessScorer(model, TOKENIZER, FORMAT).score_steps([(one.problem, one.steps) for one in OTHERS])
    labels = [label for one in OTHERS for label in one.labels]
    return step_quality([score for path in scores for score in path], labels)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> ProcessRewardModel:
    model = make()
    fit(model, tmp_path_factory.mktemp("judge"))
    return model


def test_a_judge_learns_the_truth_and_knows_how_sure_to_be(trained: ProcessRewardModel) -> None:
    before, after = quality(make()), quality(trained)
    assert before.auc == 0.5  # without an opinion
    assert after.auc > 0.97
    assert min(after.f1_right, after.f1_wrong) > 0.9
    assert after.calibration_error < 0.1


def test_labels_that_are_all_the_same_teach_nothing(tmp_path: Path) -> None:
    right = [gold_labels(TASK, problem, TASK.solution(problem)) for problem in problems_of(TASK, 4)]
    with pytest.raises(UserError, match="all steps are labelled 1, so there is nothing to tell apart"):
        fit(make(), tmp_path / "run", right)
    assert not (tmp_path / "run").exists()


def test_what_went_wrong_before_counts_after(trained: ProcessRewardModel) -> None:
    scorer, problem = ProcessScorer(trained, TOKENIZER, FORMAT), OTHERS[0].problem
    good, late, early = scorer.score_steps([(problem, path) for path in (["a", "e"], ["a", "b"], ["b", "a"])])
    assert good[1] > 0.8
    assert late[0] > 0.5 > late[1]
    assert early[1] < 0.5  # a vowel, but too late
    assert late[0] == pytest.approx(good[0], abs=1e-5)  # what comes behind a step changes nothing


def test_soft_labels_are_learned_as_shares(tmp_path: Path) -> None:
    model = make()
    soft = [Labelled(one.problem, one.steps[:1], (0.3,)) for one in EXAMPLES]
    fit(model, tmp_path, soft, epochs=20)
    scores = ProcessScorer(model, TOKENIZER, FORMAT).score_steps([(one.problem, one.steps[:1]) for one in OTHERS])
    assert sum(path[0] for path in scores) / len(scores) == pytest.approx(0.3, abs=0.03)


def test_scores_do_not_depend_on_their_batch_and_are_charged(trained: ProcessRewardModel) -> None:
    paths: list[list[str]] = [["a"], ["a", "b", "c"], ["e", "a"]]
    problem, ledger = OTHERS[3].problem, Ledger()
    together = ProcessScorer(trained, TOKENIZER, FORMAT).score(problem, paths, ledger)
    alone = [ProcessScorer(trained, TOKENIZER, FORMAT, 1).score(problem, [path], Ledger())[0] for path in paths]
    assert together == pytest.approx(alone, abs=1e-5)
    read = sum(len(StepReader(TOKENIZER, FORMAT).ids(problem, path)[0]) for path in paths)
    parameters = sum(parameter.numel() for parameter in trained.parameters())
    assert (ledger.reward_tokens, ledger.calls, ledger.flops) == (read, 3, 2.0 * parameters * read)
    assert ledger.generated_tokens == ledger.prompt_tokens == 0
    assert ledger.seconds > 0
    with pytest.raises(ValueError, match="A path has no steps"):
        ProcessScorer(trained, TOKENIZER, FORMAT).score(problem, [["a"], []], ledger)


def test_a_judge_does_not_doubt_while_it_is_asked() -> None:
    model = ProcessRewardModel(make_policy(dropout=0.5)).train()
    torch.nn.init.normal_(model.head.weight)
    scorer = ProcessScorer(model, TOKENIZER, FORMAT)
    one, same = (scorer.score(OTHERS[0].problem, [["a", "e"], ["b"]], Ledger()) for _ in range(2))
    assert one == same
    assert model.training


def test_a_step_ends_where_its_line_does() -> None:
    ids, ends = StepReader(TOKENIZER, FORMAT).ids(OTHERS[0].problem, ["ab", "c"])
    assert bytes(ids[1:]) == b"0?\nab\nc\n"
    assert [ids[end] for end in ends] == [10, 10] and ends[1] == len(ids) - 1
    batch = StepReader(TOKENIZER, FORMAT).stack([(OTHERS[0].problem, ["ab", "c"]), (OTHERS[0].problem, ["a"])])
    assert batch["ends"].sum(1).tolist() == [2, 1]
    assert batch["attention"].sum(1).tolist() == [len(ids), len(ids) - 3]


def test_a_judge_is_saved_and_loaded(trained: ProcessRewardModel, tmp_path: Path) -> None:
    path = tmp_path / "judge.safetensors"
    trained.save(path)
    other = ProcessRewardModel(make_policy(seed=5))
    other.load(path)
    own, loaded = trained.state_dict(), other.state_dict()
    assert all(torch.equal(own[name], loaded[name]) for name in own)
    wider = ProcessRewardModel(make_policy(width=16))
    before = {name: value.clone() for name, value in wider.state_dict().items()}
    with pytest.raises(UserError, match="is of another kind of model: it differs in 'head.weight'"):
        wider.load(path)
    assert all(torch.equal(value, before[name]) for name, value in wider.state_dict().items())
    with pytest.raises(UserError, match="there is no file"):
        other.load(tmp_path / "missing.safetensors")


def test_tied_weights_are_saved_once(tmp_path: Path) -> None:
    def tied(seed: int) -> ProcessRewardModel:
        model = make_policy(seed=seed)
        model.lm_head.weight = model.model.embed_tokens.weight
        return ProcessRewardModel(model)

    one, other = tied(1), tied(2)
    assert one.model.lm_head.weight.requires_grad  # it is the input's matrix too
    one.save(tmp_path / "tied.safetensors")
    other.load(tmp_path / "tied.safetensors")
    assert torch.equal(one.model.lm_head.weight, other.model.lm_head.weight)


def test_the_matrix_that_scores_tokens_is_left_alone(trained: ProcessRewardModel) -> None:
    assert torch.equal(trained.model.lm_head.weight, make_policy().lm_head.weight)
    assert not trained.model.lm_head.weight.requires_grad


def test_a_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    from mnemonist.training import load_checkpoint

    one, other = make(), make()
    fit(one, tmp_path, epochs=2)
    fit(other, tmp_path, epochs=2, resume=True)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
    assert load_checkpoint(tmp_path / "checkpoint").step == 10


def test_no_labels_and_no_width_are_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no labelled paths"):
        fit(make(), tmp_path, [])
    with pytest.raises(UserError, match="Linear does not say how wide it is"):
        ProcessRewardModel(torch.nn.Linear(2, 2))
