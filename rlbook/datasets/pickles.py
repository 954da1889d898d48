"""Read pickled arrays from strangers: numbers, strings, lists, dictionaries and NumPy arrays, and no code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import IO, Any

import numpy as np

from rlbook.datasets.base import bad_file

ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),  # how Python 2 and protocol 2 spell bytes
    ("collections", "OrderedDict"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
}
"""The only names that a pickle may call: a pickle is a program, and these can only make data."""


class DataUnpickler(pickle.Unpickler):
    """An unpickler that makes data and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it wants to call {module}.{name}, which is not data")
        return super().find_class(module, name)


def load_pickle(file: IO[bytes], path: Path) -> Any:
    """Return the data of a pickle; ``path`` is for the error.

    Raises:
        SpecError: it is damaged, or would run code.
    """
    try:
        return DataUnpickler(file).load()
    except Exception as error:  # a damaged pickle can raise anything
        raise bad_file(path, "a pickle of plain data", f"{type(error).__name__}: {error}") from error


def load_object_array(file: IO[bytes], path: Path) -> Any:
    """Return the one object in a ``.npy`` file that holds a pickled array of shape ``()``.

    Raises:
        SpecError: it is something else, is damaged, or would run code.
    """
    try:
        major, _ = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
    except ValueError as error:
        raise bad_file(path, "a .npy file", str(error)) from error
    if not dtype.hasobject or shape != ():
        raise bad_file(path, "a .npy file of one object", f"an array {dtype} {list(shape)}")
    value = load_pickle(file, path)
    return value.item() if isinstance(value, np.ndarray) and value.shape == () else value
