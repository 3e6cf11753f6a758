"""``mnemonist adopt``: a pretrained transformer as a model of ours, with memories if wanted."""

from __future__ import annotations

from typing import Any

import torch

from mnemonist.cli.options import Adopt
from mnemonist.cli.plan import describe_state
from mnemonist.cli.process import prepare_torch, say
from mnemonist.cli.train import MODEL_FILE
from mnemonist.data import find_tokenizer, require_vocabulary
from mnemonist.data.tokenizer_files import MARK_FILES, OTHER_FILES
from mnemonist.errors import UserError
from mnemonist.files import write_atomically
from mnemonist.models.adoption import adopt, read_adopted_config, with_blocks
from mnemonist.models.configuration import ModelConfig, find_block
from mnemonist.models.cost import model_cost
from mnemonist.models.modeling import LanguageModel

TOKENIZER_FILES = ("tokenizer.json", "added_tokens.json", "chat_template.jinja", *MARK_FILES, *OTHER_FILES)


def run_adopt(options: Adopt) -> int:
    """Read, exchange blocks, write, and say what it is now."""
    prepare_torch()
    if (options.out / MODEL_FILE).exists():
        raise UserError(f"there is a model in {options.out} already; take another folder with --out")
    _check(options, read_adopted_config(options.folder))
    tokenizer = find_tokenizer(options.folder)
    model = adopt(options.folder, tokenizer.vocab_size)
    require_vocabulary(tokenizer, model.config.vocab_size)
    say(f"{model.parameter_count:,} parameters, {len(model.blocks)} blocks: {_of_kinds(model)}")
    were_halves = _are_halves(model)
    if options.blocks:
        torch.manual_seed(options.seed)
        sink = tokenizer.bos_id if options.sink and any(map(_has_window, options.blocks)) else None
        model, new = with_blocks(model, options.blocks, sink=sink, **_changes(options))
        sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
        fresh = sum(sizes[name] for name in new)
        say(f"now {_of_kinds(model)}; {fresh:,} of {model.parameter_count:,} parameters are new")
    if options.weights == "bfloat16":
        model.matrices_to(torch.bfloat16)
        say("large matrices are in bfloat16, " + ("as they were" if were_halves else "rounded: they were not before"))
    elif were_halves:
        say("large matrices were in bfloat16; --weights bfloat16 keeps them so: half the memory, and it writes faster")
    say(f"a stream keeps {describe_state(model_cost(model.config))}")
    model.save(options.out, tokenizer)
    for name in TOKENIZER_FILES:  # as they were: they also say how to chat
        if (options.folder / name).is_file():
            write_atomically(options.out / name, (options.folder / name).read_bytes())
    say(
        f"model in {options.out}; read with it: mnemonist read PATH --model {options.out}; let it learn: "
        f"mnemonist train --from {options.out} --data PATH"
    )
    return 0


def _check(options: Adopt, config: ModelConfig) -> None:
    """What need not wait for the model to be read.

    Raises:
        UserError: a window has no size, or a size is given that nothing takes.
    """
    kinds = [find_block(block) for block in options.blocks]
    windows = any(kind.kind not in ("attention", "lmm") for kind in kinds)
    if windows and options.window is None and "window" not in config.blocks:
        raise UserError("these blocks have a window; say how many tokens it sees: --window 256")
    if not windows and options.window is not None:
        raise UserError("--window is for blocks that have one; name them: --blocks mag:gate=add")


def _are_halves(model: LanguageModel) -> bool:
    """Whether its matrices lose nothing in bfloat16, as those that were published in it."""
    matrices = list(model.matrices())
    return bool(matrices) and all(torch.equal(matrix, matrix.bfloat16().float()) for matrix in matrices)


def _has_window(block: str) -> bool:
    return find_block(block).kind in ("window", "mag", "mal")


def _changes(options: Adopt) -> dict[str, Any]:
    """Fields of the configuration that the options name."""
    named = {
        "window": options.window,
        "rule": options.rule,
        "memory_heads": options.memory_heads,
        "memory_head_dim": options.memory_head_dim,
    }
    return {name: value for name, value in named.items() if value is not None}


def _of_kinds(model: LanguageModel) -> str:
    """How many blocks there are of each kind."""
    blocks = model.config.blocks
    return ", ".join(f"{blocks.count(kind)} {kind}" for kind in dict.fromkeys(blocks))
