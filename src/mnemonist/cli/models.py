"""``mnemonist models``: the tables."""

from __future__ import annotations

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from mnemonist.cli.figures import amount
from mnemonist.memory.feature_map_table import FEATURE_MAPS
from mnemonist.memory.rule import RULES, MemoryRule
from mnemonist.models.configuration import BLOCKS, PRESETS, ModelConfig
from mnemonist.models.cost import model_cost


def run_models() -> int:
    """Print every named rule, block, preset and feature map with its source."""
    sections: dict[str, dict[str, tuple[str, ...]]] = {
        "Rules: how a memory learns while it reads": {
            rule.name: (f"{_shape(rule)}; loss {rule.objective}; steps {_steps(rule)}; {_forgets(rule)}", rule.source)
            for rule in RULES.values()
        },
        "Blocks: what a model is a list of": {name: (block.summary, block.source) for name, block in BLOCKS.items()},
        "Presets: models by name": {
            name: (f"{' '.join(p.blocks)}; rule {p.rule}; width {p.width}; window {p.window}", _size(p))
            for name, p in PRESETS.items()
        },
        "Feature maps: how a memory sees keys and queries": {
            info.name: (f"{info.kind}: {info.formula}", f"fails when: {info.fails_when}", info.source)
            for info in FEATURE_MAPS.values()
        },
    }
    console = Console(highlight=False)
    for title, rows in sections.items():
        grid = Table(
            title=title, title_justify="left", title_style="bold", box=None, show_header=False, padding=(0, 2, 0, 0)
        )
        grid.add_column(no_wrap=True)
        grid.add_column()
        for name, lines in rows.items():
            grid.add_row(name, lines[0])
            for line in lines[1:]:
                grid.add_row("", line, style="dim")
        console.print(grid)
        console.print()
    console.print("A rule can be changed choice by choice: titans:depth=3,chunk_size=32", markup=False)
    return 0


def _size(config: ModelConfig) -> str:
    cost = model_cost(config)
    return f"{amount(cost.parameters)}parameters; state of one stream {decimal(cost.state_bytes)}"


def _shape(rule: MemoryRule) -> str:
    shape = "matrix" if rule.depth == 1 else f"MLP of {rule.depth}, x{rule.expansion:g}, {rule.activation}"
    extras = [word for word, there in (("residual", rule.residual), ("norm", rule.norm)) if there]
    seen = [f"phi = {rule.feature_map}"] if rule.feature_map else []
    return ", ".join([shape, *extras, *seen, *(["denominator"] if rule.denominator else [])])


def _steps(rule: MemoryRule) -> str:
    where = {
        "previous": "at each token",
        "decayed": "at each token, after forgetting",
        "chunk": f"from the start of a chunk of {rule.chunk_size}",
    }[rule.gradient_at]
    return f"{where}, with momentum" if rule.momentum else where


def _forgets(rule: MemoryRule) -> str:
    if rule.retention == "none":
        return "forgets nothing"
    to = " to its initial weights" if rule.decay_to == "initial" else ""
    return f"forgets per {rule.retention}{to}"
