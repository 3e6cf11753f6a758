"""Layers and language models: the inner loop in the middle of a network that is trained around it.

`neural_memory.py` is the layer, `blocks.py` what models are lists of, `modeling.py` the language model,
`hugging_face.py` the same as a model of transformers, `adoption.py` what makes pretrained transformers models of ours.
"""

from typing import TYPE_CHECKING

from mnemonist.lazy import attach

if TYPE_CHECKING:
    from mnemonist.models.adoption import adopt, with_blocks
    from mnemonist.models.attention import AttentionState, CausalAttention
    from mnemonist.models.blocks import Block, BlockState
    from mnemonist.models.configuration import BLOCKS, PRESETS, ModelConfig, find_preset
    from mnemonist.models.context import ContextState, MemoryContext
    from mnemonist.models.cost import Cost, matched, model_cost
    from mnemonist.models.hugging_face import MnemonistCache, MnemonistConfig, MnemonistForCausalLM, register
    from mnemonist.models.modeling import LanguageModel, ModelOutput, ModelState
    from mnemonist.models.neural_memory import NeuralMemory, NeuralMemoryState
    from mnemonist.models.session import Reading, Session
    from mnemonist.models.shipped import SHIPPED, find_model

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "BLOCKS": ".configuration",
        "PRESETS": ".configuration",
        "AttentionState": ".attention",
        "Block": ".blocks",
        "BlockState": ".blocks",
        "CausalAttention": ".attention",
        "ContextState": ".context",
        "Cost": ".cost",
        "LanguageModel": ".modeling",
        "MemoryContext": ".context",
        "MnemonistCache": ".hugging_face",
        "MnemonistConfig": ".hugging_face",
        "MnemonistForCausalLM": ".hugging_face",
        "ModelConfig": ".configuration",
        "ModelOutput": ".modeling",
        "ModelState": ".modeling",
        "NeuralMemory": ".neural_memory",
        "NeuralMemoryState": ".neural_memory",
        "Reading": ".session",
        "SHIPPED": ".shipped",
        "Session": ".session",
        "adopt": ".adoption",
        "find_model": ".shipped",
        "find_preset": ".configuration",
        "matched": ".cost",
        "model_cost": ".cost",
        "register": ".hugging_face",
        "with_blocks": ".adoption",
    },
)
