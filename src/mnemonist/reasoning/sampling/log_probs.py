"""What a policy gives the tokens of attempts, with gradients: what every fit to them needs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mnemonist.reasoning.attempts import Attempt
from mnemonist.reasoning.sampling.cache_rows import arguments


def token_log_probs(model: nn.Module, attempts: Sequence[Attempt], temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """ln p of every token written, recomputed in one forward pass in the model's present mode.

    Args:
        model: of transformers, or with its conventions.
        attempts: B of them with their tokens, as a local sampler gives them; L is the longest one's number of tokens.
        temperature: of the draw; logits are divided by it.

    Returns:
        ``[B, L]``, 0 behind the end of an attempt; and the mask ``[B, L]``, False there.

    Raises:
        ValueError: there is no attempt, the temperature is not above 0, or an attempt has no tokens.
    """
    if not attempts or temperature <= 0:
        raise ValueError(f"{len(attempts)} attempts at temperature {temperature}: give some, and a number above 0.")
    if not all(attempt.prompt_ids and attempt.ids for attempt in attempts):
        raise ValueError("An attempt has no token ids, as a server gave it; encode its prompt and its text first.")
    device = next(model.parameters()).device
    # Padding stands on the right, where no token of a row sees it: positions are those of the row alone, and no mask.
    texts = [attempt.prompt_ids + attempt.ids for attempt in attempts]
    T = max(map(len, texts))
    ids = torch.tensor([text + text[:1] * (T - len(text)) for text in texts], device=device)
    # What is said of a token stands at the token before it; columns before the first of these are left out.
    starts = torch.tensor([len(attempt.prompt_ids) - 1 for attempt in attempts], device=device)
    counts = torch.tensor([len(attempt.ids) for attempt in attempts], device=device)
    kept = T - int(starts.min())
    some = {"logits_to_keep": kept} if "logits_to_keep" in arguments(model) else {}
    output = model(input_ids=ids, use_cache=False, return_dict=True, **some)
    logits = output.logits[:, -kept:]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if temperature != 1:
        logits = logits / temperature

    place = torch.arange(int(counts.max()), device=device)
    mask = place < counts[:, None]
    at = (starts[:, None] + place).clamp_max(T - 2)
    column = at - (T - kept)
    rows = torch.arange(len(texts), device=device)[:, None]
    log_probs = logits[rows, column, ids.gather(1, at + 1)] - logits.logsumexp(-1).gather(1, column)
    return log_probs.masked_fill(~mask, 0), mask
