"""Reports: what a run has shown, as files that open anywhere.

    write_reading(path, Reading(...))            one HTML page: what a memory did while it read
    write_reasoning(path, ReasoningPage(...))    one HTML page: trees, journeys, attempts, what they cost

Only numpy is needed; nothing here imports torch.
"""

from .curve_plot import Curve
from .line_plot import Plot, Series
from .reading import Reading, SurpriseMap, write_reading
from .reasoning import JourneyView, ReasoningPage, Rollout, write_reasoning

__all__ = [
    "Curve",
    "JourneyView",
    "Plot",
    "Reading",
    "ReasoningPage",
    "Rollout",
    "Series",
    "SurpriseMap",
    "write_reading",
    "write_reasoning",
]
