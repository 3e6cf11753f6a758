"""Files of named tensors: safetensors with a header that says what they are. Nothing in such a file is executed."""

from __future__ import annotations

import hashlib
import json
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
    write_atomically(path, _in_order(save(plain, metadata=header)))


def content_hash(text: str, tensors: Mapping[str, Tensor], halves_as: torch.dtype = torch.bfloat16) -> str:
    """Sixteen hexadecimal digits that tell whether ``text`` and every named tensor are the same, bit for bit.

    Args:
        text: anything.
        tensors: by name.
        halves_as: the type that tensors in bfloat16 are taken for.
    """
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        if tensor.dtype == torch.bfloat16:
            tensor = tensor.to(halves_as)
        digest.update(f"\0{name} {tensor.dtype} {list(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _in_order(file: bytes) -> bytes:
    """The same file with its header sorted; safetensors writes metadata in an order that changes from run to run."""
    begin = 8 + int.from_bytes(file[:8], "little")
    header = json.dumps(json.loads(file[8:begin]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors begin at a multiple of 8
    return b"".join((len(header).to_bytes(8, "little"), header, memoryview(file)[begin:]))


def read_tensors(
    path: str | os.PathLike[str], device: str | torch.device = "cpu"
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of any safetensors file.

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    if not Path(path).is_file():
        raise UserError(f"there is no file {path}; give the path of a safetensors file")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            # In memory of their own, which torch aligns: at the odd places of a file, products round differently.
            return {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}); it may be cut short or foreign") from error


def load_tensors(
    path: str | os.PathLike[str], expected_format: str, device: str | torch.device = "cpu"
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a file that `save_tensors` wrote.

    Raises:
        UserError: there is no such file, it is damaged, or it holds something else than ``expected_format``.
    """
    tensors, header = read_tensors(path, device)
    if header.get("format") != expected_format:
        held = header.get("format", "something else")
        raise UserError(f"{path} holds {held!r}, not {expected_format!r}; it may be from another version of mnemonist")
    return tensors, header
