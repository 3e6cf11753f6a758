"""Thoughts are as long as they may and must be, and an answer always comes."""

from __future__ import annotations

import dataclasses

import pytest
from toy_policies import TOKENIZER, make_policy

from mnemonist.errors import UserError
from mnemonist.reasoning.attempts import Attempt, Decoding, draw_numbers
from mnemonist.reasoning.budget import (
    Budget,
    BudgetForcing,
    LoopDetector,
    control,
    performance,
    scaling,
)
from mnemonist.reasoning.formats import FORMATS, Format
from mnemonist.reasoning.ledger import Ledger
from mnemonist.reasoning.sampling import LocalSampler

THINK, PLAIN = FORMATS["think"], FORMATS["plain"]
END = "$"


class Scripted:
    """A policy of characters: goes on with the next of its texts, which ``$`` ends as an end mark does."""

    name = "script"

    def __init__(self, *texts):
        self.texts, self.asked, self.decodings = list(texts), [], []

    def sample(self, prompts, decoding, ledger=None):
        self.decodings.append(decoding)
        return [self._one(prompt, decoding, ledger) for prompt in prompts]

    def _one(self, prompt, decoding, ledger):
        self.asked.append(prompt)
        written, finish = "", "length"
        text = self.texts.pop(0)
        for at, token in enumerate(text):
            if len(written) == decoding.max_tokens:
                self.texts.insert(0, text[at:])
                break
            written += token
            if token == END:
                finish = "end"
                break
            if any(mark in written for mark in decoding.stop):
                finish = "stop"
                break
        ledger.charge(prompt=len(prompt), generated=len(written), calls=1)
        return Attempt(prompt, written.removesuffix(END), tokens=len(written), finish=finish)


class ScriptedEach(Scripted):
    """One that can have limits for each."""

    def sample_each(self, prompts, decoding, limits, numbers, ledger=None):
        self.numbers = [*getattr(self, "numbers", []), tuple(numbers)]
        self.limits = [*getattr(self, "limits", []), tuple(limits)]
        return [
            self.sample([prompt], dataclasses.replace(decoding, max_tokens=limit), ledger)[0]
            for prompt, limit in zip(prompts, limits, strict=True)
        ]


def think(policy, format, budget, prompt="Q\n<think>\n", **decoding):
    ledger = Ledger()
    (thought,) = BudgetForcing(policy, format, budget).think([prompt], Decoding(**decoding), ledger)
    assert ledger.generated_tokens == thought.thinking_tokens + thought.answer_tokens == thought.attempt.tokens
    assert ledger.prompt_tokens == sum(map(len, policy.asked)) and ledger.calls == len(policy.asked)
    assert thought.attempt.prompt == prompt and thought.attempt.ids == ()
    return thought


def test_a_policy_that_ends_its_thought():
    policy = Scripted("2 + 2\n= 4\n</think>", "4</answer>")
    thought = think(policy, THINK, Budget())
    assert thought.attempt.text == "2 + 2\n= 4\n</think>\n<answer>4</answer>"
    assert (thought.closed, thought.extensions, thought.thinking_tokens, thought.answer_tokens) == ("itself", 0, 18, 10)
    assert policy.asked == ["Q\n<think>\n", "Q\n<think>\n2 + 2\n= 4\n</think>\n<answer>"]
    parsed = THINK.parse(thought.attempt.text)
    assert parsed.answer == "4" and parsed.well_formed and thought.attempt.finish == "stop"


@pytest.mark.parametrize("end", ["</think>", END])
@pytest.mark.parametrize(("before", "joint"), [("5", "\n"), ("5\n", ""), ("5 ", "")])
def test_an_end_is_taken_away_so_many_times(end, before, joint):
    policy = Scripted(f"= {before}{end}", f" no, 4\n{end}", f" yes{end}", "4</answer>")
    thought = think(policy, THINK, Budget(extensions=2))
    thought_text = f"= {before}{joint}Wait no, 4\nWait yes"
    assert thought.attempt.text == f"{thought_text}\n</think>\n<answer>4</answer>"
    assert (thought.closed, thought.extensions) == ("itself", 2)
    assert policy.asked[2] == f"Q\n<think>\n= {before}{joint}Wait no, 4\nWait"


def test_any_words_and_any_marks():
    marks = Format("odd", after=" [", close_thought="]", open_answer="(", close_answer=")")
    thought = think(Scripted("a]", "b]", "7)"), marks, Budget(extensions=1, wait="\nAlternatively,"), prompt="Q [")
    assert thought.attempt.text == "a\nAlternatively,b\n](7)"
    thought = think(Scripted("one\nanswer: ", "two\nanswer:", "9\n"), PLAIN, Budget(extensions=1), prompt="Q\n")
    assert thought.attempt.text == "one\nWaittwo\nanswer: 9\n"
    assert PLAIN.parse(thought.attempt.text).answer == "9"


