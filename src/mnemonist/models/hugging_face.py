"""The models as transformers knows models: the only file that touches what is inside transformers.

`MnemonistForCausalLM` holds a `LanguageModel` and translates: masks of 0 and 1 become padding, a `ModelState` travels
in a `MnemonistCache`, labels become a loss. What transformers does with a causal language model then works:
`generate`, pipelines, `Trainer`, PEFT, lm-eval. Three things differ from a transformer, since reading cannot be undone:

* a cache is one state for all layers, of constant size; it can be copied and its rows selected, but not cut back, so
  assisted decoding (which takes guesses back) is refused;
* padding reads as nothing at all, wherever it stands, and so do the pads behind a row that has ended: a batch gives
  what its rows give alone, and the cache that `generate` returns can be read on from;
* positions are counted by the state, so there are no position ids.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils.generic import can_return_tuple

from mnemonist.data import ByteTokenizer
from mnemonist.errors import UserError
from mnemonist.evaluating import at_rest
from mnemonist.memory.eager import eager
from mnemonist.models.configuration import MODEL_TYPE, ModelConfig
from mnemonist.models.folder import FORMAT, PREFIX, read_config, token_ids
from mnemonist.models.modeling import ALL, INITIAL_STD, LanguageModel, ModelState
from mnemonist.models.session import Session
from mnemonist.models.state import join_states

IGNORED = -100  # the label of a token that is not to be predicted
FIELDS = tuple(field.name for field in dataclasses.fields(ModelConfig))


class MnemonistConfig(PreTrainedConfig):
    """Every field of `ModelConfig`, and what transformers keeps besides (ids of marks, type of the numbers).

    Raises:
        ValueError: as `ModelConfig`; or the configuration is from a newer version.
    """

    model_type = MODEL_TYPE
    attribute_map = {"hidden_size": "width", "num_attention_heads": "heads"}  # noqa: RUF012 (theirs)
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012

    def __init__(self, **values: Any) -> None:
        values = {self.attribute_map.get(name, name): value for name, value in values.items()}
        config = read_config({**values, "model_type": MODEL_TYPE}, "the configuration")
        own = {**dataclasses.asdict(config), "blocks": list(config.blocks), "format": FORMAT}
        marks = token_ids(ByteTokenizer()) if config.vocab_size == ByteTokenizer.vocab_size else {}
        super().__init__(**{**marks, **values, **own})

    @classmethod
    def from_model_config(cls, config: ModelConfig) -> MnemonistConfig:
        """The same model for transformers."""
        return cls(**dataclasses.asdict(config))

    def to_model_config(self) -> ModelConfig:
        """The same model for us."""
        return ModelConfig(**{name: getattr(self, name) for name in FIELDS})

    @property
    def num_hidden_layers(self) -> int:
        """Blocks of the model."""
        return len(self.blocks)


class MnemonistCache(Cache):
    """What a model has become while reading, for `past_key_values`.

    Like other caches it changes when a model reads with it. The state in it does not: it is a value, and
    `MnemonistCache.from_state(cache.state, cache.length)` is an independent copy for the price of nothing.
    """

    _is_user_defined = True  # so that `generate` never runs a step ahead, which could not be taken back

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.state: ModelState | None = None
        """None until something was read."""
        self.length = 0
        """Columns of `input_ids` that the state has read, padding included."""
        self.config: ModelConfig | None = None
        """Of the model that read."""

    @classmethod
    def from_state(cls, state: ModelState | None, length: int = 0) -> MnemonistCache:
        """A cache that goes on from a state.

        Args:
            state: of any reading.
            length: how many columns of what `generate` will be given the state has read. Leave it 0 if `generate`
                is given new text alone, as after reading a long file.
        """
        cache = cls()
        cache.state, cache.length = state, length
        return cache

    def advance(self, state: ModelState, columns: int, config: ModelConfig) -> None:
        """Take the state of a model that has read ``columns`` more."""
        self.state, self.length, self.config = state, self.length + columns, config

    def __len__(self) -> int:
        """Blocks of the model."""
        return 0 if self.state is None else len(self.state.blocks)

    def __bool__(self) -> bool:
        """A cache that has read nothing is a cache nonetheless."""
        return True

    def __repr__(self) -> str:
        return f"MnemonistCache(batch_size={self.batch_size}, length={self.length})"

    @property
    def batch_size(self) -> int:
        """Rows, or -1 before anything was read."""
        return -1 if self.state is None else self.state.batch

    @property
    def is_initialized(self) -> bool:
        """Whether anything was read."""
        return self.state is not None

    @property
    def is_croppable(self) -> bool:
        """False: what was read cannot be unread."""
        return False

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns read."""
        return self.length

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: no end."""
        return -1

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Columns of a full mask, and where it begins."""
        return self.length + query_length, 0

    def reset(self) -> None:
        """Back to the beginning."""
        self.state, self.length = None, 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep these rows, in this order, repeats allowed."""
        if self.state is not None:
            self.state = self.state.select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """The same by another of its names."""
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row ``repeats`` times."""
        if self.state is not None:
            self.state = self.state.select(torch.arange(self.batch_size).repeat_interleave(repeats))

    def batch_extend(self, other: MnemonistCache) -> None:
        """The rows of another cache of the same model behind these; the other stays as it is.

        They may have read texts of different lengths: what is read next needs a mask of its own columns alone.

        Raises:
            ValueError: one has read nothing, or they are of different models.
        """
        mine, theirs = self._both(other)
        mine.require_like(theirs)
        self.state = join_states([mine, theirs])
        self.length = max(self.length, other.length)

    def overwrite(self, rows: Sequence[int], other: MnemonistCache, picks: Sequence[int]) -> None:
        """Rows ``rows`` replaced by rows ``picks`` of another cache of the same model, which stays as it is.

        In place, so nothing else may hold this cache's state; else as `batch_extend` and `batch_select_indices`.

        Raises:
            ValueError: as `batch_extend`.
        """
        mine, theirs = self._both(other)
        self.state = mine.overwrite(rows, theirs, picks)
        self.length = max(self.length, other.length)

    def shrink(self, sources: Sequence[int]) -> None:
        """Keep ``len(sources)`` rows, in place; row ``i`` is what was row ``sources[i]``, itself or one behind them."""
        if self.state is not None:
            self.state = self.state.shrink(sources)

    def _both(self, other: MnemonistCache) -> tuple[ModelState, ModelState]:
        if self.state is None or other.state is None:
            raise ValueError("A cache that has read nothing has no rows; read with both before joining them.")
        if self.config != other.config:
            raise ValueError("The caches are of different models; join those of one.")
        return self.state, other.state

    def crop(self, tokens_to_remove: int) -> None:
        """Refused, unless there is nothing to do.

        Raises:
            ValueError: tokens are to be removed.
        """
        if tokens_to_remove:
            raise ValueError(
                "A memory cannot unread tokens; keep cache.state from before them and use MnemonistCache.from_state."
            )


