"""The commands of ``mnemonist reason`` and their options."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mnemonist.cli.begun import begun_with
from mnemonist.cli.reason.rates import pretrained, rate_of_run, usual_rate
from mnemonist.errors import UserError
from mnemonist.reasoning.attempts import Decoding
from mnemonist.reasoning.rounds import RECIPES, ROUNDS
from mnemonist.training.configuration import Device, TrainingConfig

Flat = tyro.conf.arg(name="")
"""Of options whose names stand without that of the group they are in."""
Split = Literal["train", "validation", "test"]
Arm = Literal["journey", "shortcut"]

NEW_MODEL = "mag-tiny"
STEPS, SEARCHING = Path("shipped/countdown-steps"), Path("shipped/countdown")


@dataclass(frozen=True)
class Asked:
    """Which problems, and how they are put."""

    difficulty: tuple[int, ...] = ()
    """Difficulties that take turns; left out, the task's easiest."""
    format: str = "plain"
    """How questions are put and answers marked; `mnemonist reason tasks` lists the formats."""


@dataclass(frozen=True)
class Tasks:
    """List tasks, formats, methods, journeys, rounds and objectives, each with its source."""

    def run(self) -> int:
        """Exit code."""
        from mnemonist.cli.reason.tasks import run_tasks

        return run_tasks()


@dataclass(frozen=True)
class Waiting:
    """How long a server is waited for."""

    timeout: float = 300.0
    """Seconds that a server may be silent, as it is while it writes an attempt; after the second time it has failed."""
    retries: int = 5
    """Tries after the first one, where a server is busy, broken or not there."""


@dataclass(frozen=True)
class Policy:
    """Who writes."""

    model: Path | None = None
    """A model of ours (folder, file, or a name that comes with the package), or the folder of any causal language model
    of transformers. Methods with proposer=moves need none."""
    server: str | None = None
    """Address of a server of the OpenAI protocol that is asked instead; its key, if any, is read from the variable
    OPENAI_API_KEY."""
    server_model: str | None = None
    """The model as the server calls it."""
    waiting: Annotated[Waiting, Flat] = field(default_factory=Waiting)
    chat: bool = False
    """Put questions as a user's message, after a sentence that says what is wanted: in the chat template of the model,
    or for the server's chat endpoint."""
    shots: int = 0
    """Solved problems that are shown before the question, after that sentence."""
    batch_size: int = 32
    """Attempts that are written at a time, or asked of a server."""
    device: Device = "auto"
    """Where a model computes: auto takes a CUDA device if there is one."""


@dataclass(frozen=True)
class Thinking:
    """Budget forcing: how long a policy thinks."""

    thinking: tuple[int, ...] = ()
    """Tokens after which a thought is closed and the answer asked for; every method is tried with each of several."""
    least_thinking: int = 0
    """Tokens before which the policy cannot end its thought."""
    extensions: int = 0
    """How often the policy is kept from ending its thought, besides."""
    wait: str = "Wait"
    """What is put where it would have ended."""
    close_loops: bool = False
    """Close thoughts that run in circles."""
    answer_tokens: int = 64
    """Of the answer, at most."""


