"""Text that is held out of a corpus: what it costs tells what a model has learned beyond the text itself.

Whole documents are held out, copies of one text together, so that nothing of them is trained on. Which ones follows
from their texts and the seed alone: a corpus that grows holds out much the same. Where documents are so few and long
that whole ones do not fit the share, the end of the longest is cut off, as of a corpus that is one file.
"""

import hashlib
from collections.abc import Sequence

from ..errors import UserError
from .corpus import Document


def hold_out(
    documents: Sequence[Document], share: float, seed: int = 0
) -> tuple[tuple[Document, ...], tuple[Document, ...]]:
    """Part a corpus: what is left to train on, and what is held out, both in the order they came in.

    Args:
        documents: the corpus.
        share: how much of its bytes is held out at most, above 0 and below 1; it is at least half of that, but for the
            rest of a character.
        seed: draws other documents.

    Raises:
        UserError: `share` is out of range.
    """
    if not 0 < share < 1:
        raise UserError(f"the share held out is {share}; it must be above 0 and below 1")
    copies: dict[bytes, list[int]] = {}
    for number, document in enumerate(documents):
        digest = hashlib.sha256(seed.to_bytes(8, "big") + document.text).digest()
        copies.setdefault(digest, []).append(number)
    room = most = int(share * sum(len(document.text) for document in documents))
    held: set[int] = set()
    for _, numbers in sorted(copies.items()):
        size = sum(len(documents[number].text) for number in numbers)
        if size <= room:
            held.update(numbers)
            room -= size
        elif room <= most // 2:
            break  # going on would pick the short ones among the rest
    learned = [document for number, document in enumerate(documents) if number not in held]
    apart = [documents[number] for number in sorted(held)]
    if room > most // 2:
        longest = max(range(len(learned)), key=lambda number: len(learned[number].text))
        learned[longest], end = _cut(learned[longest], room)
        apart += [end] if end.text else []
    return tuple(learned), tuple(apart)


def _cut(document: Document, size: int) -> tuple[Document, Document]:
    """A document and its last `size` bytes, or fewer where a character would be cut."""
    at = max(1, len(document.text) - size)
    while at < len(document.text) and document.text[at] & 0xC0 == 0x80:  # a byte that continues a character
        at += 1
    return Document(document.name, document.text[:at]), Document(document.name, document.text[at:])