def test_a_thought_that_is_too_long_is_closed():
    thought = think(Scripted("0123456789", "4</answer>"), THINK, Budget(most=10, extensions=3))
    assert (thought.closed, thought.thinking_tokens, thought.extensions) == ("budget", 10, 0)
    assert thought.attempt.text == "0123456789\n</think>\n<answer>4</answer>"


def test_extensions_end_with_the_budget():
    policy = Scripted("abc$", "defg", "4</answer>")
    thought = think(policy, THINK, Budget(most=8, extensions=9))
    assert (thought.closed, thought.thinking_tokens, thought.extensions) == ("budget", 8, 1)
    assert policy.decodings[1].max_tokens == 4  # what is left of it
    assert thought.attempt.text == "abc\nWaitdefg\n</think>\n<answer>4</answer>"


def test_a_thought_must_be_so_long():
    policy = Scripted("$", "a$", "bcdef$", "gh$")
    thought = think(policy, THINK, Budget(least=9, most=20))
    assert (thought.closed, thought.extensions, thought.thinking_tokens) == ("itself", 2, 9)
    assert thought.attempt.text == "Waita\nWaitbcdef\n</think>\n<answer>gh</answer>"


@pytest.mark.parametrize(
    ("answer", "text", "finish"),
    [
        ("4</answer>", "4</answer>", "stop"),
        ("4$", "4</answer>", "end"),
        ("123456789", "12345</answer>", "length"),
        ("$", "</answer>", "end"),
    ],
)
def test_an_answer_is_closed_in_any_case(answer, text, finish):
    thought = think(Scripted("a</think>", answer), THINK, Budget(answer=10 if "<" in answer else 5))
    assert thought.attempt.text == f"a\n</think>\n<answer>{text}" and thought.attempt.finish == finish


def test_a_policy_without_room_is_not_asked_for_ever():
    class Full(Scripted):
        def _one(self, prompt, decoding, ledger):
            ledger.charge(prompt=len(prompt), generated=3, calls=1)
            self.asked.append(prompt)
            return Attempt(prompt, "abc", tokens=3, finish="length")

    thought = think(Full(), THINK, Budget(most=100, answer=3))
    assert (thought.closed, thought.thinking_tokens) == ("budget", 3)


@pytest.mark.parametrize("extensions", [0, 3])
def test_a_model_with_few_positions_answers_in_any_case(extensions):
    sampler = LocalSampler(make_policy(), TOKENIZER, end_ids=())  # of 64 positions, one a byte
    budget = Budget(most=100, answer=9, extensions=extensions)
    thoughts = BudgetForcing(sampler, THINK, budget).think(["Q?\n", "Q" * 35 + "?\n"], Decoding(seed=1))
    for thought, written in zip(thoughts, (64 - 3, 64 - 37), strict=True):
        assert thought.closed == "budget" and thought.answer_tokens == 9
        assert thought.attempt.text.endswith("</answer>") and "</think>\n<answer>" in thought.attempt.text
        assert thought.thinking_tokens <= written - 9 - len("</think>\n<answer>")
    assert thoughts[0].thinking_tokens > 20 and thoughts[1].thinking_tokens == 0
    with pytest.raises(UserError, match="shorten it"):
        BudgetForcing(sampler, THINK, budget).think(["Q" * 60], Decoding())


def test_a_loop_is_closed_between_pieces():
    policy = Scripted("start\n" + "over and over\n" * 50, "4</answer>")
    policy.texts[0] += END
    thought = think(policy, THINK, Budget(most=500, piece=40, loops=LoopDetector(times=3)))
    assert thought.closed == "loop" and thought.thinking_tokens == 80  # three times in 6 + 3 * 14 characters
    thought = think(Scripted("over and over\n" * 50 + END, "4</answer>"), THINK, Budget(most=500))
    assert (thought.closed, thought.thinking_tokens) == ("budget", 500)


