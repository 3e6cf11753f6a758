"""``mnemonist reason``: the outer loop from the command line, one module per command.

options.py     what can be asked for: a dataclass of options for each command; needs neither torch nor numpy
rates.py       how fast they learn, where nobody says so
policies.py    who is asked and who learns: a model in a folder, a new one, one behind a server
material.py    what is asked: the task, its problems, how they are put
demo.py        `demo`: the model that comes along, several methods
tasks.py       `tasks`: what there is to reason about, and with
solve.py       `solve`: methods side by side; solving.py: trees in files that grow chunk by chunk
traces.py      `traces`: journeys and their shortcut twins
learn.py       `learn` and the names of all rounds: from one's own attempts, a teacher's, or journeys
doctor.py      `doctor`: what looks wrong in the folder of a run
reward.py      `reward`: a judge of steps
pages.py       the HTML pages
"""
