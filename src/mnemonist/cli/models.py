"""``mnemonist models``: the tables."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from mnemonist.cli.figures import amount
from mnemonist.evals.suites import SUITES
from mnemonist.memory.feature_map_table import FEATURE_MAPS
from mnemonist.memory.rule import RULES, MemoryRule
from mnemonist.models.configuration import BLOCKS, PRESETS
from mnemonist.models.cost import model_cost


def run_models() -> int:
    """Print every named rule, block, preset and feature map, with its source or size."""
    console = Console(highlight=False)
    sections: dict[str, dict[str, tuple[str, ...]]] = {
        "Rules: how a memory learns while it reads": {
            rule.name: (f"{_shape(rule)}; loss {rule.objective}; steps {_steps(rule)}; {_forgets(rule)}", rule.source)
            for rule in RULES.values()
        },
        "Blocks: what a model is a list of": {name: (block.summary, block.source) for name, block in BLOCKS.items()},
        "Feature maps: how a memory sees keys and queries": {
            info.name: (f"{info.kind}: {info.formula}", f"fails when: {info.fails_when}", info.source)
            for info in FEATURE_MAPS.values()
        },
        "Suites: what `mnemonist eval` measures": {
            name: (info.summary + ("; a task to train on" if info.trains else ""), info.source)
            for name, info in SUITES.items()
        },
    }
    print_sections(sections)
    console.print(_presets())
    console.print()
    console.print(
        "A rule or block can be changed choice by choice: titans:depth=3,chunk_size=32 or mag:gate=sigmoid\n"
        f"A preset takes any rule ({RULES['titans'].name} unless told otherwise): "
        "mnemonist train --preset mag-4m --model.rule gated-deltanet",
        markup=False,
    )
    return 0


def print_sections(sections: Mapping[str, Mapping[str, tuple[str, ...]]], last: str = "") -> None:
    """Print tables: for each title the names with their lines, the first of which says what it is."""
    console = Console(highlight=False)
    for title, rows in sections.items():
        grid = _table(title)
        grid.add_column(no_wrap=True)
        grid.add_column()
        for name, lines in rows.items():
            grid.add_row(name, escape(lines[0]))
            for line in lines[1:]:
                grid.add_row("", escape(line), style="dim")
        console.print(grid)
        console.print()
    if last:
        console.print(last, markup=False)


def _table(title: str) -> Table:
    return Table(
        title=title, title_justify="left", title_style="bold", box=None, show_header=False, padding=(0, 2, 0, 0)
    )


def _presets() -> Table:
    """Sizes of the presets; state is what one stream keeps, however long it is."""
    grid = _table("Presets: models by name; those of one size but tiny have equally many parameters")
    grid.show_header, grid.header_style = True, "dim"
    grid.add_column("", no_wrap=True)
    for name in ("blocks", "width", "window", "vocabulary", "parameters", "state"):
        grid.add_column(name, justify="right")
    for name, config in PRESETS.items():
        cost = model_cost(config)
        state = decimal(cost.state_bytes)
        if cost.state_bytes_per_token:
            state = f"{decimal(cost.state_bytes_per_token)}/token"
        blocks, parameters = str(len(config.blocks)), amount(cost.parameters).strip()
        grid.add_row(name, blocks, str(config.width), str(config.window), f"{config.vocab_size:,}", parameters, state)
    return grid


def _shape(rule: MemoryRule) -> str:
    shape = "matrix" if rule.depth == 1 else f"MLP of {rule.depth}, x{rule.expansion:g}, {rule.activation}"
    extras = [word for word, there in (("residual", rule.residual), ("norm", rule.norm)) if there]
    seen = [f"phi = {rule.feature_map}"] if rule.feature_map else []
    return ", ".join([shape, *extras, *seen, *(["denominator"] if rule.denominator else [])])


def _steps(rule: MemoryRule) -> str:
    if rule.step == "optimum":
        return f"to the optimum, ridge {rule.ridge:g}"
    where = {
        "previous": "at each token",
        "decayed": "at each token, after forgetting",
        "chunk": f"from the start of a chunk of {rule.chunk_size}",
    }[rule.gradient_at]
    times = f"{rule.writes} times " if rule.writes > 1 else ""
    way = "" if rule.step_is_gradient else f", {rule.step}"
    of = f" down the losses of the last {rule.window} tokens" if rule.window > 1 else ""
    return f"{times}{where}{of}{', with momentum' if rule.momentum else ''}{way}"


def _forgets(rule: MemoryRule) -> str:
    if rule.retention == "none":
        return "forgets nothing"
    to = " to its initial weights" if rule.decay_to == "initial" else ""
    return f"forgets per {rule.retention}{to}"
