"""What does not fit is refused with one sentence that says what to do."""

from __future__ import annotations

import pytest
import torch
from oracle import make_inputs

from mnemonist.memory import RULES, initial_weights, memorize

TITANS, LINEAR, GLA = RULES["titans"], RULES["titans-linear"], RULES["gla"]
DOT = RULES["retnet"]


def inputs_of(rule, T=7, K=4, V=4, **kwargs):
    return make_inputs(rule, B=2, T=T, H=2, K=K, V=V, **kwargs)


def refused(rule, sentence, *, drop=(), **changes):
    """The reading with these changes is refused, and the one without is not."""
    inputs = inputs_of(rule)
    memorize(rule, **inputs)
    inputs = {n: x for n, x in inputs.items() if n not in drop} | changes
    with pytest.raises(ValueError, match=sentence):
        memorize(rule, **inputs)


def test_a_token_brings_as_many_keys_and_values_as_it_writes():
    rule = RULES["gated-deltaproduct"]
    gates = {"step_size": torch.zeros(2, 14, 2), "log_decay": torch.zeros(2, 7, 2)}
    q, k = torch.zeros(2, 7, 2, 4), torch.zeros(2, 14, 2, 4)
    memorize(rule, q, k, k, **gates)
    with pytest.raises(ValueError, match=r"has 2 writes a token: q .* must be .*, and k .* \[B, 2 T, H, K\]"):
        memorize(rule, q, q, k, **gates)
    with pytest.raises(ValueError, match=r"\[B, 2 T, H, V\]"):
        memorize(rule, q, k, q, **gates)
    with pytest.raises(ValueError, match=r"step_size is \[2, 7, 2\]; .* needs \[2, 14, 2\]"):
        memorize(rule, q, k, k, **gates | {"step_size": gates["log_decay"]})
    with pytest.raises(ValueError, match=r"log_decay is \[2, 14, 2\]; .* needs \[2, 7, 2\]"):
        memorize(rule, q, k, k, **gates | {"log_decay": gates["step_size"]})


@pytest.mark.parametrize("backend", ["auto", "recurrent"])
@pytest.mark.parametrize("rule", RULES.values(), ids=lambda r: r.name)
def test_a_piece_without_tokens_is_refused(rule, backend):
    inputs = {n: x[:, :0] if isinstance(x, torch.Tensor) else x for n, x in inputs_of(rule).items()}
    with pytest.raises(ValueError, match=r"nothing to read: q is \[2, 0, 2, 4\].*no size may be 0"):
        memorize(rule, **inputs, backend=backend)


@pytest.mark.parametrize("shape", [(0, 7, 2, 4), (2, 7, 0, 4), (2, 7, 2, 0)])
def test_no_size_may_be_0(shape):
    x = torch.zeros(shape)
    with pytest.raises(ValueError, match="no size may be 0"):
        memorize("deltanet", x, x, x, step_size=torch.zeros(shape[:3]))


def test_tokens_must_agree():
    x = torch.zeros(2, 7, 2, 4)
    sentence = r"must both be \[B, T, H, K\] and v .* \[B, T, H, V\] with the same B, T and H"
    step = torch.zeros(2, 7, 2)
    for q, k, v in (
        (x[0], x, x),
        (x, x[:, :, 0, 0], x),
        (x, x[..., :3], x),
        (x, x[:, :6], x),
        (x[:1], x, x),
        (x, x, x[:, :6]),
        (x, x, x[:1]),
        (x, x, x[:, :, :1]),
        (x, x, x[..., 0]),
        (x[0], x[0], x[0]),
    ):
        with pytest.raises(ValueError, match=sentence):
            memorize("deltanet", q, k, v, step_size=step)


def test_tokens_must_be_floating_point_numbers():
    for name in ("q", "k", "v"):
        refused(LINEAR, "must be floating point numbers", **{name: torch.zeros(2, 7, 2, 4, dtype=torch.int64)})


