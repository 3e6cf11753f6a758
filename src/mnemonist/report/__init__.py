"""Reports: what a run has shown, as files that open anywhere.

    write_reading(path, Reading(...))    one HTML page: what a memory did while it read

Only numpy is needed; nothing here imports torch.
"""

from .curve_plot import Curve
from .reading import Reading, SurpriseMap, write_reading

__all__ = ["Curve", "Reading", "SurpriseMap", "write_reading"]
