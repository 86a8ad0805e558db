"""Columns of numbers as bytes that compress well: differences, byte by byte."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

TIME_UNIT_S = 1e-7
"""What recorded times are rounded to."""


def packed(values: Iterable[int]) -> bytes:
    """Whole numbers of up to 64 bits."""
    numbers = np.fromiter(values, np.int64)
    differences = np.diff(numbers, prepend=0)
    return _transposed(differences.view(np.uint8).reshape(-1, 8)).tobytes()


def unpacked(data: bytes) -> list[int]:
    """What `packed` was given. Raises ValueError if the bytes are cut."""
    rows = np.frombuffer(data, np.uint8).reshape(8, -1)
    differences = _transposed(rows).reshape(-1).view(np.int64)
    numbers: list[int] = np.cumsum(differences).tolist()
    return numbers


def packed_times(seconds: Iterable[float]) -> bytes:
    return packed(round(second / TIME_UNIT_S) for second in seconds)


def unpacked_times(data: bytes) -> list[float]:
    return [number * TIME_UNIT_S for number in unpacked(data)]


def _transposed(rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(rows.T)
