"""Problems with answers that can be checked: `task.py` says what a task is, each other file is one."""
