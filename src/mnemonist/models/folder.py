"""The folder a model lives in: `config.json` and safetensors, the same files that transformers writes and reads.

A model trained here opens there, and what `save_pretrained` wrote (in one file or in shards, its tensors named with
the prefix of the wrapping class) opens here. One file alone is enough for us, since its header has the configuration.
Nothing in these files is executed, and no memory is taken before their shapes are known to fit.
"""

from __future__ import annotations

import dataclasses
import json
import os
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mnemonist.data import ByteTokenizer, Tokenizer, require_vocabulary
from mnemonist.errors import UserError
from mnemonist.files import write_atomically
from mnemonist.models.configuration import CONFIG_FILE, MODEL_TYPE, ModelConfig
from mnemonist.tensors import load_tensors, read_tensors, save_tensors

FORMAT = "mnemonist-model/1"
WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
NORM = "norm.weight"
PREFIX = "model."  # of tensors that the wrapping class of transformers saved


def save_model(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], config: ModelConfig, tokenizer: Tokenizer | None
) -> None:
    """Write a folder (weights, config.json, and the tokenizer if there is one), or the weights alone as one file.

    A model with the vocabulary of bytes gets the tokenizer of bytes.

    Raises:
        UserError: the tokenizer does not fit the model, or a file cannot be written.
    """
    if tokenizer is None and config.vocab_size == ByteTokenizer.vocab_size:
        tokenizer = ByteTokenizer()
    if tokenizer is not None:
        require_vocabulary(tokenizer, config.vocab_size)
    folder = None if Path(path).suffix == ".safetensors" else Path(path)
    save_tensors(folder / WEIGHTS_FILE if folder else path, tensors, format=FORMAT, config=config.to_json())
    if folder is None:
        return
    content = {
        "architectures": ["MnemonistForCausalLM"],
        "model_type": MODEL_TYPE,
        "format": FORMAT,
        "dtype": str(tensors[NORM].dtype).removeprefix("torch."),  # which all is computed in; matrices may be in halves
        **dataclasses.asdict(config),
        **token_ids(tokenizer),
    }
    write_atomically(folder / CONFIG_FILE, json.dumps(content, indent=2, sort_keys=True))
    if tokenizer is not None:
        tokenizer.save(folder)


def read_model(
    path: str | os.PathLike[str], device: str | torch.device = "cpu"
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Configuration and tensors of a folder that we or transformers wrote, or of a file that `save_model` wrote.

    Raises:
        UserError: there is none, it is damaged or of a newer version, or it is no model of ours.
    """
    folder = Path(path)
    if folder.name == WEIGHTS_FILE and (folder.parent / CONFIG_FILE).is_file():
        folder = folder.parent
    if not folder.is_dir():
        tensors, header = load_tensors(path, FORMAT, device)
        try:
            return ModelConfig.from_json(header.get("config", "")), tensors
        except (ValueError, TypeError) as error:
            raise misfit(path, error) from error
    if not (folder / CONFIG_FILE).is_file():
        return read_model(folder / WEIGHTS_FILE, device)
    config = read_config(read_json(folder / CONFIG_FILE), folder / CONFIG_FILE)
    tensors = {}
    for file in weight_files(folder):
        tensors |= read_tensors(file, device)[0]
    if all(name.startswith(PREFIX) for name in tensors):
        tensors = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    return config, tensors


def read_config(content: Mapping[str, Any], where: str | os.PathLike[str]) -> ModelConfig:
    """The `ModelConfig` within a config.json; what transformers keeps there besides is left alone.

    Raises:
        UserError: it is of another kind of model or of a newer version, or a field does not fit.
    """
    kind, form = content.get("model_type"), content.get("format", FORMAT)
    if kind != MODEL_TYPE:
        raise UserError(f"{where} is of a model of type {kind!r}, not {MODEL_TYPE!r}; adopt it first: mnemonist adopt")
    if form != FORMAT:
        raise UserError(f"{where} is of format {form!r}, not {FORMAT!r}; it may be from a newer version of mnemonist")
    names = [field.name for field in dataclasses.fields(ModelConfig)]
    try:
        return ModelConfig(**{name: content[name] for name in names if name in content})
    except (ValueError, TypeError) as error:
        raise UserError(f"{where} cannot be used: {error}") from error


def token_ids(tokenizer: Tokenizer | None) -> dict[str, int]:
    """The ids of a tokenizer's marks under the names that transformers gives them."""
    if tokenizer is None:
        return {}
    ids = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }
    return {name: index for name, index in ids.items() if index is not None}


def misfit(path: str | os.PathLike[str], reason: object) -> UserError:
    """The error for weights that are not those of their configuration."""
    short = textwrap.shorten(str(reason), 300)  # torch lists every tensor, on lines of their own
    return UserError(f"{path} does not hold the weights its configuration asks for: {short}")


def weight_files(folder: Path) -> list[Path]:
    """One file, or the shards that an index names.

    Raises:
        UserError: the index names others than files of the folder.
    """
    if (folder / WEIGHTS_FILE).is_file() or not (folder / INDEX_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    shards = read_json(folder / INDEX_FILE).get("weight_map")
    names = sorted(set(shards.values())) if isinstance(shards, dict) else []
    if not names or any(name != Path(name).name for name in names):
        raise UserError(f"{folder / INDEX_FILE} does not name the files of this folder; save the model again")
    return [folder / name for name in names]


def read_json(path: Path) -> dict[str, Any]:
    """The table in a JSON file.

    Raises:
        UserError: there is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}; save the model again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a table; save the model again")
    return content
