"""A reader of stories who knows nothing but the sentences."""

from __future__ import annotations

import collections
import re

from mnemonist.evals.world import PEOPLE, PUTS, ROOMS, TAKES, THINGS, WALKS


def read(facts):
    """Where people and things are after each fact, from the sentences alone."""
    room, holder, place, seen = {}, {}, {}, collections.defaultdict(list)
    for fact in facts:
        person, rest = fact.removesuffix(".").split(" ", 1)
        verb, last = rest.rsplit(" the ", 1)
        assert person in PEOPLE
        if last in ROOMS:
            assert verb in WALKS and room.get(person) != last
            room[person] = last
        elif verb in TAKES:
            assert last in THINGS and last not in holder
            assert place.get(last, room[person]) == room[person]  # nobody takes what lies elsewhere
            holder[last] = person
        else:
            assert verb in PUTS and holder.pop(last) == person
        for thing, who in holder.items():
            place[thing] = room[who]
        for thing, where in place.items():
            if not seen[thing] or seen[thing][-1] != where:
                seen[thing].append(where)
    return room, place, seen


def solve(facts, question):
    room, place, seen = read(facts)
    if found := re.fullmatch(r"Where is (\w+)\?", question):
        return room[found[1]]
    if found := re.fullmatch(r"Where is the (\w+)\?", question):
        return place[found[1]]
    thing, after = re.fullmatch(r"Where was the (\w+) before the (\w+)\?", question).groups()
    assert seen[thing].count(after) == 1
    return seen[thing][seen[thing].index(after) - 1]
