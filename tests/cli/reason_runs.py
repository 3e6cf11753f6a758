"""What tests of ``mnemonist reason`` share: small runs, and a policy that gets some sums right."""

from __future__ import annotations

import http.server
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_tokenizers import chat_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from mnemonist.cli.reason import solving
from mnemonist.data import ByteTokenizer
from mnemonist.reasoning.tree import Tree, load_trees

SUMS = "chain-arithmetic:digits=1,minus=false"
SMALL = "window-tiny:width=48,heads=2,head_dim=24,mlp_width=96"
"""Some 60 thousand parameters."""
SMALLEST = "window-tiny:width=8,heads=1,head_dim=8,mlp_width=16"
QUICK = {
    "training.batch-size": 16,
    "training.learning-rate": 1e-2,
    "training.warmup-steps": 5,
    "training.log-every": 1,
    "training.save-every": 4,
    "training.device": "cpu",
}


def reason(*words: object, **options: object) -> list[str]:
    """A command; options are written with their dashes as underscores."""
    named = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", *_words(value))]
    return ["reason", *map(str, words), *named]


def _words(value: object) -> list[str]:
    return [str(each) for each in value] if isinstance(value, tuple | list) else [str(value)]


def learn(round_: str, out: Path, *words: object, task: str = SUMS, **options: object) -> list[str]:
    quick = [str(word) for name, value in QUICK.items() for word in (f"--{name}", value)]
    return [*reason(round_, task, out=out, **options), *quick, *map(str, words)]


def trees(path: Path) -> list[Tree]:
    return list(load_trees(path))


def timeless(found: Sequence[Tree]) -> list[dict[str, Any]]:
    """Trees as JSON values, without how long they took."""
    values = [tree.to_json() for tree in found]
    for value in values:
        value["ledger"]["seconds"] = 0.0
    return values


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def interrupt_after_pieces(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Press Ctrl-C when so many pieces have been saved."""
    saved = 0

    append = solving.append_trees

    def then_press(path: Path, made: Sequence[Tree]) -> None:
        nonlocal saved
        append(path, made)
        saved += 1
        if saved == count:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(solving, "append_trees", then_press)


def save_llama(folder: Path, tokens: int = ByteTokenizer.vocab_size, width: int = 16, positions: int = 256) -> Path:
    """A transformer of some thousand parameters that reads bytes, as transformers saves it."""
    torch.manual_seed(0)
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 1}
    sizes["max_position_embeddings"] = positions
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    marks = {"bos_token_id": ByteTokenizer.bos_id, "eos_token_id": ByteTokenizer.eos_id}
    LlamaForCausalLM(LlamaConfig(vocab_size=tokens, **sizes, **heads, **marks)).save_pretrained(folder)
    ByteTokenizer().save(folder)
    return folder


def save_chat(folder: Path) -> Path:
    """The same for chats: messages end with another mark than texts, and only the template says so."""
    tokenizer = chat_tokenizer()
    save_llama(folder, len(tokenizer), width=64, positions=512)
    tokenizer.save_pretrained(folder)
    return folder


@contextmanager
def serve(answer: Callable[[dict[str, Any]], str | None]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The address of a server that has one model, called small; and what it is asked, as it comes.

    Where the answer is None, it refuses.
    """
    asked: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._give({"data": [{"id": "small"}]})

        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            text = answer(asked[-1])
            if text is None:
                self._give({"error": "out of credit"}, 402)
                return
            choice = {"index": 0, "text": text, "message": {"content": text}, "finish_reason": "stop"}
            self._give({"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 3}})

        def _give(self, values: object, status: int = 200) -> None:
            content = json.dumps(values).encode()
            with suppress(OSError):  # whoever asked has gone
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{made.server_port}", asked
    finally:
        made.shutdown()
        thread.join()
        made.server_close()
