"""Online learners are what they are called, and a linear memory is one of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mnemonist.evals.regression import Regression, averaging, kaczmarz, predict, recursive_least_squares, ridge
from mnemonist.memory import find_rule, memorize
from mnemonist.models import LanguageModel, ModelConfig
from mnemonist.training import TrainingConfig


def error(found, y, d):
    return ((found - y) ** 2).mean(0) / d


def test_least_squares_knows_all_after_d_points_and_half_after_half():
    x, y, _ = Regression(dim=6).draw(400, 0)
    errors = error(ridge(x, y, 0.0), y, 6)
    assert errors[0] == pytest.approx(1, abs=0.1)  # E[y^2] / d
    assert errors[3] == pytest.approx(0.5, abs=0.1)  # half of the directions are known
    assert errors[6:].max() < 1e-12


def test_recursive_least_squares_is_ridge_and_ridge_is_best():
    x, y, _ = Regression(dim=5, noise=0.5).draw(400, 0)
    best = ridge(x, y, 0.5)
    np.testing.assert_allclose(recursive_least_squares(x, y, 0.5), best, atol=1e-9)
    for other in (ridge(x, y, 0.0), ridge(x, y, 2.0), kaczmarz(x, y), averaging(x, y)):
        assert error(best, y, 5)[1:].mean() < error(other, y, 5)[1:].mean()


def test_learners_by_hand():
    x, y = np.array([[[2.0, 0.0], [1.0, 1.0], [0.0, 3.0]]]), np.array([[4.0, 0.0, 5.0]])
    assert kaczmarz(x, y).tolist() == [[0.0, 2.0, -3.0]]  # w: (2, 0), then (1, -1)
    assert averaging(x, y).tolist() == [[0.0, 8.0, 0.0]]  # means of x y: (8, 0), then (4, 0)
    assert ridge(x, y, 0.0)[0].tolist() == pytest.approx([0.0, 2.0, -6.0])  # w: (2, 0), then (2, -2)


def test_a_linear_memory_is_the_delta_rule():
    x, y, _ = Regression(dim=4).draw(3, 0)
    keys = torch.from_numpy(x)
    norms = keys.norm(dim=-1, keepdim=True)
    k = (keys / norms)[:, :, None]
    v = (torch.from_numpy(y)[..., None] / norms)[:, :, None]
    rule = find_rule("deltanet").replace(read_at="before")
    read = memorize(rule, k, k, v, step_size=torch.ones(3, 9, 1, dtype=torch.float64),
                    initial=[torch.zeros(1, 4, 1, dtype=torch.float64)])  # fmt: skip
    np.testing.assert_allclose((read.y[:, :, 0, 0] * norms[..., 0]).numpy(), kaczmarz(x, y), atol=1e-12)


def small(dim):
    torch.manual_seed(0)
    config = ModelConfig(blocks=("lmm", "lmm"), rule="deltanet", vocab_size=dim + 3, width=32, memory_heads=2,
                         memory_head_dim=8, mlp_width=32)  # fmt: skip
    return LanguageModel(config)


def test_a_model_learns_from_it_and_sees_no_answer_beforehand():
    suite, model = Regression(dim=2, points=6), small(2)
    batch_of = suite.batches(TrainingConfig(steps=30, warmup_steps=0, batch_size=32))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    batch = batch_of(0, 0, 0, 1)
    for _ in range(30):
        loss = suite.loss(model, batch)
        assert loss.targets == 32 * 6
        optimiser.zero_grad()
        (loss.loss / loss.targets).backward()
        assert all(p.grad is not None for p in model.parameters())
        optimiser.step()
        losses.append(float(loss.loss.detach()) / loss.targets)
    assert losses[-1] < 0.8 * losses[0]
    with torch.no_grad():
        before = predict(model, batch["x"], batch["shown"])
        changed = batch["shown"].clone()
        changed[:, 3] += 1
        after = predict(model, batch["x"], changed)
    assert torch.equal(before[:, :4], after[:, :4]) and not torch.allclose(before[:, 4:], after[:, 4:])


def test_rows_are_errors_of_the_models_predictions():
    suite, model = Regression(dim=3, points=4, count=70), small(3).eval()
    rows = list(suite.run(model, suite.steps[0], lambda n: None))
    x, y, _ = suite.draw(70, 0)
    with torch.no_grad():
        found = predict(model, torch.from_numpy(x).float(), torch.from_numpy(y).float()).numpy()
    assert [row.setting for row in rows] == [{"seen": i} for i in range(4)]
    assert [row.mean for row in rows] == pytest.approx(error(found, y, 3), rel=1e-4)
    beside = suite.references()
    assert set(beside) == {"ridge (best)", "delta rule", "averaging"}
    assert beside["delta rule"][2].mean == pytest.approx(error(kaczmarz(x, y), y, 3)[2])
    assert "least squares" in Regression(noise=0.1, count=2).references()


def test_what_is_shown_may_be_wrong_and_what_is_asked_for_is_right():
    suite = Regression(dim=3, points=8, outliers=0.2, count=3000)
    x, y, shown = suite.draw(3000, 0)
    wrong = shown != y
    assert wrong.mean() == pytest.approx(0.2, abs=0.01) and shown[wrong].std() == pytest.approx(10, abs=0.3)
    w = np.linalg.pinv(x) @ y[..., None]
    np.testing.assert_allclose((x @ w)[..., 0], y, atol=1e-8)
    beside = suite.references()
    told = [row.mean for row in beside["ridge, told what is wrong (best)"]]
    assert set(beside) == {"ridge", "delta rule", "averaging", "ridge, told what is wrong (best)"}
    assert all(best < min(rows[i].mean for name, rows in beside.items() if "best" not in name)
               for i, best in enumerate(told) if i)  # fmt: skip
    # After two pairs that are right one direction of three is left; two are with a chance of 0.64, and so on.
    assert told[2] == pytest.approx(0.64 / 3 + 0.32 * 2 / 3 + 0.04, abs=0.03)
    batch = suite.batches(TrainingConfig(steps=1, batch_size=64))(0, 0, 0, 1)
    assert (batch["shown"] != batch["y"]).any()
    assert suite.identity()["outliers"] == 0.2 and "outliers" not in Regression().identity()


@pytest.mark.parametrize("outliers", [-0.1, 1.0, float("nan")])
def test_a_probability_is_one(outliers):
    with pytest.raises(ValueError, match="it is a probability below 1"):
        Regression(outliers=outliers)


@pytest.mark.parametrize(
    "fields", [{"dim": 0}, {"points": -1}, {"noise": -0.1}, {"noise": float("nan")}, {"noise": float("inf")}]
)
def test_bad_fields(fields):
    with pytest.raises(ValueError, match="must be at least 1, the others 0"):
        Regression(**fields)