@dataclass(frozen=True)
class Solve:
    """Solve problems by one or several methods: accuracy and cost side by side, trees as JSONL, one HTML page.

    What is solved is saved piece by piece. Ctrl-C stops after the piece at hand; the same command goes on. More methods
    or problems can be asked for later in the same folder.
    """

    task: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TASK")]
    """What to solve, with changes if wanted: countdown:largest=50; `mnemonist reason tasks` lists the tasks."""
    method: tuple[str, ...] = ("chain-of-thought",)
    """How, with changes if wanted: best-of-n:attempts=8 beam:proposer=moves,value=gold"""
    policy: Annotated[Policy, Flat] = field(default_factory=Policy)
    asked: Annotated[Asked, Flat] = field(default_factory=Asked)
    split: Split = "test"
    """Which problems: those of other splits are never met in training."""
    count: int = 50
    """Problems, over all difficulties."""
    out: Path = Path("runs/solve")
    """Folder for METHOD.jsonl of each method (trees) and the page solve.html."""
    proposer: Literal["policy", "moves"] | None = None
    """Who proposes steps, for all methods that grow thoughts step by step: the policy, or the task's own moves."""
    value: str | None = None
    """Who values paths, for all methods that ask: model (see --scorer), self, gold, outcome, rollouts, any-rollout."""
    scorer: Path | None = None
    """Folder of a process reward model that `mnemonist reason reward` has trained, for value=model."""
    budget: Annotated[Thinking, Flat] = field(default_factory=Thinking)
    decoding: Annotated[Decoding, Flat] = field(default_factory=Decoding)
    piece: int = 16
    """Problems that are solved side by side and saved together."""
    json: bool = False
    """Print the figures as JSON instead of the table."""

    def run(self) -> int:
        """Exit code."""
        from mnemonist.cli.reason.solve import run_solve

        return run_solve(self)


@dataclass(frozen=True)
class Telling:
    """How journeys are made by rule, without a model."""

    journey: str = "o1-journey"
    """How far they go astray, with changes if wanted: o1-journey:trials=2, or depth-first."""
    order: str = "any"
    """In which order steps are tried: any, nearest (to the target, in games of numbers), or as listed by the task."""
    phrases: str = "terse"
    """What is said at dead ends: terse, spoken, or checked (whether steps that end are at the goal, nothing else)."""
    match: str = "examples"
    """What journeys and shortcuts have in common: examples, tokens-by-problems or tokens-by-passes."""


@dataclass(frozen=True)
class Rewriter:
    """Who puts journeys and shortcuts into words of its own."""

    server: str | None = None
    """Address of a server of the OpenAI protocol whose model rewrites the texts of both arms; each keeps every step, or
    it stays as it was. The server's key, if any, is read from the variable OPENAI_API_KEY."""
    server_model: str | None = None
    """The rewriter as the server calls it."""
    waiting: Annotated[Waiting, Flat] = field(default_factory=Waiting)
    chat: bool = True
    """Ask the server's chat endpoint."""
    rewritten_tokens: int = 2048
    """Tokens of a rewritten text at most."""
    temperature: float = 0.7
    """Of the rewriter's draws."""
    batch_size: int = 8
    """Texts that are asked of the server at a time."""


@dataclass(frozen=True)
class Demo:
    """See what search is worth, as a table and one HTML page: countdown, solved by two small models in several ways.

    Search around a model that was shown right steps alone: one attempt; a vote of many; the best of many, since anyone
    can check a sum; and a beam whose paths the truth about every step judges, as an upper end. And search within one
    that was shown its dead ends: one long thought. Both come with the package; nothing is downloaded or trained.
    """

    model: Path = STEPS
    """A model that knows countdown in the format plain, one step a line."""
    searching: Path = SEARCHING
    """One that searches within its thought."""
    difficulty: tuple[int, ...] = (3, 4)
    """Numbers of a problem, taking turns."""
    count: int = 24
    """Problems that the model has not met."""
    attempts: int = 8
    """Of each problem, by the methods that make several; beams of the one that grows them step by step."""
    temperature: float = 0.7
    """Of the draws around the model; the long thought is greedy."""
    seed: int = 0
    """Of the draws."""
    batch_size: int = 32
    """Attempts that are written at a time."""
    out: Path = Path("runs/reason-demo")
    """Folder for the trees and the page."""

    def run(self) -> int:
        """Exit code."""
        from mnemonist.cli.reason.demo import run_demo

        return run_demo(self)


