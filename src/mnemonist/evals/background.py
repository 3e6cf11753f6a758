"""Background text, written by a small grammar: sentences that mean something and nothing in particular.

Books and essays that others use as haystacks may not be passed on. This text is poorer than theirs, easier to
foretell, and the same on every machine. It never says what the evaluations ask about: none of the people, places and
things of the bAbI tasks, no digits, nothing magic.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

BLOCK = 256  # sentences that are drawn at a time

WORDS = {
    "person": (
        "the baker|the teacher|an old sailor|the mayor|a young painter|the doctor|the gardener's son|"
        "my neighbour|the librarian|a tired traveller|the blacksmith|our cousin|the postman|a quiet stranger|"
        "the judge|the carpenter|his grandmother|the farmer|a street musician|the clerk|the captain|her brother|"
        "the miller|an engineer|the widow|a shepherd|the merchant|two students|the night watchman|the weaver"
    ),
    "thing": (
        "letter|lantern|map|basket|clock|coat|violin|ladder|mirror|kettle|hammer|blanket|notebook|umbrella|"
        "saddle|rope|telescope|candle|drum|wheel|painting|needlework|compass|barrel|suitcase|anchor|whistle|"
        "carpet|vase|plough"
    ),
    "quality": (
        "old|broken|heavy|blue|forgotten|narrow|shiny|wooden|strange|borrowed|precious|rusty|large|delicate|"
        "dusty|silver|crooked|warm|striped|simple|hollow|familiar|costly|green|faded"
    ),
    "place": (
        "the harbour|the market|the river|the old bridge|the square|the forest|the station|the town hall|"
        "the mill|the school|the church|the hill|the inn|the workshop|the lighthouse|the vineyard|the valley|"
        "the quarry|the port|the theatre|the museum|the orchard|the crossroads|the shore|the library"
    ),
    "did": (
        "repaired|sold|painted|carried|hid|remembered|described|bought|lost|admired|borrowed|wrapped|examined|"
        "cleaned|measured|returned|mended|wanted|sketched|praised"
    ),
    "went": ("walked|hurried|drove|rode|wandered|strolled|ran|came|sailed|climbed"),
    "manner": (
        "slowly|without a word|with great care|once again|as usual|against all advice|in silence|gladly|"
        "for no clear reason|almost by accident|with a smile|before anyone noticed|reluctantly|all the same|"
        "like every other day"
    ),
    "time": (
        "in the morning|late in the evening|after the storm|before dawn|on a cold day|at the end of summer|"
        "that afternoon|during the festival|one winter|the next day|after supper|around noon|in those years|"
        "when the bells rang|last spring"
    ),
    "weather": (
        "the wind turned to the north|it began to rain|the fog lifted|snow covered the roofs|"
        "the sun came out at last|the river rose|clouds gathered over the hills|a light breeze moved the leaves|"
        "the heat was hard to bear|the first leaves fell"
    ),
    "thought": (
        "nobody could say why|it had always been so|there was nothing else to do|the price had been fair|"
        "things would soon change|the work was nearly done|such days were rare|it did not matter much|"
        "the story was only half true|there was still time"
    ),
}
"""What a place in a pattern can be, by its name."""

PATTERNS = (
    "{Person} {did} the {quality} {thing} {manner}.",
    "{Time} {person} {went} to {place}.",
    "{Person} {went} past {place}, and {weather}.",
    "{Weather}, so {person} {did} a {quality} {thing}.",
    "{Person} said that {thought}.",
    "Near {place} stood a {quality} {thing}.",
    "{Time}, {weather}.",
    "{Person} and {person} {did} the {thing} {time}.",
    "Everyone at {place} knew that {thought}.",
    "{Person} {did} the {thing}, the {thing} and even the {quality} {thing}.",
    "Between {place} and {place} {person} {did} a {thing} {manner}.",
    "When {weather}, {person} {went} {manner} to {place}.",
    "There was a {quality} {thing} that {person} {did} {time}.",
    "{Person} thought of {place}, for {thought}.",
    "{Time} one could see {person} with a {quality} {thing}.",
    "{Manner}, {person} {did} what was left of the {thing}.",
)


@dataclass(frozen=True)
class _Part:
    """A place in a pattern, and the text behind it."""

    words: list[str]
    after: str


def _compiled(pattern: str) -> tuple[str, list[_Part]]:
    """A pattern as the text before its first place, and its places."""
    before, *rest = pattern.split("{")
    parts = []
    for part in rest:
        kind, _, after = part.partition("}")
        words = WORDS[kind.lower()].split("|")
        parts.append(_Part([word[0].upper() + word[1:] for word in words] if kind[0].isupper() else words, after))
    return before, parts


_PATTERNS = [_compiled(pattern) for pattern in PATTERNS]


def sentences(random: np.random.Generator) -> Iterator[str]:
    """Endless sentences; drawn in blocks from the generator, so use it for nothing else meanwhile."""
    most = max(len(parts) for _, parts in _PATTERNS)
    while True:
        kinds = random.integers(len(_PATTERNS), size=BLOCK)
        draws = random.random((BLOCK, most))
        for kind, draw in zip(kinds.tolist(), draws.tolist(), strict=True):
            before, parts = _PATTERNS[kind]
            chosen = [
                part.words[int(share * len(part.words))] + part.after for part, share in zip(parts, draw, strict=False)
            ]
            yield before + "".join(chosen)