def test_gates_are_given_if_and_only_if_the_rule_uses_them():
    gate = torch.zeros(2, 7, 2, dtype=torch.float64)
    refused(LINEAR, "needs log_momentum; give it", drop=["log_momentum"])
    refused(LINEAR, "needs log_decay; give it", drop=["log_decay"])
    refused(LINEAR, r"needs step_size \[B, T, H\]; only the dot objective has a default", drop=["step_size"])
    refused(GLA, "needs log_decay; give it", drop=["log_decay"])
    refused(RULES["gated-deltanet"], "does not use log_momentum; leave it None", log_momentum=gate)
    refused(RULES["deltanet"], "does not use log_decay; leave it None", log_decay=gate)


def test_step_size_defaults_to_1_under_the_dot_objective():
    inputs = inputs_of(DOT)
    inputs["step_size"] = torch.ones_like(inputs["step_size"])
    given = memorize(DOT, **inputs).y
    assert torch.equal(memorize(DOT, **inputs | {"step_size": None}).y, given)


@pytest.mark.parametrize("name", ["step_size", "log_momentum", "log_decay"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1000.0, -float("inf")])
def test_gates_must_be_numbers(name, value):
    inputs = inputs_of(LINEAR)
    gate = inputs[name].clone()
    gate[1, 3, 0] = value
    allowed = value == 1000.0 if name == "step_size" else value == -float("inf")  # a log gate of -inf is a gate of 0
    if allowed:
        memorize(LINEAR, **inputs | {name: gate})
    else:
        what = "is up to 1000; it is the log" if value == 1000.0 else "holds NaN or infinite values; check"
        refused(LINEAR, f"{name} {what}", **{name: gate})


@pytest.mark.parametrize("name", ["step_size", "log_momentum", "log_decay"])
def test_gates_must_have_one_value_per_token_and_head(name):
    for shape in ((2, 7), (2, 7, 1), (2, 6, 2), (1, 7, 2), (2, 7, 2, 1), (2, 7, 2, 4)):
        refused(
            LINEAR,
            rf"{name} is .*; rule 'titans-linear' needs \[2, 7, 2\] here",
            **{name: torch.zeros(shape)},
        )


def test_channel_decay_must_have_one_value_per_input_channel():
    refused(GLA, r"log_decay is \[2, 7, 2\]; rule 'gla' needs \[2, 7, 2, 4\]", log_decay=torch.zeros(2, 7, 2))
    deep = TITANS.replace(retention="channel")
    refused(deep, r"log_decay is \[2, 7, 2, 4\].*needs \[2, 7, 2, 20\]", log_decay=torch.zeros(2, 7, 2, 4))


def test_a_deep_memory_cannot_start_from_zero():
    refused(
        TITANS, "more than a bare matrix, which cannot start from zero; pass initial=initial_weights", drop=["initial"]
    )
    refused(RULES["ttt-linear"], "more than a bare matrix", drop=["initial"])
    inputs = inputs_of(LINEAR)
    inputs["initial"] = [torch.zeros(2, 4, 4, dtype=torch.float64)]
    from_zeros = memorize(LINEAR, **inputs).y
    assert torch.equal(memorize(LINEAR, **inputs | {"initial": None}).y, from_zeros)


def test_initial_weights_must_fit():
    sentence = r"initial holds .*; rule 'titans' needs \[\(2, 4, 16\), \(2, 16, 4\)\] here"
    good = initial_weights(TITANS, 2, 4, 4)
    for bad in ([], good[:1], [*good, good[0]], good[::-1], [w[:1] for w in good], [w.mT for w in good]):
        refused(TITANS, sentence, initial=bad)


def test_a_residual_memory_needs_values_as_wide_as_keys():
    inputs = inputs_of(RULES["ttt-linear"])
    with pytest.raises(ValueError, match=r"residual memory, so keys \(4\) and values \(3\) must have one width"):
        memorize("ttt-linear", **inputs | {"v": inputs["v"][..., :3]})


def state_of(rule, K=4, V=4, B=2, **kwargs):
    inputs = make_inputs(rule, B=B, T=7, H=2, K=K, V=V, **kwargs)
    return memorize(rule, **inputs).state


