"""What every candidate of the experiments costs: training and decoding, against a transformer of as many parameters.

    python benchmarks/candidates.py             # some minutes on two cores that do nothing else
    python benchmarks/candidates.py --rehearse  # the same at tiny sizes: the figures mean nothing

The rows are those of `mnemonist.evals.candidates`: `docs/which-memory.md` puts what a memory costs beside what it can
do. All run in this process, in turn, in float32, with denormals flushed to zero.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import torch
from cpu_measure import Group, Measure, Pairs, Row
from cpu_models import training
from one_group import measured
from timing import Side, Work, alternate

from mnemonist.evals.candidates import CANDIDATES, configure
from mnemonist.evaluating import at_rest
from mnemonist.models import LanguageModel, ModelConfig
from mnemonist.models.cost import model_cost

RESULTS = Path(__file__).parent / "results"
PEER = "attention"


@dataclass(frozen=True)
class Sizes:
    """Of the models, and of what is asked of them."""

    width: int = 256
    dim: int = 32
    mlp_width: int = 936
    chunk: int = 32
    lengths: tuple[int, ...] = (1024, 8192)
    """Bytes of the text of a step of training, and before those that are decoded."""
    decoded: int = 64
    rows: int = 32
    """That attempts at problems are written in at once, after the shortest text."""
    decoded_in_rows: int = 16
    runs: int = 5

    @property
    def transformer(self) -> ModelConfig:
        """Which sets the number of parameters."""
        heads = self.width // self.dim
        return ModelConfig(
            blocks=("attention",) * 2, width=self.width, heads=heads, head_dim=self.dim, memory_heads=heads,
            memory_head_dim=self.dim, window=self.chunk, persistent_tokens=0, mlp_width=self.mlp_width,
        )  # fmt: skip


TINY = Sizes(width=32, dim=16, mlp_width=160, chunk=8, lengths=(24, 48), decoded=2, rows=3, decoded_in_rows=2, runs=1)


def configurations(sizes: Sizes) -> dict[str, ModelConfig]:
    """Of every candidate, the transformer last; deep memories of expansion 2."""
    names = [name for name in CANDIDATES if name != PEER] + [PEER]
    made = {}
    for name in names:
        rule = CANDIDATES[name].rule
        changes = f"chunk_size={sizes.chunk}" if rule.startswith("titans") else ""
        if rule.startswith("titans") and rule != "titans-linear":
            changes += ",expansion=2"
        made[name] = configure(name, sizes.transformer, changes)
    return made


def decoding(model: LanguageModel, rows: int, length: int, decoded: int) -> Work:
    """Bytes one by one, after texts of this length; of several all but the first are up to a window shorter."""
    model.eval()
    ids = torch.randint(0, 256, (rows, length + decoded))
    missing = torch.randint(0, model.config.window, (rows, 1))
    missing[0] = 0
    with torch.inference_mode():
        before = model(ids[:, :length], mask=torch.arange(length) >= missing, positions=slice(-1, None)).state

    def work() -> None:
        with torch.inference_mode(), at_rest():
            state = before
            for t in range(length, length + decoded):
                state = model(ids[:, t : t + 1], state).state

    return work


def compared(sizes: Sizes, what: str, length: int) -> list[Pairs]:
    """Seconds of all candidates, each with the transformer's."""
    configs = configurations(sizes)
    rows, decoded = (1, sizes.decoded) if what == "decoding" else (sizes.rows, sizes.decoded_in_rows)
    sides = []
    for config in configs.values():
        torch.manual_seed(0)
        if what == "training":
            sides.append(Side(*training(config, (length, max(1, length // 4)))))
        else:
            sides.append(Side(decoding(LanguageModel(config), rows, length, decoded)))
    per = 1 if what == "training" else rows * decoded
    *ours, theirs = [[s / per for s in times] for times in alternate(sides, sizes.runs)]
    found = []
    for (name, config), times in zip(configs.items(), ours, strict=False):  # the transformer is the last, and no row
        facts = {"candidate": name, "what": what, "length": length}
        states = {"state_bytes": state_of(config, length), "peer_state_bytes": state_of(configs[PEER], length)}
        found.append(Pairs(times, theirs, facts | states))
    return found


def state_of(config: ModelConfig, length: int) -> int:
    """Bytes that a model keeps of a text of this length."""
    cost = model_cost(config)
    return cost.state_bytes + length * cost.state_bytes_per_token


def group(sizes: Sizes) -> Group:
    """All that is measured."""
    transformer = sizes.transformer
    text = (
        f"Models of {model_cost(transformer).parameters / 1e6:.1f}M parameters each: 2 blocks of width {sizes.width}, "
        f"{transformer.heads} heads of {sizes.dim}, windows, segments and chunks of {sizes.chunk}, deep memories of "
        f"expansion 2, one row of bytes. Training is a step (forward, loss, backward, AdamW), decoding one more byte "
        f"with the state, in one row or in {sizes.rows} that stand at different places. The ratio says how many times "
        f"less time a candidate takes than the transformer."
    )
    measures = []
    asked = [(what, length) for what in ("training", "decoding") for length in sizes.lengths]
    for what, length in (*asked, (f"decoding {sizes.rows} rows", sizes.lengths[0])):
        label = f"a step on {length:,} bytes" if what == "training" else f"{what}, a byte after {length:,}"
        rows = tuple(
            Row(f"{candidate.label}, {label}", "transformer with full attention")
            for name, candidate in CANDIDATES.items()
            if name != PEER
        )
        measures.append(Measure(rows, lambda what=what, length=length: compared(sizes, what, length)))
    return Group("Candidates", text, tuple(measures))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "candidates.json", help="default: %(default)s")
    parser.add_argument("--only", help="measure again what has this in its name; the report keeps the rest")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes; the figures mean nothing")
    options = parser.parse_args()
    what = "a rehearsal: its figures mean nothing" if options.rehearse else "candidates on a CPU"
    measured(group(TINY if options.rehearse else Sizes()), what, options.out, ("mnemonist", "torch"), options.only)
    return 0


if __name__ == "__main__":
    sys.exit(main())
