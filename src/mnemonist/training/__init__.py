"""The outer step: one loop that fits any `torch.nn.Module`, stops at any moment and goes on exactly.

What to read (`batch_of`) and what to minimise (`loss_of`) are functions that the caller gives; language
models, reward models and policies differ in nothing else. Nothing here knows what a memory or a language
model is. `configuration` needs no torch, so the command line can show its options at once.
"""

from typing import TYPE_CHECKING

from mnemonist.lazy import attach

if TYPE_CHECKING:
    from mnemonist.training.checkpoint import Checkpoint, load_checkpoint, restore_model, save_checkpoint
    from mnemonist.training.configuration import HeldOutConfig, TrainingConfig
    from mnemonist.training.gradients import LossSum
    from mnemonist.training.held_out import HeldOut
    from mnemonist.training.loop import TrainingResult, train
    from mnemonist.training.metrics import StepMetrics, read_metrics
    from mnemonist.training.optimiser import load_optimiser_tensors, make_optimiser, optimiser_tensors
    from mnemonist.training.schedule import learning_rate

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "Checkpoint": ".checkpoint",
        "HeldOut": ".held_out",
        "HeldOutConfig": ".configuration",
        "LossSum": ".gradients",
        "StepMetrics": ".metrics",
        "TrainingConfig": ".configuration",
        "TrainingResult": ".loop",
        "learning_rate": ".schedule",
        "load_checkpoint": ".checkpoint",
        "load_optimiser_tensors": ".optimiser",
        "make_optimiser": ".optimiser",
        "optimiser_tensors": ".optimiser",
        "read_metrics": ".metrics",
        "restore_model": ".checkpoint",
        "save_checkpoint": ".checkpoint",
        "train": ".loop",
    },
)
