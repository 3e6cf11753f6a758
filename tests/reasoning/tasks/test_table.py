"""Tasks are found by name, and the table costs nothing."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

from mnemonist.errors import UserError
from mnemonist.reasoning.tasks.countdown import Countdown
from mnemonist.reasoning.tasks.table import TASKS, build_task, find_task
from mnemonist.reasoning.tasks.task import StepTask, Task


@pytest.mark.parametrize("name", TASKS)
def test_every_row_is_a_task(name):
    info, task = TASKS[name], build_task(name)
    assert info.summary and info.source and find_task(f"hinted+{name}:x=1") is info
    assert type(task) is getattr(import_module(f"mnemonist.reasoning.tasks.{info.module}"), info.class_name)
    assert task.name == name and isinstance(task, StepTask) == info.steps
    for method in ("problem", "judge"):
        assert callable(getattr(task, method)) and hasattr(Task, method)
    assert list(task.difficulties) == sorted(set(task.difficulties))


def test_changes():
    task = build_task("countdown:largest=50, all_used=true")
    assert task == Countdown(largest=50, all_used=True) and task.name == "countdown:largest=50,all_used=true"
    assert build_task(f"hinted+{task.name}").name == f"hinted+{task.name}"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("countdwn", "there is no task 'countdwn' (did you mean 'countdown'?)"),
        ("hinted+knigts", "did you mean 'knights'?"),
        ("", "known tasks: countdown, game24"),
        ("countdown:larges=3", "did you mean 'largest'?"),
        ("countdown:largest=many", "largest is 'many'; it must be of type int"),
        ("countdown:all_used=perhaps", "it must be true or false"),
        ("countdown:largest=1", "largest is 1"),
        ("countdown:key=x", "is not a change to the task countdown"),
        ("game24:largest=1", "it has no choices"),
    ],
)
def test_what_is_not_there(spec, message):
    with pytest.raises(ValueError) as caught:
        build_task(spec)
    assert message in str(caught.value)


def test_unknown_names_are_errors_of_the_user():
    with pytest.raises(UserError):
        find_task("chess")


def test_listing_imports_no_task_and_no_torch():
    code = (
        "import sys; from mnemonist.reasoning.tasks import TASKS, build_task; list(TASKS);"
        "print(sorted(name[26:] for name in sys.modules if name.startswith('mnemonist.reasoning.tasks.')));"
        "build_task('knights'); print('torch' in sys.modules or 'datasets' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert told.stdout == "['table', 'task']\nFalse\n", told.stderr
