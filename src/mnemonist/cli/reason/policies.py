"""Who is asked and who learns: a model in a folder, a new one, or one behind a server.

Our models and those of transformers are used alike: a module with the interface of a causal language model, and its
tokenizer. Files are read and nothing in them is executed; nothing is downloaded.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mnemonist.choices import parse_choices
from mnemonist.cli.reason.options import Learner, Waiting
from mnemonist.cli.reason.options import Policy as PolicyOptions
from mnemonist.cli.reason.rates import pretrained
from mnemonist.cli.train import load_model, load_tokenizer
from mnemonist.data import ByteTokenizer, find_tokenizer
from mnemonist.errors import UserError
from mnemonist.models.configuration import CONFIG_FILE, ModelConfig, find_preset
from mnemonist.models.cost import model_cost
from mnemonist.models.hugging_face import MnemonistForCausalLM
from mnemonist.models.modeling import LanguageModel
from mnemonist.models.shipped import find_model, folder_of
from mnemonist.reasoning.adapters import with_adapters
from mnemonist.reasoning.attempts import Attempt, Decoding, Sampler
from mnemonist.reasoning.ledger import Ledger
from mnemonist.reasoning.sampling import LocalSampler, ServerSampler
from mnemonist.reasoning.sampling.json_over_http import Refusal
from mnemonist.tensors import content_hash
from mnemonist.training.accelerator import start_accelerator
from mnemonist.training.configuration import Device
from mnemonist.training.recomputation import recompute

PATIENCE = 20.0
"""Seconds in which a server must say that it is there."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")


