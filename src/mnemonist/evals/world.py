"""A small world: people walk between rooms, take things, put them down; and questions about where things are.

Tasks 1 to 3 of bAbI (Weston et al. 2015, arXiv 1502.05698): where is a person; where is a thing, which goes where its
holder goes; where was a thing before it was in some room. Rooms, people, things and verbs are those of the published
data; the simulator is ours, so that the mixture of acts is not the original's: here each fact is a walk with chance
one half, or else a taking or putting down if one is possible.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np

PEOPLE = ("Mary", "John", "Daniel", "Sandra")
ROOMS = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
THINGS = ("apple", "football", "milk")
WALKS = ("went to", "journeyed to", "moved to", "travelled to", "went back to")
TAKES = ("got", "grabbed", "picked up", "took")
PUTS = ("discarded", "dropped", "left", "put down")
FACTS = {1: (2, 10), 2: (2, 68), 3: (4, 32)}
"""Least and most facts of a question of each task, as BABILong has them (arXiv 2406.10149)."""


@dataclass(frozen=True)
class Story:
    """Facts in the order of events, and a question about them."""

    facts: tuple[str, ...]
    question: str
    answer: str
    support: tuple[int, ...]
    """Indices of facts from which the answer follows."""


@dataclass
class _World:
    """Who is where, who holds what, and by which fact that is known."""

    room: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Of a person: the room, and the fact that says so."""
    holder: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Of a thing that is held: the person, and the fact that says so."""
    lying: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    """Of a thing that was put down: the room, and the facts that say so."""
    path: dict[str, list[tuple[str, tuple[int, ...]]]] = field(default_factory=dict)
    """Rooms that a thing has been in, the latest last, each with facts that say so."""

    def place(self, thing: str) -> tuple[str, tuple[int, ...]] | None:
        """Where a thing is, if the facts say it."""
        if thing in self.lying:
            return self.lying[thing]
        if thing not in self.holder:
            return None
        person, taken = self.holder[thing]
        room, walked = self.room[person]
        return room, (taken, walked)

    def note(self, thing: str) -> None:
        """Write down where a thing has come to be."""
        now = self.place(thing)
        path = self.path.setdefault(thing, [])
        if now is not None and (not path or path[-1][0] != now[0]):
            path.append(now)


def tell(random: np.random.Generator, task: int, count: int) -> Story:
    """A story of ``count`` facts for one of the tasks.

    Args:
        random: what it is drawn from.
        task: 1, 2 or 3.
        count: facts; at least 1, 2 or 4 for the three tasks. Stories that answer nothing are told anew.
    """
    while True:
        facts, world = _live(random, task, count)
        if task == 1:
            person = _one(random, list(world.room))
            room, fact = world.room[person]
            return Story(tuple(facts), f"Where is {person}?", room, (fact,))
        if task == 2:
            known = [thing for thing in THINGS if world.place(thing) is not None]
            if known:
                thing = _one(random, known)
                room, support = world.place(thing) or ("", ())
                return Story(tuple(facts), f"Where is the {thing}?", room, tuple(sorted(support)))
        else:
            turns = [
                (thing, before, after)
                for thing, path in world.path.items()
                for before, after in itertools.pairwise(path)
                if [room for room, _ in path].count(after[0]) == 1  # or "before" would have two meanings
            ]
            if turns:
                thing, before, after = turns[int(random.integers(len(turns)))]
                question = f"Where was the {thing} before the {after[0]}?"
                return Story(tuple(facts), question, before[0], tuple(sorted({*before[1], *after[1]})))


def _live(random: np.random.Generator, task: int, count: int) -> tuple[list[str], _World]:
    """So many events."""
    world, facts = _World(), []
    for number in range(count):
        acts = [] if task == 1 else _acts(world)
        if acts and random.random() < 0.5:
            person, thing, takes = acts[int(random.integers(len(acts)))]
            facts.append(f"{person} {_one(random, list(TAKES if takes else PUTS))} the {thing}.")
            if takes:
                world.holder[thing] = (person, number)
                world.lying.pop(thing, None)
            else:
                room, walked = world.room[person]
                del world.holder[thing]
                world.lying[thing] = (room, (walked, number))
            world.note(thing)
        else:
            person = _one(random, list(PEOPLE))
            here = world.room.get(person, ("", 0))[0]
            room = _one(random, [room for room in ROOMS if room != here])
            facts.append(f"{person} {_one(random, list(WALKS))} the {room}.")
            world.room[person] = (room, number)
            for thing in THINGS:
                if world.holder.get(thing, ("", 0))[0] == person:
                    world.note(thing)
    return facts, world


def _acts(world: _World) -> list[tuple[str, str, bool]]:
    """Who can take (True) or put down (False) what: a thing that nobody has yet seen lies wherever it is taken."""
    acts = []
    for person, (room, _) in world.room.items():
        for thing in THINGS:
            held = world.holder.get(thing, ("", 0))[0]
            if held == person:
                acts.append((person, thing, False))
            elif not held and world.lying.get(thing, (room, ()))[0] == room:
                acts.append((person, thing, True))
    return acts


def _one(random: np.random.Generator, choices: list[str]) -> str:
    return choices[int(random.integers(len(choices)))]
