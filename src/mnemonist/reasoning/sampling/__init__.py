"""Samplers: a model in this process, or one behind a server.

`LocalSampler` keeps a batch of rows busy: when an attempt ends, the next prompt takes its row. `ServerSampler` asks
any server of the OpenAI protocol. Both are `Sampler`s: prompts in, attempts out, every token in the ledger.
"""

from typing import TYPE_CHECKING

from mnemonist.lazy import attach

if TYPE_CHECKING:
    from mnemonist.reasoning.sampling.local import LocalSampler
    from mnemonist.reasoning.sampling.server import SamplingFailed, ServerSampler
    from mnemonist.reasoning.sampling.text import TextTokenizer, text_tokenizer

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "LocalSampler": ".local",
        "SamplingFailed": ".server",
        "ServerSampler": ".server",
        "TextTokenizer": ".text",
        "text_tokenizer": ".text",
    },
)
