"""Training: `train` yields events and leaves a checkpoint that resumes exactly. See docs/training.md."""

from archsearch.train.events import Cut, Evaluated, Finished, HeldOut, Sample, Sampled, Saved, Started, Step, TrainEvent, to_dict
from archsearch.train.loop import train
from archsearch.train.metrics import read_metrics
from archsearch.train.settings import TrainPlan, TrainSettings

__all__ = [
    "Cut",
    "Evaluated",
    "Finished",
    "HeldOut",
    "Sample",
    "Sampled",
    "Saved",
    "Started",
    "Step",
    "TrainEvent",
    "TrainPlan",
    "TrainSettings",
    "read_metrics",
    "to_dict",
    "train",
]