def test_a_state_must_belong_to_the_rule():
    refused(LINEAR, "state belongs to rule 'gla' with other choices than 'titans-linear'", state=state_of(GLA))
    other = LINEAR.replace(gradient_at="decayed")
    refused(LINEAR, "read on with the rule that began the stream", state=state_of(other))


def test_a_state_must_have_the_rows_of_the_batch():
    refused(LINEAR, r"state has 3 rows but the batch has 2; use state.select\(rows\)", state=state_of(LINEAR, B=3))


def test_a_state_must_have_the_size_of_the_memory():
    state = state_of(LINEAR, K=3)
    refused(LINEAR, r"state's weights are \[\[2, 3, 4\]\], but this memory's are \[\[2, 4, 4\]\]", state=state)


def test_a_state_must_have_the_precision_of_the_reading():
    state = state_of(LINEAR, dtype=torch.float32)
    refused(
        LINEAR,
        "state is torch.float32 on cpu, but this reading is torch.float64 on cpu; move it",
        state=state,
    )
    inputs = inputs_of(LINEAR)
    assert memorize(LINEAR, **inputs, state=state.map(lambda w: w.to(torch.float64))).y.dtype == torch.float64


def test_unknown_rules_are_answered_with_the_nearest():
    x = torch.zeros(1, 1, 1, 1)
    with pytest.raises(ValueError, match=r"no rule named 'delta-net'.*did you mean 'deltanet'.*known rules"):
        memorize("delta-net", x, x, x)


def test_a_backend_must_exist_and_be_able():
    refused(LINEAR, "backend is 'cuda'; it must be auto, recurrent, exact, chunked", backend="cuda")
    cannot = "backend '{}' cannot read rule '{}': {}.*; use auto"
    refused(TITANS, cannot.format("exact", "titans", "it takes gradients at the chunk's start"), backend="exact")
    refused(
        LINEAR,
        cannot.format("chunked", "titans-linear", "it takes a gradient at every token"),
        backend="chunked",
    )
    for rule in (LINEAR.replace(objective="huber"), TITANS.replace(gradient_at="previous")):
        sentence = cannot.format("exact", rule.name, "only a linear memory with the dot or l2 objective")
        refused(rule, sentence, backend="exact")


@pytest.mark.parametrize(
    "mask",
    [
        torch.ones(2, 7),
        torch.ones(2, 7, dtype=torch.int64),
        torch.ones(2, 6, dtype=torch.bool),
        torch.ones(7, dtype=torch.bool),
        torch.ones(2, 7, 2, dtype=torch.bool),
        torch.ones(1, 7, dtype=torch.bool),
    ],
)
def test_a_mask_is_bool_with_one_value_per_token(mask):
    refused(LINEAR, r"mask is .*; it must be torch.bool \[B, T\] = \[2, 7\], False on padding", mask=mask)


def test_a_feature_map_that_was_drawn_or_learned_must_be_given():
    for name, kind in (("favor", "random"), ("hedgehog", "learned")):
        rule = DOT.replace(name="mine", feature_map=name)
        inputs = inputs_of(DOT)
        with pytest.raises(ValueError, match=f"rule 'mine' uses the {kind} feature map '{name}'; build it once"):
            memorize(rule, **inputs)


def test_a_feature_map_needs_a_rule_that_has_one():
    refused(DOT, "rule 'retnet' has no feature map, but one was given; set feature_map", feature_map=torch.exp)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("log_decay", 0.03, r"log_decay is up to 0.03; it is the log of what is left of the memory, 1 - alpha"),
        ("log_momentum", 0.5, r"log_momentum is up to 0.5; it is the log of what is left of the momentum"),
        ("step_size", -0.5, r"step_size is down to -0.5; a step must be at least 0"),
    ],
)
def test_gates_out_of_range_are_refused(name, value, sentence):
    inputs = make_inputs(RULES["titans-linear"])
    inputs[name][0, 3, 1] = value
    with pytest.raises(ValueError, match=sentence):
        memorize("titans-linear", **inputs)