@dataclass(frozen=True)
class Traces:
    """Make journeys, dead ends and returns included, and their shortcut twins: texts to learn from, as JSONL.

    They lead through trees that are grown by rule, or through those that `mnemonist reason solve` has left (--trees).
    Rows have prompt and completion as TRL knows them, the arm they belong to, and where they come from. Every text is
    taken apart and judged again before it is written.
    """

    task: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TASK")]
    """One whose steps can be checked, with changes if wanted."""
    out: Path = Path("traces.jsonl")
    """File to write; both arms are in it."""
    trees: Path | None = None
    """METHOD.jsonl of a search: its trees are told, those with a right answer and of the split. Difficulty, count and
    order are then those of the search."""
    asked: Annotated[Asked, Flat] = field(default_factory=Asked)
    split: Split = "train"
    """Which problems."""
    count: int = 1000
    """Problems, over all difficulties."""
    telling: Annotated[Telling, Flat] = field(default_factory=Telling)
    tokenizer: Path | None = None
    """Folder of a Hugging Face tokenizer whose tokens are counted where arms are matched: that of the model that will
    learn from them. Without one bytes are."""
    seed: int = 0
    """Of the order in which steps are tried, and of the words."""
    rewriter: Annotated[Rewriter, Flat] = field(default_factory=Rewriter)
    page: Path | None = None
    """HTML page that shows the first of them, journey beside shortcut."""

    def run(self) -> int:
        """Exit code."""
        from mnemonist.cli.reason.traces import run_traces

        return run_traces(self)


@dataclass(frozen=True)
class Learner:
    """Who learns."""

    model: Path | None = None
    """A model of ours, or the folder of any causal language model of transformers; left out, a new model of bytes."""
    preset: str = NEW_MODEL
    """Sizes of a new model, with changes if wanted: mag-tiny:width=64; `mnemonist models` lists the presets."""
    activation_checkpointing: bool = False
    """Compute what is inside a block again on the way back instead of keeping it: less memory, a third more time."""


@dataclass(frozen=True)
class Learn:
    """Learn by a round or a recipe; `mnemonist reason grpo ...` is short for `mnemonist reason learn grpo ...`.

    distil (a teacher's right attempts), on-policy-distil (own attempts, every token judged by a teacher), journey
    (thoughts with their dead ends), rest-em (own right attempts, again and again), rejection-sampling (own right
    attempts, once), dpo (right above wrong ones), grpo, dr-grpo, dapo, gspo, lite-ppo (policy gradients), r1 (a recipe
    of four). Ctrl-C leaves a model; --resume goes on as if it had never stopped.
    """

    round: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ROUND")]
    """By name, with changes if wanted: rest-em:iterations=2,attempts=16,temperature=1,max_tokens=128; those of a policy
    gradient reach its objective as well: grpo:beta=0,dynamic=true. Of a recipe, max_tokens, attempts, iterations and
    problems can be set for all rounds that have them: r1:iterations=50"""
    task: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TASK")]
    """What to learn, with changes if wanted: countdown:largest=50"""
    learner: Annotated[Learner, Flat] = field(default_factory=Learner)
    lora: int | None = None
    """Train adapters of this rank alone; they are merged into the model that is saved."""
    asked: Annotated[Asked, Flat] = field(default_factory=Asked)
    chat: bool = False
    """Put questions to the learner as a user's message in its chat template, after a sentence that says what is wanted:
    so it attempts, learns and is validated, and so it is to be asked afterwards."""
    count: int = 1000
    """Problems of the split train, over all difficulties."""
    validation: int = 100
    """Problems of the split validation, asked before the first fit and after every one; 0 asks none."""
    out: Path = Path("runs/learn")
    """Folder of the run: the model, what was attempted, metrics.jsonl, the page learn.html."""
    resume: bool = False
    """Go on with the run in this folder, with the options that it was begun with: ROUND, TASK and others need not be
    given; one that would make it another run is refused."""
    objective: str | None = None
    """Of a policy gradient, with changes if wanted, in place of the round's own: dapo:clip_high=0.3. What ROUND itself
    changes is changed in this one."""
    format_reward: float | None = None
    """Paid for a well-formed text, besides 1 for a right answer; left out, 1 in recipe r1 and otherwise nothing."""
    base: Path | None = None
    """Model of the same shape that fits begin with where a round fits "from the base" (rest-em, rejection-sampling);
    left out, the learner as it is given."""
    teacher: Path | None = None
    """Model whose attempts are distilled, or that judges every token of on-policy-distil; left out, the task's own
    solutions are distilled, if it has any."""
    server: str | None = None
    """Address of a server whose model is the teacher; its key, if any, is read from the variable OPENAI_API_KEY."""
    server_model: str | None = None
    """The teacher as the server calls it."""
    waiting: Annotated[Waiting, Flat] = field(default_factory=Waiting)
    teacher_chat: bool = False
    """Put questions to the teacher as a user's message, after a sentence that says what is wanted: in its chat
    template, or for the server's chat endpoint. What is learned has the question as the learner is asked it."""
    teacher_shots: int = 0
    """Solved problems that the teacher is shown before the question, after that sentence; they are not learned."""
    data: Path | None = None
    """Round journey: texts to learn, as `mnemonist reason traces` or TRL writes them; left out, they are made."""
    arm: Arm = "journey"
    """Round journey: which texts to learn, the journeys or their shortcut twins."""
    telling: Annotated[Telling, Flat] = field(default_factory=Telling)
    batch_size: int = 64
    """Attempts that are written at a time, or asked of a server."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Of each fit; steps and row length follow from the round. A policy gradient has as many rows a step as the round
    says, and reads at most `batch-size` of them at a time. Left out, the learning rate of a pretrained model of
    transformers is 1e-5, or 1e-4 with --lora, and that of others 1e-3; a tenth of each for policy gradients and dpo."""

    def run(self) -> int:
        """Exit code."""
        from mnemonist.cli.reason.learn import run_learn

        return run_learn(self)


