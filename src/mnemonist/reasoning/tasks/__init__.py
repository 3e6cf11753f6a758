"""Problems with answers that can be checked: `task.py` says what a task is, `table.py` which there are.

build_task("countdown:largest=50")      a task by name; `TASKS` lists them
task.problem("train", 4, 0)             problem 0 of the split, of difficulty 4
task.judge(problem, "(3+5)*7")          whether an answer is right
task.label(problem, ["3 + 5 = 8, ..."]) the truth about the last step
"""

from typing import TYPE_CHECKING

from mnemonist.lazy import attach

if TYPE_CHECKING:
    from mnemonist.reasoning.tasks.hint_flip import Flips, Hinted, count_flips
    from mnemonist.reasoning.tasks.rewards import accuracy_reward, format_reward
    from mnemonist.reasoning.tasks.rows import (
        completion_row,
        conversational,
        kind_of,
        load_rows,
        messages_row,
        pair_of,
        plain,
        preference_row,
        problem_of,
        prompt_row,
        save_rows,
        stepwise_row,
        text_row,
    )
    from mnemonist.reasoning.tasks.table import TASKS, TaskInfo, build_task, find_task
    from mnemonist.reasoning.tasks.task import Problem, Split, StepLabel, StepTask, Task, Verdict

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "Flips": ".hint_flip",
        "Hinted": ".hint_flip",
        "Problem": ".task",
        "Split": ".task",
        "StepLabel": ".task",
        "StepTask": ".task",
        "TASKS": ".table",
        "Task": ".task",
        "TaskInfo": ".table",
        "Verdict": ".task",
        "accuracy_reward": ".rewards",
        "build_task": ".table",
        "completion_row": ".rows",
        "conversational": ".rows",
        "count_flips": ".hint_flip",
        "find_task": ".table",
        "format_reward": ".rewards",
        "kind_of": ".rows",
        "load_rows": ".rows",
        "messages_row": ".rows",
        "pair_of": ".rows",
        "plain": ".rows",
        "preference_row": ".rows",
        "problem_of": ".rows",
        "prompt_row": ".rows",
        "save_rows": ".rows",
        "stepwise_row": ".rows",
        "text_row": ".rows",
    },
)
