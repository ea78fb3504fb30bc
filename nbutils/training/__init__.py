"""Training with TRL's DPOTrainer: looked at before it starts, resumed after a kill, warned of while it runs."""

from nbutils.training import health, memory
from nbutils.training.held_out import split
from nbutils.training.loop import save, train
from nbutils.training.settings import read_options
from nbutils.training.trainer import build_trainer, check, release

__all__ = ["build_trainer", "check", "health", "memory", "read_options", "release", "save", "split", "train"]