@pytest.mark.parametrize("make", [Scripted, ScriptedEach])
def test_prompts_do_not_wait_for_each_other(make):
    texts = ["a$", "bbbb$", "cc$", "b$", "c$", "d" * 9, "1</answer>", "2</answer>", "3</answer>"]
    # first round a, bbbb, cc; second round b, c, d (for the third), then the answers
    policy, ledger = make(*texts), Ledger()
    forcing = BudgetForcing(policy, THINK, Budget(most=9, extensions=1))
    prompts = ["A", "B", "C"]
    if make is Scripted:  # limits differ, so these are asked for one by one, in order of their limits
        assert [thought.extensions for thought in forcing.think(prompts, Decoding(seed=4), ledger)] == [1, 1, 1]
        seeds = [decoding.seed for decoding in policy.decodings]
        assert len(set(seeds)) == len(seeds)
        return
    thoughts = forcing.think(prompts, Decoding(seed=4), ledger)
    assert [thought.attempt.text.split("\n</think>")[0] for thought in thoughts] == [
        "a\nWaitb",
        "bbbb\nWaitc",
        "cc\nWaitdddddd",
    ]
    assert [thought.closed for thought in thoughts] == ["itself", "itself", "budget"]
    assert policy.limits == [(9, 9, 9), (7, 4, 6), (64, 64, 64)]
    drawn = [number for numbers in policy.numbers for number in numbers]
    assert len(set(drawn)) == len(drawn), "every draw is another one"
    assert policy.numbers[0] == tuple(draw_numbers(prompts))
    assert {decoding.seed for decoding in policy.decodings} == {4}


def test_it_is_a_sampler():
    forcing = BudgetForcing(Scripted("a$", "4</answer>"), THINK, Budget(most=20, extensions=0))
    (attempt,) = forcing.sample(["Q"], Decoding(max_tokens=1), Ledger())
    assert attempt.text == "a\n</think>\n<answer>4</answer>"
    assert forcing.name == "script under a budget"
    assert forcing.settings["thinking"] == 20 and forcing.settings["wait"] == "Wait"


def test_stop_strings_are_refused():
    with pytest.raises(UserError, match="exclude each other"):
        BudgetForcing(Scripted(), THINK, Budget()).sample(["a"], Decoding(stop=("x",)))


@pytest.mark.parametrize(
    "wrong", [{"least": 5, "most": 4}, {"most": 0}, {"answer": 0}, {"extensions": -1}, {"piece": 0}, {"least": -1}]
)
def test_budgets_that_are_none(wrong):
    with pytest.raises(UserError, match="is no budget"):
        Budget(**wrong)


def test_other_bad_settings():
    with pytest.raises(UserError, match="wait is blank"):
        Budget(wait=" ")
    for wrong in ({"times": 1}, {"lines": 1}, {"shortest": -1}, {"window": -1}):
        with pytest.raises(UserError, match="comes only once"):
            LoopDetector(**wrong)


# --- loops


@pytest.mark.parametrize(
    ("text", "loop"),
    [
        ("so 4\n" * 3, False),
        ("so 4\n" * 8, True),
        ("head " + "so 4\n" * 8 + "so", True),  # cut within
        ("so 4\n" * 8 + "and on", False),  # it has found out
        ("." * 31, False),
        ("." * 32, True),
        ("1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15", False),
        (("a long paragraph that says nothing at all, again; " * 5).join(["x", ""]), True),
        ("", False),
    ],
)
def test_what_stands_in_a_row(text, loop):
    assert LoopDetector(times=4, shortest=32).found(text) is loop


def test_lines_that_come_again_and_again():
    text = "".join(f"try 3 + 4\nno, {n}\n" for n in range(5))
    assert not LoopDetector().found(text)
    assert LoopDetector(lines=5).found(text) and not LoopDetector(lines=6).found(text)
    assert not LoopDetector(lines=2).found("a\n\n\nb\n\n")


def test_only_the_window_is_looked_at():
    text = "abcdefgh" * 100
    assert LoopDetector(times=4, window=64).found(text)
    assert not LoopDetector(times=4, window=30).found(text)


# --- metrics


def test_control_is_the_share_within():
    assert control([10, 20, 30, 40], 20, 30) == 0.5
    assert control([5], 5, 5) == 1
    with pytest.raises(ValueError, match="no thought"):
        control([], 0, 1)


def test_scaling_is_the_mean_slope_of_all_pairs():
    # slopes 0.1 / 100, 0.3 / 300, 0.2 / 200
    assert scaling([(400, 0.5), (100, 0.2), (200, 0.3)]) == pytest.approx(0.001)
    assert scaling([(0, 0.0), (1, 1.0), (2, 0.0)]) == pytest.approx((1 + 0 - 1) / 3)
    assert scaling([(1, 0.0), (3, 1.0), (1, 1.0)]) == pytest.approx((0.5 + 0) / 2)  # equal budgets have no slope
    with pytest.raises(ValueError, match="no slope"):
        scaling([(1, 0.5), (1, 0.6)])


def test_performance_is_the_best():
    assert performance([(1, 0.2), (2, 0.6), (3, 0.5)]) == 0.6
    with pytest.raises(ValueError, match="no accuracy"):
        performance([])
