"""Ablation: which of a Titans memory's choices matter at small scale (table 5 of the paper)?

python experiments/ablation/run.py            # what is missing, then the page
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import source_code
from study import Arm, Study, differences, main, mean_over, paired, seeds_of

from mnemonist.evals.results import Result

HERE = Path(__file__).parent
BASE = "text-lmm-2"
SHARED = ("lmm-2", "mac", "mag", "mal")
CHANGES = {
    "linear": ("linear memory (depth 1)", {"rule": "titans:depth=1"}),
    "depth-3": ("depth 3", {"rule": "titans:depth=3,expansion=2"}),
    "depth-4": ("depth 4", {"rule": "titans:depth=4,expansion=2"}),
    "no-convolution": ("no convolution", {"conv_size": 1}),
    "no-momentum": ("no momentum", {"rule": "titans:expansion=2,momentum=false"}),
    "no-decay": ("no decay", {"rule": "titans:expansion=2,retention=none,decay_to=zero"}),
    "decay-to-zero": ("decay to zero", {"rule": "titans:expansion=2,decay_to=zero"}),
    "chunk-8": ("chunks of 8", {"rule": "titans:expansion=2", "chunk": 8}),
    "chunk-16": ("chunks of 16", {"rule": "titans:expansion=2", "chunk": 16}),
    "chunk-64": ("chunks of 64", {"rule": "titans:expansion=2", "chunk": 64}),
    "chunk-128": ("chunks of 128", {"rule": "titans:expansion=2", "chunk": 128}),
    "gates-of-chunks": ("gates of a chunk", {"rule": "titans:expansion=2,gates=chunk"}),
    "window-4": ("no momentum, windows of 4", {"rule": "omeganet:expansion=2,window=4"}),
    "window-16": ("no momentum, windows of 16", {"rule": "omeganet:expansion=2,window=16"}),
    "window-16-momentum": ("windows of 16", {"rule": "titans:expansion=2,window=16"}),
    "mac-no-persistent": ("MAC, no persistent tokens", {"blocks": ("mac", "mac"), "persistent_tokens": 0}),
}
"""What is changed in the LMM of depth 2, expansion 2 and chunks of 32."""
SAYS = {
    "mac": (26.67, "MAC"),
    "mag": (25.70, "MAG"),
    "mal": (25.91, "MAL"),
    "linear": (28.49, "linear memory"),
    "no-convolution": (28.73, "no convolution"),
    "no-momentum": (28.98, "no momentum"),
    "no-decay": (29.04, "no weight decay"),
}
"""Perplexities of the paper's table 5, of models of 400 million parameters; its LMM has 27.01."""


def arm(name: str) -> Arm:
    """The LMM with one thing changed, at the same number of parameters."""
    label, changes = CHANGES[name]
    fields = {key: value for key, value in changes.items() if key not in ("rule", "chunk")}
    rule = str(changes.get("rule", "titans:expansion=2")) + f",chunk_size={changes.get('chunk', 32)}"
    config = source_code.SIZE.replace(**{"blocks": ("lmm", "lmm"), "rule": rule} | fields)
    return source_code.of(label, config, folder=None)


ARMS = {f"text-{name}": source_code.arm(name) for name in SHARED} | {name: arm(name) for name in CHANGES}


def near(result: Result) -> float:
    """Bits per byte within the length that was trained."""
    return mean_over(result, 0, source_code.TRAINING.row_length)


def far(result: Result) -> float:
    """Bits per byte in the last half, from 32 times that length on."""
    return mean_over(result, source_code.LONGEST // 2, source_code.LONGEST)


def write_page(study: Study) -> str:
    """Each change beside the unchanged memory, paired by seed, and beside the paper's."""
    lines = [
        "| model | first 1,024 bytes | from byte 32,768 | against LMM: near | far | live against frozen, far | paper |"
    ]
    lines.append("|---|--:|--:|--:|--:|--:|--:|")
    for name, one in study.arms.items():
        live, base = study.results(name, "live"), study.results(BASE, "live")
        if not live:
            continue
        frozen = study.results(name, "frozen")
        cells = [one.label]
        cells += [paired([measure(result) for result in live]) for measure in (near, far)]
        for measure in (near, far):
            cells.append("" if name == BASE else paired(differences(live, base, measure), signed=True))
        cells.append(paired(differences(live, frozen, far), signed=True))
        printed = SAYS.get(name.removeprefix("text-"))
        cells.append("27.01 (LMM)" if name == BASE else "" if printed is None else f"{printed[0]} ({printed[1]})")
        lines.append("| " + " | ".join(cells) + " |")
    return f"{seeds_of(study)}\n\n" + "\n".join(lines)


STUDY = Study(HERE, ARMS, write_page)

if __name__ == "__main__":
    main(STUDY)
