"""The byte tokenizer in the files that `transformers.AutoTokenizer` reads, so that a model folder is whole for others.

It is a byte-level BPE without a single merge: every byte is a token, and its id is the byte. Text alone gives bytes
alone: a text that says "<eos>" does not end there. Every text begins with `<bos>`, and batches are padded on the left,
where `generate` needs it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from mnemonist.data.subword import BYTE_OF
from mnemonist.data.tokenizer import ByteTokenizer
from mnemonist.files import write_atomically

MARKS = {"<bos>": ByteTokenizer.bos_id, "<eos>": ByteTokenizer.eos_id, "<pad>": ByteTokenizer.pad_id}


def save_byte_tokenizer(folder: str | os.PathLike[str]) -> None:
    """Write tokenizer.json and tokenizer_config.json of `ByteTokenizer`'s ids into a folder.

    Raises:
        FileError: they cannot be written.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers.models import BPE

    tokenizer = Tokenizer(BPE(vocab={letter: byte[0] for letter, byte in BYTE_OF.items()}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in MARKS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", MARKS["<bos>"])]
    )
    assert {mark: tokenizer.token_to_id(mark) for mark in MARKS} == MARKS
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # takes tokenizer.json as it is
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "add_bos_token": True,
        "padding_side": "left",
        "split_special_tokens": True,  # marks are not read out of text
        "clean_up_tokenization_spaces": False,
    }
    write_atomically(Path(folder, "tokenizer.json"), tokenizer.to_str())
    write_atomically(Path(folder, "tokenizer_config.json"), json.dumps(config, indent=2))
