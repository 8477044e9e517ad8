"""Files: models that can be rebuilt from them, weights of other libraries, and writing that survives a crash."""

from gpuconv.files import remove_leftovers, write_atomically
from gpuconv.storage.model import load, load_model, save
from gpuconv.storage.tensors import FileError, load_any, load_tensors, save_state, save_tensors

__all__ = [
    "FileError",
    "load",
    "load_any",
    "load_model",
    "load_tensors",
    "remove_leftovers",
    "save",
    "save_state",
    "save_tensors",
    "write_atomically",
]
