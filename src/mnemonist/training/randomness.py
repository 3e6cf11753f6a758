"""Random numbers that go on where they stopped.

Dropout and the like draw from generators that Python, numpy and torch each keep for the whole process. A run
that is to continue exactly must find all of them as it left them. Their states are small; here they become
plain JSON values.
"""

import base64
import hashlib
import random
from typing import Any

import numpy as np
import torch

from mnemonist.errors import UserError

RandomState = dict[str, Any]
"""The generators of one process as JSON values; made by `capture_random_state`."""


def seed_generators(seed: int, rank: int) -> None:
    """Set every generator of this process from the run's seed; each process draws other numbers."""
    # Hashed, because seed + rank would give neighbouring seeds the same numbers in neighbouring processes.
    start = int.from_bytes(hashlib.sha256(f"{seed} {rank}".encode()).digest()[:8], "big")
    random.seed(start)
    np.random.seed([start >> 32, start & 0xFFFFFFFF])
    torch.manual_seed(start)


def capture_random_state(device: torch.device) -> RandomState:
    """Every generator of this process, that of `device` included if it is a CUDA device."""
    kind, numbers, gauss = random.getstate()
    numpy_state = np.random.get_state(legacy=False)
    assert isinstance(numpy_state, dict)
    return {
        "python": [kind, list(numbers), gauss],
        "numpy": {
            "key": numpy_state["state"]["key"].tolist(),
            "pos": int(numpy_state["state"]["pos"]),
            "has_gauss": int(numpy_state["has_gauss"]),
            "gauss": float(numpy_state["gauss"]),
        },
        "torch": _encode(torch.get_rng_state()),
        "cuda": _encode(torch.cuda.get_rng_state(device)) if device.type == "cuda" else None,
    }


def restore_random_state(state: RandomState, device: torch.device) -> None:
    """Set every generator of this process to a captured state.

    Raises:
        UserError: the state is damaged, or has none for the CUDA device in use.
    """
    if device.type == "cuda" and state.get("cuda") is None:
        raise UserError("the saved random state has none for a CUDA device: resume on the device used before")
    try:
        kind, numbers, gauss = state["python"]
        random.setstate((kind, tuple(numbers), gauss))
        np.random.set_state(_numpy_state(state["numpy"]))
        torch.set_rng_state(_decode(state["torch"]))
        if device.type == "cuda":
            torch.cuda.set_rng_state(_decode(state["cuda"]), device)
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise UserError("the saved random state is damaged: use another checkpoint") from error


def _numpy_state(saved: dict[str, Any]) -> dict[str, Any]:
    key = np.asarray(saved["key"], dtype=np.uint32)
    if key.shape != (624,) or not 0 <= saved["pos"] <= 624:  # numpy itself does not look at the position
        raise ValueError("not a state of the Mersenne Twister")
    inner = {"key": key, "pos": int(saved["pos"])}
    return {
        "bit_generator": "MT19937",
        "state": inner,
        "has_gauss": int(saved["has_gauss"]),
        "gauss": float(saved["gauss"]),
    }


def _encode(state: torch.Tensor) -> str:
    return base64.b64encode(state.cpu().numpy().tobytes()).decode()


def _decode(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text, validate=True)), dtype=torch.uint8)