class MnemonistForCausalLM(PreTrainedModel, GenerationMixin):
    """A `LanguageModel` as a causal language model of transformers; the model itself is `model`."""

    config_class = MnemonistConfig
    base_model_prefix = PREFIX.removesuffix(".")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True
    _is_stateful = True
    _supports_sdpa = True
    _no_split_modules = ["Block"]  # noqa: RUF012

    def __init__(self, config: MnemonistConfig) -> None:
        super().__init__(config)
        self.model = LanguageModel(config.to_model_config())
        for module in self.model.modules():
            module._is_hf_initialized = True  # by itself
        self.post_init()

    @classmethod
    def from_language_model(cls, model: LanguageModel) -> MnemonistForCausalLM:
        """Wrap a model; both go on using the same weights."""
        with torch.device("meta"):  # the weights of its own are thrown away
            wrapped = cls(MnemonistConfig.from_model_config(model.config))
        wrapped.model = model
        return wrapped.train(model.training)

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **options: Any) -> Any:
        """As in transformers, but of safetensors alone, and every weight must be there.

        Raises:
            UserError: weights are missing, or of other shapes than the configuration says.
        """
        options |= {"use_safetensors": True, "ignore_mismatched_sizes": True, "output_loading_info": True}
        loaded: Any = super().from_pretrained(*args, **options)
        model, info = loaded
        if odd := sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"], *info["unexpected_keys"]])):
            raise UserError(f"The weights are not those of the configuration: {', '.join(odd[:4])}.")
        model.model.mark_parameters()
        return (model, info) if output_loading_info else model

    @property
    def dtype(self) -> torch.dtype:
        """That of the model, whatever its matrices are held in."""
        return self.model.dtype

    def generate(self, *args: Any, **options: Any) -> Any:
        """As in transformers."""
        with at_rest():
            return super().generate(*args, **options)  # type: ignore[misc]

    def inputs_of(self, session: Session) -> dict[str, Any]:
        """What `generate` takes to write on after a session: ``model.generate(**model.inputs_of(session))``.

        Its `input_ids` are the last token of each stream, which is read again, so the text that comes back begins
        with it. The session stays as it is.

        Raises:
            ValueError: nothing was read.
            UserError: the session is of another model.
        """
        state, last = session.before_last(self.model)
        last = last.to(self.device)
        return {
            "input_ids": last,
            "attention_mask": torch.ones_like(last),
            "past_key_values": MnemonistCache.from_state(state),
        }

    def _init_weights(self, module: nn.Module) -> None:
        """Embeddings of new tokens; everything else has initialised itself."""
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=INITIAL_STD)

    def get_input_embeddings(self) -> nn.Embedding:
        """The embeddings; logits are computed from the same ones."""
        return self.model.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Take other embeddings, perhaps of more tokens."""
        assert isinstance(value, nn.Embedding)
        self.model.replace_embedding(value)

    def get_output_embeddings(self) -> nn.Linear | None:
        """What gives the logits, if that is not the embeddings."""
        return self.model.head

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Take another head, perhaps for more tokens."""
        assert isinstance(value, nn.Linear)
        self.model.head = value

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: MnemonistCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        position_ids: Tensor | None = None,
        learn: bool = True,
    ) -> CausalLMOutputWithPast:
        """Read ``[B, T]`` tokens.

        Args:
            input_ids: int64 ``[B, T]``.
            attention_mask: ``[B, T]``, or ``[B, S + T]`` after a cache that has read ``S`` columns; 0 is padding.
            past_key_values: what was read before; changed in place.
            inputs_embeds: ``[B, T, E]`` in place of ``input_ids``.
            labels: int64 ``[B, T]``, shifted in here; -100 is not to be predicted, nor is what follows padding.
            use_cache: whether to return a cache; by default only outside of training.
            output_hidden_states: whether to return what went from block to block.
            output_attentions: refused, as attention never has its weights in memory.
            logits_to_keep: logits of the last so many tokens, or of these indices; 0 means all.
            num_items_in_batch: what to divide the summed loss by, where a batch comes in several parts.
            position_ids: int64 ``[B, T]``. Without a cache or padding, a document begins in the middle of a row where
                they begin again at 0, as `DataCollatorWithFlattening` packs them: nothing before it reaches it. Else
                they say nothing that this model needs.
            learn: False reads with every memory as it is; `generate` passes it on.

        Raises:
            ValueError: packed documents together with hidden states or a part of the logits; ids outside the
                vocabulary, nothing to read, a mask of another shape, or a cache of another kind, model or batch size.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give either input_ids or inputs_embeds.")
        if output_attentions:
            raise ValueError("This model has no attention weights to give; leave output_attentions out.")
        tokens = input_ids if inputs_embeds is None else inputs_embeds
        assert tokens is not None
        cache = past_key_values
        if cache is None:
            use_cache = not self.training if use_cache is None else use_cache
            cache = MnemonistCache()
        else:
            use_cache = True
            self._check_cache(cache, len(tokens))
        mask = _padding(attention_mask, tokens, cache.length)
        starts = _documents(position_ids) if mask is None and cache.state is None else None
        # Padding behind a row reaches none of its tokens; only what is kept of the row must not have read it.
        harmless = mask is not None and not use_cache and inputs_embeds is None and _is_behind(mask)
        read = self.model(
            tokens,
            cache.state,
            None if harmless else mask,
            starts=starts,
            learn=learn,
            hidden=bool(output_hidden_states),
            positions=_kept(logits_to_keep),
        )
        loss = None
        if labels is not None:
            if read.logits.shape[1] != labels.shape[1]:
                raise ValueError("labels need the logits of every token; leave logits_to_keep out.")
            loss = self.loss_function(
                logits=read.logits,
                labels=labels if mask is None else labels.masked_fill(~_predicted(mask), IGNORED),
                vocab_size=self.config.vocab_size,
                num_items_in_batch=num_items_in_batch,
            )
        if use_cache:
            cache.advance(read.state, tokens.shape[1], self.model.config)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=read.logits,
            past_key_values=cache if use_cache else None,
            hidden_states=read.hidden,
        )

    def _check_cache(self, cache: Cache, rows: int) -> None:
        if not isinstance(cache, MnemonistCache):
            raise ValueError(
                f"past_key_values is a {type(cache).__name__}, but this model keeps a state of its own; give a "
                "MnemonistCache, or leave it out."
            )
        if cache.config is not None and cache.config != self.model.config:
            raise ValueError("The cache is of another model; read with the model that made it.")
        if cache.config is None and cache.state is not None:  # of a state that came from anywhere
            self.model.initial_state().require_like(cache.state)
        if cache.state is not None and cache.batch_size != rows:
            raise ValueError(
                f"The cache has {cache.batch_size} rows but the batch has {rows}; "
                "cache.batch_repeat_interleave or cache.batch_select_indices changes it."
            )

    def prepare_inputs_for_generation(  # type: ignore[override]  # as any tensor, and our cache
        self,
        input_ids: Any,
        next_sequence_length: int | None = None,
        past_key_values: MnemonistCache | None = None,
        attention_mask: Any = None,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool | None = False,
        end_marks: tuple[int, Tensor] | None = None,
        tokenizer: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """What `forward` is given at each step of `generate`; see transformers.

        ``tokenizer`` is for the stop strings of `generate`, which hands it on to here as well.

        Raises:
            ValueError: a cache is to be read on from, and the input has not even what it has read.
        """
        if is_first_iteration and next_sequence_length is not None and next_sequence_length < 1:
            assert past_key_values is not None
            raise ValueError(
                f"The cache has read {past_key_values.length} tokens, but input_ids has no more than that; give the "
                "whole text, what was read included, or set cache.length = 0 and give new text alone."
            )
        if not is_first_iteration and end_marks is not None:
            columns = input_ids.shape[1] if past_key_values is None else 1
            attention_mask = _without_ended(input_ids, attention_mask, columns, *end_marks)
        return super().prepare_inputs_for_generation(  # type: ignore[misc]  # its `self` is a protocol of theirs
            input_ids,
            next_sequence_length=next_sequence_length,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )

    def _prepare_cache_for_generation(  # type: ignore[override]  # theirs says bool and returns None
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        """Put our cache where `generate` keeps its own, with a row for every beam."""
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise ValueError(
                f"cache_implementation is {generation_config.cache_implementation!r}, but this model has one kind of "
                "cache, of constant size; leave it out."
            )
        _check_last_column(model_kwargs.get("attention_mask"), batch_size)
        pad, end = generation_config._pad_token_tensor, generation_config._eos_token_tensor
        if pad is not None and end is not None:
            model_kwargs["end_marks"] = int(pad), end
        cache = model_kwargs.get("past_key_values")
        if cache is None:
            if generation_config.use_cache:
                model_kwargs["past_key_values"] = MnemonistCache()
            return
        if not generation_config.use_cache:
            raise ValueError("use_cache=False and past_key_values exclude each other; leave one out.")
        rows = batch_size * max(generation_config.num_beams, generation_config.num_return_sequences)
        if isinstance(cache, MnemonistCache) and cache.batch_size in (1, batch_size) and cache.batch_size != rows:
            cache = copy.copy(cache)
            cache.batch_repeat_interleave(rows // cache.batch_size)
        self._check_cache(cache, rows)
        model_kwargs["past_key_values"] = cache


def register() -> None:
    """Make `AutoConfig`, `AutoModelForCausalLM` and pipelines know these models; twice does no harm."""
    AutoConfig.register(MODEL_TYPE, MnemonistConfig, exist_ok=True)
    AutoModelForCausalLM.register(MnemonistConfig, MnemonistForCausalLM, exist_ok=True)
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[MODEL_TYPE] = MnemonistForCausalLM.__name__  # where others ask what kind we are


@eager
def _documents(position_ids: Tensor | None) -> Tensor | None:
    """Where documents begin in the middle of rows, bool ``[B, T]``, or None if none does."""
    if position_ids is None or position_ids.dim() != 2:
        return None
    starts = position_ids == 0
    starts[:, 0] = False
    return starts if bool(starts.any()) else None


def _kept(logits: int | Tensor) -> slice | Tensor:
    """The positions that logits are wanted for."""
    if isinstance(logits, Tensor):
        return logits
    return slice(-logits, None) if logits else ALL


@eager
def _padding(attention_mask: Tensor | None, tokens: Tensor, read: int) -> Tensor | None:
    """The mask ``[B, T]`` of the tokens at hand, or None if none is padding.

    Raises:
        ValueError: it has neither their shape nor that of all tokens so far.
    """
    if attention_mask is None:
        return None
    B, T = tokens.shape[:2]
    if attention_mask.dim() != 2 or len(attention_mask) != B or attention_mask.shape[1] not in (T, read + T):
        raise ValueError(
            f"attention_mask is {list(attention_mask.shape)}; it must be {[B, T]}"
            + (f" or, with what the cache has read, {[B, read + T]}." if read else ".")
        )
    mask = attention_mask[:, -T:].bool()
    return None if bool(mask.all()) else mask


def _is_behind(mask_BT: Tensor) -> bool:
    """Whether all padding is on the right."""
    return not bool((mask_BT[:, 1:] & ~mask_BT[:, :-1]).any())


def _predicted(mask_BT: Tensor) -> Tensor:
    """Real tokens that follow a real token; the others are not predicted from anything."""
    return mask_BT & nn.functional.pad(mask_BT, (1, 0))[:, :-1]


def _check_last_column(attention_mask: Tensor | None, batch_size: int) -> None:
    """Make sure that `generate` has a token of every row to go on from.

    Raises:
        ValueError: a row has none, or padding behind it.
    """
    if attention_mask is None or bool(attention_mask[:, -1].all()):
        return
    row = int((attention_mask[:, -1] == 0).nonzero()[0])
    some = bool(attention_mask[row].any())
    what = "ends in padding; pad on the left" if some else "is all padding; begin with a mark"
    raise ValueError(f"There is no token to go on from: row {row * batch_size // len(attention_mask)} {what}.")


def _without_ended(ids_BT: Tensor, attention_mask: Tensor | None, columns: int, pad: int, end: Tensor) -> Tensor | None:
    """The mask, 0 also at the pads among the last ``columns`` that `generate` puts behind rows that have ended."""
    padded = ids_BT == pad
    if not bool(padded[:, -1].any()):
        return attention_mask
    T = ids_BT.shape[1]
    run_B = padded.flip(1).long().cumprod(1).sum(1)  # pads that each row ends in
    if bool((end == pad).any()):
        run_B = run_B - 1  # the first of them is the end itself
        ended_B = run_B > 0
    else:
        last = ids_BT.gather(1, (T - 1 - run_B).clamp_min(0)[:, None])
        ended_B = (run_B > 0) & torch.isin(last, end)[:, 0]
    column = torch.arange(T - columns, T, device=ids_BT.device)
    kept = (~(ended_B[:, None] & (column >= T - run_B[:, None]))).long()
    if attention_mask is None:
        return kept
    return torch.cat([attention_mask[:, :-columns], attention_mask[:, -columns:] * kept], dim=1)