@dataclass(frozen=True)
class Doctor:
    """Say what looks wrong in the folder of a run, finished or not, and what to change."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Folder of a run of `mnemonist reason learn`."""

    def run(self) -> int:
        """Exit code."""
        from mnemonist.cli.reason.doctor import run_doctor

        return run_doctor(self)


@dataclass(frozen=True)
class Reward:
    """Train a process reward model: after every step it says whether a right answer can still be reached.

    It learns from the truth that the task knows about solutions, steps astray, and attempts of the model that it
    begins with; so begin with the policy that is to be judged. `solve --scorer` asks it.
    """

    task: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TASK")]
    """One whose steps can be checked, with changes if wanted."""
    learner: Annotated[Learner, Flat] = field(default_factory=Learner)
    asked: Annotated[Asked, Flat] = field(default_factory=Asked)
    count: int = 1000
    """Problems of the split train, over all difficulties; a path of each is read."""
    attempts: int = 4
    """Of the --model at each problem, which are read as well; a new model makes none."""
    chat: bool = False
    """Ask for these as a user's message in the model's chat template, after a sentence that says what is wanted. What
    is judged has the question alone."""
    decoding: Annotated[Decoding, Flat] = field(default_factory=Decoding)
    """How attempts are drawn."""
    batch_size: int = 64
    """Attempts that are written at a time."""
    validation: int = 200
    """Problems of the split validation, to say how good it is."""
    epochs: int = 3
    """How often every path is read."""
    out: Path = Path("runs/reward")
    """Folder of the run, with the model."""
    resume: bool = False
    """Go on with the run in this folder, with the options that it was begun with: TASK and others need not be given."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Steps and row length follow from the paths. Left out, the learning rate of a pretrained model of transformers is
    1e-5."""

    def run(self) -> int:
        """Exit code."""
        from mnemonist.cli.reason.reward import run_reward

        return run_reward(self)


class Reason:
    """Propose, search, and learn from attempts: the outer loop."""

    command: Demo | Tasks | Solve | Traces | Learn | Doctor | Reward

    def run(self) -> int:
        """Exit code."""
        return self.command.run()


