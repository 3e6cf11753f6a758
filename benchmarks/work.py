"""The work that is counted: reading with a deep memory of two layers, in operations and in bytes."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class DeepWork:
    """Reading by chunk with memories of two layers that carry momentum and decay to zero.

    With ``P`` weights a head, every token and head pays in multiply-adds: ``P`` for the answer to the key, ``P / 2``
    for the error sent back through the second layer, ``2 P`` for what is written to M and S, ``2 P`` for what the
    query reads of both; and inside the chunk, two squares a layer, whose masked halves are multiplied too.
    """

    heads: int
    dim: int
    expansion: float
    chunk: int

    @property
    def width(self) -> int:
        """Of a layer with these heads."""
        return self.heads * self.dim

    @property
    def weights(self) -> int:
        """``P``: of one head."""
        return round(2 * self.expansion * self.dim * self.dim)

    @property
    def parts(self) -> dict[str, float]:
        """Operations per token, all heads together, by what they are for."""
        P, C, D = self.weights, self.chunk, self.dim
        each = {
            "answers to the keys": 2 * P,
            "errors sent back": P,
            "writes to M and S": 4 * P,
            "reads of M and S": 4 * P,
            "writes not yet in the weights": 4 * C * D * (1 + self.expansion),
            "gates": 2 * C**2,
        }
        return {name: self.heads * flops for name, flops in each.items()}

    @property
    def flops(self) -> float:
        """Operations per token, forward; both ways it is three times that."""
        return sum(self.parts.values())

    @property
    def bytes(self) -> float:
        """Moved per token in float32 if M and S come from memory and go back once a chunk.

        Queries, keys, values and answers once, three gates, and two tensors of ``P`` numbers read and written.
        """
        return self.heads * (16 * self.dim + 12 + 16 * self.weights / self.chunk)

    def with_chunk(self, chunk: int) -> DeepWork:
        """The same memories, read in chunks of another length."""
        return replace(self, chunk=chunk)
