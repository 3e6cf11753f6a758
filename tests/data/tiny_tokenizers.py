"""Small tokenizers of every family that is supported, trained on the spot on Python's standard library."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mnemonist.data import standard_library

KINDS = ("gpt2", "cl100k", "unigram", "llama")
MARKS = {
    "gpt2": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
    "cl100k": {"eos_token": "<|endoftext|>"},  # no mark for a start
    "unigram": {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"},
    "llama": {"bos_token": "<s>", "eos_token": "</s>"},
}
# How the tokenizers of GPT-4, Llama 3 and Qwen cut text before they merge.
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@functools.cache
def sample() -> tuple[str, ...]:
    """Some modules, and lines in another script."""
    texts = [d.text.decode() for d in standard_library("heldout") if len(d.text) < 30_000][:12]
    return (*texts, "zażółć gęślą jaźń 🐢 " * 30)


@functools.cache
def trained(kind: str) -> str:
    """A tokenizer.json."""
    if kind in ("gpt2", "cl100k"):
        return _byte_level(None if kind == "gpt2" else CL100K).to_str()
    definition = json.loads(_sentencepiece(kind).to_str())
    # The library trains no byte fallback: its tokens were marks only to get a place in the vocabulary.
    definition["added_tokens"] = definition["added_tokens"][:4]
    definition["model"]["byte_fallback"] = True
    library = Tokenizer.from_str(json.dumps(definition))
    if kind == "unigram":
        library.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    else:  # as Llama 2 and Mistral say the same
        library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        library.pre_tokenizer = None
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        library.decoder = decoders.Sequence(steps)
    return library.to_str()


def save_tokenizer(kind: str, folder: Path) -> Path:
    """A folder as transformers writes it."""
    library = Tokenizer.from_str(trained(kind))
    PreTrainedTokenizerFast(tokenizer_object=library, **MARKS[kind]).save_pretrained(folder)
    return folder


def _byte_level(pattern: str | None) -> Tokenizer:
    library = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    if pattern is None:
        library.pre_tokenizer = byte_level
    else:
        library.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level])
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer: Any = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
    )
    library.train_from_iterator(sample(), trainer)
    return library


def _sentencepiece(kind: str) -> Tokenizer:
    marks = ["<unk>", "<s>", "</s>", "<pad>", *(f"<0x{byte:02X}>" for byte in range(256))]
    if kind == "unigram":
        library = Tokenizer(models.Unigram())
        library.normalizer = normalizers.NFC()
        trainer: Any = trainers.UnigramTrainer(
            vocab_size=700, special_tokens=marks, unk_token="<unk>", show_progress=False, max_piece_length=8
        )
    else:
        library = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
        trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=marks, show_progress=False)
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.train_from_iterator(sample(), trainer)
    return library


CHAT = (
    "{% for one in messages %}<|im_start|>{{ one['role'] }}\n{{ one['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The template of Qwen and SmolLM2, without its system prompt."""


def chat_tokenizer(template: str = CHAT) -> PreTrainedTokenizerFast:
    """Bytes, and marks for the beginning and the end of a message that are not those of a text."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    marks = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    library = Tokenizer(models.BPE(vocab={token: n for n, token in enumerate([*letters, *marks])}, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(marks)
    return PreTrainedTokenizerFast(tokenizer_object=library, bos_token="<s>", eos_token="</s>", chat_template=template)