def reason_type(arguments: Sequence[str]) -> type[Reason]:
    """`Reason` as a dataclass; the round that the arguments name sets the defaults that ``--help`` shows."""
    begun = _begun(arguments)
    learn = reward = begun
    if not isinstance(learn, Learn):
        learn = Learn(round=tyro.MISSING, task=tyro.MISSING, training=training_for(arguments))
    if not isinstance(reward, Reward):
        reward = Reward(task=tyro.MISSING, training=training_for(arguments))
    commands = (
        Annotated[Demo, tyro.conf.subcommand("demo")]
        | Annotated[Tasks, tyro.conf.subcommand("tasks")]
        | Annotated[Solve, tyro.conf.subcommand("solve")]
        | Annotated[Traces, tyro.conf.subcommand("traces")]
        | Annotated[Learn, tyro.conf.subcommand("learn", default=learn)]
        | Annotated[Doctor, tyro.conf.subcommand("doctor")]
        | Annotated[Reward, tyro.conf.subcommand("reward", default=reward)]
    )
    return make_dataclass("Reason", [("command", Annotated[commands, Flat])], bases=(Reason,))


def training_for(arguments: Sequence[str]) -> TrainingConfig:
    """What training begins with, where it is left open: as the round, who learns and the run before would have it.

    A run of a pretrained model that goes on does so at its own rate: it may be of the time when others were usual.
    """
    given = _learning(arguments)
    if given is None:
        return TrainingConfig()
    row = ROUNDS.get(given.round.partition(":")[0]) if isinstance(given, Learn) else None
    cautious = row is not None and row.weight in ("advantage", "pairs")
    begins = TrainingConfig(warmup_steps=10, save_every=10) if cautious else TrainingConfig()
    model, adapters = given.learner.model, isinstance(given, Learn) and given.lora is not None
    with suppress(UserError):  # of a model that cannot be opened, which is told when it is
        rate = usual_rate(model, adapters=adapters, cautious=cautious)
        if given.resume and pretrained(model):
            rate = rate_of_run(given.out) or rate
        return replace(begins, learning_rate=rate)
    return begins


def _learning(arguments: Sequence[str]) -> Learn | Reward | None:
    """The options of a command that learns; None where it is another, or the arguments cannot be understood."""
    kinds: dict[str, Learn | Reward] = {"learn": Learn(round="", task=""), "reward": Reward(task="")}
    command, words = list(arguments[:2]), [word for word in arguments[2:] if word not in ("-h", "--help")]
    if command[:1] == ["reason"] and command[1:] and command[1] in kinds:
        default = kinds[command[1]]
        with suppress(SystemExit, ValueError):
            return tyro.cli(type(default), default=default, args=words, console_outputs=False)
    return None


def _begun(arguments: Sequence[str]) -> Learn | Reward | None:
    """The options of the run that a command goes on with; see `begun_with`."""
    kinds: dict[tuple[str, ...], type[Learn] | type[Reward]] = {
        ("reason", "learn"): Learn,
        ("reason", "reward"): Reward,
    }
    kind = kinds.get(tuple(arguments[:2]))
    return None if kind is None else begun_with(kind, arguments)


def in_full(arguments: Sequence[str]) -> list[str]:
    """Arguments with ``learn`` put before the name of a round, where it was left out.

    Where a run goes on whose round and task are named without changes, those are added that it was begun with.
    """
    words = list(arguments)
    if words[:1] == ["reason"] and words[1:2] and words[1].partition(":")[0] in RECIPES:
        words.insert(1, "learn")
    begun = _begun(words)
    specs = () if begun is None else (begun.task,) if isinstance(begun, Reward) else (begun.round, begun.task)
    for place, spec in enumerate(specs, start=2):
        if words[place : place + 1] == [spec.partition(":")[0]]:
            words[place] = spec
    return words
