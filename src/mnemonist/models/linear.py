"""The linear layer of all models: torch's, but faster where a model writes."""

from __future__ import annotations

from torch import Tensor, nn

from mnemonist.memory.kernels.native_linear_layer import linear


class Linear(nn.Linear):
    """`torch.nn.Linear`; a few rows without gradients go through a compiled kernel.

    Its weight may be in bfloat16 where inputs and bias are in float32: it counts as the numbers that it stands for.

    What replaces layers of this very class and of no subclass, as `torch.ao.quantization.quantize_dynamic` does, finds
    none here; ``layer.__class__ = torch.nn.Linear`` makes one of it.
    """

    def forward(self, input: Tensor) -> Tensor:
        """``[..., in_features] -> [..., out_features]``."""
        return linear(input, self.weight, self.bias)


def is_bare(layer: nn.Module) -> bool:
    """Whether a call of the layer is its product and nothing else: no adapter, no hook, no other class in its place."""
    return type(layer) is Linear and not (
        layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    )
