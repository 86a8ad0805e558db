"""How a step's inputs reach the device: side by side in page-locked memory, in one copy."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Arrays = Mapping[str, NDArray[Any]]

_ALIGNMENT = 16
"""Bytes. What Triton takes for the alignment of a pointer decides which code it compiles."""
_DTYPES = {np.dtype(np.int32): torch.int32, np.dtype(np.int64): torch.int64}


def _place(arrays: Arrays) -> tuple[dict[str, int], int]:
    """Where each array begins, and where the last one ends, in bytes; decided by shapes alone."""
    offsets, end = {}, 0
    for name, array in arrays.items():
        offsets[name] = end
        end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    return offsets, end


class StagingBuffer:
    """Device memory that one step's arrays are copied to, and page-locked memory to copy from.

    Arrays of the same shapes and dtypes in the same order always go to the same addresses: a
    CUDA graph is captured on `views` of one set of arrays and replayed after `send` of another.
    The page-locked side is double: a step may be prepared while the copy of the one before is
    waiting for the device. The caller makes sure that the copy before that has happened.
    """

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        self._on_device = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
        pinned = device.type == "cuda"
        self._on_host = [
            torch.zeros(num_bytes, dtype=torch.uint8, pin_memory=pinned) for _ in range(2)
        ]
        self._turn = 0

    @property
    def num_bytes(self) -> int:
        return self._on_device.numel()

    @staticmethod
    def num_bytes_for(arrays: Arrays) -> int:
        return _place(arrays)[1]

    def send(self, arrays: Arrays) -> None:
        """Begins the copy, on the current stream; the arrays may be changed at once."""
        offsets, end = _place(arrays)
        assert end <= self.num_bytes, f"{end} bytes of inputs for a buffer of {self.num_bytes}"
        source = self._on_host[self._turn]
        self._turn = 1 - self._turn
        memory = source.numpy()
        for name, array in arrays.items():
            start = offsets[name]
            target = memory[start : start + array.nbytes].view(array.dtype)
            target[:] = array.reshape(-1)
        self._on_device[:end].copy_(source[:end], non_blocking=True)

    def views(self, arrays: Arrays, some: Arrays | None = None) -> dict[str, Tensor]:
        """The device's side of the arrays, or of some of them, valid until the next `send`."""
        offsets, _ = _place(arrays)
        return {
            name: self._on_device[offsets[name] : offsets[name] + array.nbytes]
            .view(_DTYPES[array.dtype])
            .view(array.shape)
            for name, array in (arrays if some is None else some).items()
        }
