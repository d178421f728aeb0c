"""Reading and writing weights."""

from minigrad.io.weights import load, load_file, save, save_file

__all__ = ["load", "load_file", "save", "save_file"]