@dataclass
class Model:
    """A causal language model with its tokenizer."""

    module: Any
    """With the interface of transformers."""
    tokenizer: Any
    """One of ours or of transformers."""
    name: str
    trained: nn.Module | None = None
    """What is trained in place of the module, which is then a part of it: the module with adapters."""

    @property
    def learner(self) -> nn.Module:
        """What a round trains."""
        return self.trained or self.module

    @property
    def fingerprint(self) -> str:
        """Equal for equal weights."""
        return content_hash("", self.module.state_dict())

    @property
    def parameters(self) -> int:
        """How many numbers it is made of."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    @property
    def counted(self) -> str:
        """How many numbers learn, and of how many if others stay as they are."""
        if self.trained is None:
            return f"{self.parameters:,} parameters"
        own = sum(parameter.numel() for parameter in self.trained.parameters() if parameter.requires_grad)
        return f"{own:,} of {self.parameters:,} parameters"

    def sampler(self, batch_size: int) -> LocalSampler:
        """Asks this very model, as it is at the moment."""
        ours = isinstance(self.module, MnemonistForCausalLM)
        flops = model_cost(self.module.model.config).flops_forward if ours else None
        return LocalSampler(self.module, self.tokenizer, batch_size, name=self.name, flops_per_token=flops)

    def save(self, folder: Path) -> None:
        """Write a folder that `open_model` and transformers read, each file whole; adapters are merged for good.

        Raises:
            UserError: a file cannot be written.
        """
        module: Any = self.module
        if self.trained is not None:
            merged: Any = self.trained
            module = merged.merge_and_unload()
            self.module, self.trained = module, None
        if isinstance(module, MnemonistForCausalLM):
            module.model.save(folder, self.tokenizer)
            return
        with tempfile.TemporaryDirectory(prefix=".", dir=folder) as place:
            module.save_pretrained(place)
            save_tokenizer = getattr(self.tokenizer, "save_pretrained", None) or self.tokenizer.save
            save_tokenizer(place)
            # Named last, the configuration stands for a model that is there.
            for path in sorted(Path(place).iterdir(), key=lambda path: path.name == CONFIG_FILE):
                os.replace(path, folder / path.name)


def open_model(path: Path) -> Model:
    """A model of ours (folder, file or name), or the folder of a causal language model of transformers.

    Raises:
        UserError: there is none, it cannot be read, or it has no tokenizer that fits.
    """
    place = find_model(path)
    if pretrained(place):
        return _open_foreign(place)
    if len(path.parts) == 2 and not os.path.lexists(path) and place == path and not path.suffix:
        raise UserError(
            f"There is no model at {path}; nothing is downloaded: give the folder of a model that is on this machine."
        )
    model = load_model(place)
    tokenizer = load_tokenizer(place, model)
    return _ours(model, tokenizer, folder_of(place).name)


def new_model(preset: str, seed: int) -> Model:
    """A model of bytes that knows nothing, its weights drawn from the seed.

    Args:
        preset: its name, with changes if wanted: "mag-tiny:width=64".
        seed: of the weights.

    Raises:
        ValueError: there is no such preset, or a change does not fit.
    """
    name, _, changes = preset.partition(":")
    config = find_preset(name)
    if changes:
        sizes = tuple(f.name for f in dataclasses.fields(ModelConfig) if f.name not in ("blocks", "vocab_size"))
        config = config.replace(**parse_choices(ModelConfig, changes, f"the preset {name}", sizes))
    torch.manual_seed(seed)
    return _ours(LanguageModel(config), ByteTokenizer(), preset)


def learner_of(options: Learner, seed: int, lora: int | None = None) -> Model:
    """Who learns, with adapters of a rank if that is asked for.

    Raises:
        ValueError: as `open_model` and `new_model`; or the rank is below 1.
    """
    if lora is not None and lora < 1:
        raise UserError(f"lora is {lora}; adapters have a rank of 1 or more")
    model = new_model(options.preset, seed) if options.model is None else open_model(options.model)
    model.module.float()  # matrices may have been in halves
    if options.activation_checkpointing:
        recompute(model.module)
    if lora is not None:
        model.trained = with_adapters(model.module, lora, seed=seed)
    return model


class Nobody:
    """Stands where no policy is needed."""

    name = "nobody"

    def sample(self, prompts: Sequence[str], decoding: Decoding, ledger: Ledger | None = None) -> list[Attempt]:
        """See `Sampler`.

        Raises:
            UserError: always, if anything is asked.
        """
        if not prompts:
            return []
        raise UserError("there is no policy to ask; name one with --model or --server")


def sampler_of(options: PolicyOptions, model: Model | None) -> Sampler:
    """Who is asked.

    Raises:
        UserError: the server's address is none, or its model has no name.
    """
    if options.server is not None:
        return server_sampler(
            options.server, options.server_model, options.batch_size, options.waiting, chat=options.chat
        )
    return Nobody() if model is None else model.sampler(options.batch_size)


def server_sampler(
    url: str, model: str | None, concurrency: int, waiting: Waiting, *, chat: bool = False
) -> ServerSampler:
    """A server of the OpenAI protocol, which is there.

    Raises:
        UserError: the address is none, nobody answers there, the model has no name, or there is no waiting like that.
    """
    if model is None:
        raise UserError("a server may have several models; name the one to ask with --server-model")
    sampler = ServerSampler(
        url,
        model,
        api_key=os.environ.get("OPENAI_API_KEY"),
        chat=chat,
        concurrency=concurrency,
        timeout=waiting.timeout,
        retries=waiting.retries,
    )
    with suppress(Refusal):  # it need not be able to list its models
        dataclasses.replace(sampler.client, timeout=PATIENCE, retries=0).ask("/models", None)
    return sampler


def to_device(model: Model, device: Device) -> None:
    """Bring a model to where it is to compute.

    Raises:
        UserError: there is no such device.
    """
    model.module.to(start_accelerator(device).device)


def _ours(model: LanguageModel, tokenizer: Any, name: str) -> Model:
    return Model(MnemonistForCausalLM.from_language_model(model), tokenizer, name)


def _open_foreign(folder: Path) -> Model:
    """A model of transformers, in float32 as ours are."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        module: Any = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
        rows = module.get_input_embeddings().num_embeddings
        named = any((folder / name).is_file() for name in TOKENIZER_FILES)
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True) if named else None
    except Exception as error:  # theirs are of every kind
        reason = textwrap.shorten(str(error), 300)
        raise UserError(f"the model in {folder} cannot be opened: {reason}") from error
    if tokenizer is None:
        tokenizer = find_tokenizer(folder, rows)
    elif len(tokenizer) > rows:
        raise UserError(
            f"the tokenizer in {folder} has {len(tokenizer):,} tokens and the model {rows:,}: they do not belong "
            "together; use the model's own tokenizer"
        )
    return Model(module.eval(), tokenizer, folder.resolve().name)
