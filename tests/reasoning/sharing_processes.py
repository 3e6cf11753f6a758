"""A policy gradient as a program, so that a test can run it in two processes at once."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
from toy_policies import FORMAT, VowelTask, problems_of, speller, with_changes

from mnemonist.reasoning.attempts import Decoding
from mnemonist.reasoning.learning import learn
from mnemonist.reasoning.proposing import Material
from mnemonist.reasoning.round_folder import weights_of
from mnemonist.reasoning.rounds import ROUNDS
from mnemonist.tensors import content_hash


def main(folder: str) -> str:
    """Two steps on the attempts of each iteration; what the weights have become."""
    choices = replace(ROUNDS["grpo"], problems=3, attempts=4, minibatches=2, iterations=2)
    choices = replace(choices, decoding=Decoding(max_tokens=6))
    policy = speller()
    material = Material(VowelTask(), FORMAT, problems_of(VowelTask(), 8))
    learn(choices, policy, material, folder, with_changes(learning_rate=3e-3), progress=False)
    return content_hash("", weights_of(policy.model))


def run_in_two(folder: Path) -> list[str]:
    """What two processes say that share the work."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    command = [sys.executable, __file__, str(folder)]
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen(command, env={**shared, "RANK": rank, "LOCAL_RANK": rank}, stdout=pipe, stderr=pipe, text=True)
        for rank in ("0", "1")
    ]
    told = [process.communicate(timeout=120) for process in processes]
    for process, (_, errors) in zip(processes, told, strict=True):
        assert process.returncode == 0, errors
    return [out.strip() for out, _ in told]


if __name__ == "__main__":
    print(main(sys.argv[1]))
