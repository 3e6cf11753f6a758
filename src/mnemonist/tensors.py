"""Files of named tensors: safetensors with a header that says what they are. Nothing in such a file is executed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mnemonist.errors import UserError
from mnemonist.files import write_atomically


def save_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], **header: str) -> None:
    """Write one safetensors file, whole or not at all; ``header`` needs a ``format``.

    Raises:
        FileError: the file cannot be written.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(plain, metadata=header))


def load_tensors(
    path: str | os.PathLike[str], expected_format: str, device: str | torch.device = "cpu"
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a file that `save_tensors` wrote.

    Raises:
        UserError: there is no such file, it is damaged, or it holds something else than ``expected_format``.
    """
    if not Path(path).is_file():
        raise UserError(f"there is no file {path}; give the path of one that holds {expected_format!r}")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is not a dict)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}); it may be cut short or foreign") from error
    if header.get("format") != expected_format:
        held = header.get("format", "something else")
        raise UserError(f"{path} holds {held!r}, not {expected_format!r}; it may be from another version of mnemonist")
    return tensors, header
