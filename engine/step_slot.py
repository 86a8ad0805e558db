"""What a step in flight leaves on the host: the tokens it draws, and when it ended."""

from typing import Any

import torch
from torch import Tensor


class StepSlot:
    """Memory and marks of one step in flight; used again when that step has ended.

    free --begin--> running --end--> ending --wait--> free
    """

    def __init__(self, max_num_seqs: int, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._drawn = torch.zeros(2, max_num_seqs, dtype=torch.int32, pin_memory=self._is_cuda)
        if self._is_cuda:
            new_event: Any = torch.cuda.Event
            self._began = new_event(enable_timing=True)
            self._ended = new_event(enable_timing=True)

    def begin(self) -> None:
        """Marks the step's beginning on the current stream."""
        if self._is_cuda:
            self._began.record()

    def end(self, drawn: Tensor | None) -> None:
        """Begins to fetch drawn tokens and flags, [2, max_num_seqs], and marks the end.

        All of them, used or not: torch copies what is not contiguous by way of memory that is not
        page-locked, and waits for it.
        """
        if drawn is not None:
            self._drawn.copy_(drawn, non_blocking=True)
        if self._is_cuda:
            self._ended.record()

    def wait(self) -> float:
        """Waits for the end; seconds from beginning to end, 0 on a CPU."""
        if not self._is_cuda:
            return 0.0
        self._ended.synchronize()
        return float(self._began.elapsed_time(self._ended)) / 1e3

    def drawn(self, num_rows: int) -> tuple[list[int], list[int]]:
        """Tokens and flags of the step that was waited for."""
        tokens, failed = self._drawn[:, :num_rows].tolist()
        return tokens, failed
