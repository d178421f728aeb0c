"""Reading and writing weights, and whole states of a training."""

from minigrad.io.checkpoint import load_checkpoint, save_checkpoint
from minigrad.io.values import load, save
from minigrad.io.weights import load_file, save_file

__all__ = ["load", "load_checkpoint", "load_file", "save", "save_checkpoint", "save_file"]
