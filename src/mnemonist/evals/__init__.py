"""Asking models what they can do: what they make of a text while they read it, and problems with answers.

evaluate(model, build_suite("mqar"))    rows of means with intervals; `SUITES` lists what there is
read_texts(model, texts)                bits and surprise of every byte
"""

from typing import TYPE_CHECKING

from mnemonist.lazy import attach

if TYPE_CHECKING:
    from mnemonist.evals.candidates import CANDIDATES, Candidate, configure
    from mnemonist.evals.evaluation import evaluate
    from mnemonist.evals.lessons import curriculum
    from mnemonist.evals.problems import Problem, Problems, draw
    from mnemonist.evals.reading import MemoryTrace, TextReading, bits_by_position, paired_difference, read_texts
    from mnemonist.evals.results import Result, Row, table
    from mnemonist.evals.scoring import Scores, score
    from mnemonist.evals.suites import SUITES, TaskSuite, build_suite, build_task

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "CANDIDATES": ".candidates",
        "Candidate": ".candidates",
        "MemoryTrace": ".reading",
        "Problem": ".problems",
        "Problems": ".problems",
        "Result": ".results",
        "Row": ".results",
        "SUITES": ".suites",
        "Scores": ".scoring",
        "TaskSuite": ".suites",
        "TextReading": ".reading",
        "bits_by_position": ".reading",
        "build_suite": ".suites",
        "build_task": ".suites",
        "configure": ".candidates",
        "curriculum": ".lessons",
        "draw": ".problems",
        "evaluate": ".evaluation",
        "paired_difference": ".reading",
        "read_texts": ".reading",
        "score": ".scoring",
        "table": ".results",
    },
)
