"""A phone book: names with numbers, then a name whose number is asked for.

Jelassi et al. 2024 (arXiv 2402.01032, section 4): the book, two entries of it again to show what is wanted, and the
name. Transformers of some hundred million parameters look numbers up in books for which much larger models with a
constant state have no room. Names are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from mnemonist.data import ByteTokenizer, Tokenizer
from mnemonist.errors import UserError
from mnemonist.evals.problems import Problem, Question, Setting

_FIRST = (
    "Ada|Agnes|Albert|Alma|Amos|Anita|Anton|Astrid|Axel|Basil|Bella|Bernard|Bianca|"
    "Boris|Bruno|Carla|Carmen|Cecil|Clara|Conrad|Cora|Cyril|Dagmar|Damian|Daphne|Dora|"
    "Edgar|Edith|Elias|Eliza|Elmar|Elsa|Emil|Erika|Ernest|Esther|Eugene|Eva|Felix|Fiona"
    "|Flora|Frank|Frida|Gavin|George|Gerda|Gilbert|Greta|Gustav|Hanna|Harold|Hazel|"
    "Hector|Helga|Henry|Hugo|Ida|Igor|Ingrid|Irma|Isaac|Ivan|Jasper|Jenny|Jerome|Joan|"
    "Jonas|Judith|Julius|Karin|Karl|Kirsten|Klara|Kurt|Lara|Leo|Lena|Linus|Livia|Lotte"
    "|Louis|Lucy|Luther|Mabel|Magnus|Marco|Marta|Max|Mila|Moritz|Nadia|Nina|Noel|Nora"
    "|Oliver|Olga|Oscar|Otto|Paula|Percy|Petra|Quentin|Ralph|Regina|Rita|Robert|Rosa|"
    "Rufus|Ruth|Selma|Silas|Simon|Sofia|Stella|Stephan|Thea|Theo|Tilda|Tobias|Ursula|"
    "Valentin|Vera|Victor|Viola|Walter|Wanda|Wilma|Xaver|Yvonne|Zoe"
)
FIRST = tuple(_FIRST.split("|"))
_LAST = (
    "Abbott|Adler|Anders|Archer|Baker|Barlow|Bauer|Becker|Bell|Bennett|Berger|Bishop|"
    "Blake|Bloom|Brandt|Brook|Burns|Carter|Castle|Chapman|Clarke|Collins|Cooper|Costa|"
    "Cross|Dahl|Dalton|Dawson|Decker|Dixon|Drake|Duncan|Eaton|Ebert|Ellis|Engel|Evans|"
    "Falk|Farmer|Fischer|Fleming|Forster|Fox|Franke|Fuller|Garner|Gibson|Graham|Grant|"
    "Greene|Haas|Hale|Hansen|Harper|Hart|Heller|Hobbs|Holm|Hunter|Ingram|Irving|Jansen|"
    "Jarvis|Jensen|Keller|Kemp|Kern|King|Klein|Koch|Lambert|Lang|Larsen|Lehmann|Lewis|"
    "Linde|Lowe|Lund|Marsh|Martin|Mason|Meyer|Miller|Moore|Morris|Moser|Nash|Nelson|"
    "Newton|Nolan|Norris|Oakley|Olsen|Osborne|Palmer|Parker|Payne|Perry|Peters|Pfeiffer|"
    "Porter|Price|Quinn|Ramsey|Reed|Reuter|Rhodes|Ritter|Roth|Russell|Sander|Sawyer|"
    "Schmidt|Sharp|Shaw|Simmons|Skinner|Sommer|Spencer|Stein|Stone|Stark|Tanner|Taylor|"
    "Thorne|Turner|Vance|Vogel|Wagner|Walsh|Ward|Weber|Wells|West|Winter|Wolf|Wright|"
    "Yates|York|Young|Zimmer"
)
LAST = tuple(_LAST.split("|"))
NAMES = len(FIRST) * len(LAST)
SHOWN = 2


@dataclass(frozen=True)
class Phonebook:
    """Looking a number up.

    Raises:
        ValueError: a field is out of range.
    """

    name: ClassVar[str] = "phonebook"
    metric: ClassVar[Literal["token", "problem"]] = "problem"

    trained: int = 20
    """Entries of the largest book of the lessons; the smallest has a quarter of them."""
    fewest: int = 20
    """Entries of the smallest book of the test; the others double up to `most`."""
    most: int = 640
    """Entries of the largest."""
    tokenizer: Tokenizer = field(default_factory=ByteTokenizer)
    """The model's."""

    def __post_init__(self) -> None:
        if not 12 <= self.trained <= NAMES or not 3 <= self.fewest <= self.most <= NAMES:
            raise ValueError(
                f"trained is {self.trained}, fewest {self.fewest} and most {self.most}; they must be at least 12, 3 "
                f"and fewest, and there are {NAMES:,} names."
            )

    @property
    def vocab_size(self) -> int:
        """Of the tokenizer."""
        return self.tokenizer.vocab_size

    @property
    def grid(self) -> list[Setting]:
        """Books of doubling size."""
        sizes = [self.fewest]
        while sizes[-1] < self.most:
            sizes.append(min(2 * sizes[-1], self.most))
        return [{"entries": size} for size in sizes]

    @property
    def lessons(self) -> list[Setting]:
        """Four sizes."""
        return [{"entries": self.trained * i // 4} for i in range(1, 5)]

    @property
    def chance(self) -> float:
        """Next to nothing."""
        return 0.0

    def draw(self, random: np.random.Generator, setting: Setting) -> Problem:
        """One book and the name of an entry that was not shown.

        Raises:
            UserError: the book has no third entry, or more than there are names.
        """
        entries = int(setting["entries"])
        if not SHOWN < entries <= NAMES:
            raise UserError(f"a book has {SHOWN + 1} to {NAMES:,} entries, one for each name; {entries} are asked for")
        names = [
            f"{FIRST[i % len(FIRST)]} {LAST[i // len(FIRST)]}"
            for i in random.choice(NAMES, entries, replace=False).tolist()
        ]
        numbers = random.integers(6 * 10**9, 10**10, entries).tolist()
        lines = [f"{name}: {number}" for name, number in zip(names, numbers, strict=True)]
        *shown, asked = random.choice(entries, SHOWN + 1, replace=False).tolist()
        text = "\n".join([*lines, "", *(lines[i] for i in shown), "", f"{names[asked]}:"])
        return Question(text, f" {numbers[asked]}").problem(self.tokenizer)
