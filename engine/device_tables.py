"""The rows of the persistent batch as a GPU sees them: block tables, and tokens only it knows.

Both tables live on the device; the host sends what has changed since the last step.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pagetwin.engine.sampler import SamplingRow


@dataclass
class _Patches:
    """Entries of one table that the device does not have yet, by flat index."""

    places: list[NDArray[np.int64]] = field(default_factory=list)
    values: list[NDArray[np.int32]] = field(default_factory=list)

    def add(self, first_place: int, values: Sequence[int]) -> None:
        self.places.append(np.arange(first_place, first_place + len(values)))
        self.values.append(np.array(values, np.int32))

    def merged(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """All patches, the last one of each place alone: a device applies them in no order."""
        places, values = np.concatenate(self.places), np.concatenate(self.values)
        last_first = len(places) - 1 - np.unique(places[::-1], return_index=True)[1]
        return places[last_first], values[last_first]

    def clear(self) -> None:
        self.places.clear()
        self.values.clear()


class DeviceTables:
    """Follows an InputBatch (engine/input_batch.py, RowObserver), one row for each of its rows.

    Vacated rows keep what stood there: nothing reads beyond a sequence's length.
    """

    def __init__(
        self, max_num_seqs: int, max_model_len: int, max_blocks: int, device: torch.device
    ) -> None:
        self.block_tables = torch.zeros(max_num_seqs, max_blocks, dtype=torch.int32, device=device)
        """int32 [max_num_seqs, max_blocks]."""
        self.tokens = torch.zeros(max_num_seqs, max_model_len, dtype=torch.int32, device=device)
        """int32 [max_num_seqs, max_model_len]: each token that the device has drawn, at its
        position; for requests with penalties all tokens that stand before it, too."""
        self._block_patches = _Patches()
        self._token_patches = _Patches()

    def occupy(self, row: int, sampling_row: SamplingRow, token_ids: Sequence[int]) -> None:
        params = sampling_row.request.sampling_params
        if params.repetition_penalty != 1 or params.frequency_penalty or params.presence_penalty:
            self.set_tokens(row, 0, token_ids)

    def set_blocks(self, row: int, first: int, block_ids: Sequence[int]) -> None:
        self._block_patches.add(row * self.block_tables.shape[1] + first, block_ids)

    def set_tokens(self, row: int, first: int, token_ids: Sequence[int]) -> None:
        self._token_patches.add(row * self.tokens.shape[1] + first, token_ids)

    def vacate(self, row: int) -> None:
        """Nothing to do: the row's next sequence writes what it reads."""

    def patches(self) -> dict[str, NDArray[np.int64] | NDArray[np.int32]]:
        """What must be sent before the next step, by name; empty if nothing has changed.

        It stays to be sent until it is applied: on the way there memory may run out.
        """
        arrays: dict[str, NDArray[np.int64] | NDArray[np.int32]] = {}
        for name, patches in (("block", self._block_patches), ("token", self._token_patches)):
            if patches.places:
                arrays[f"{name}_places"], arrays[f"{name}_values"] = patches.merged()
        return arrays

    def apply(self, views: dict[str, Tensor]) -> None:
        """Writes the patches that have been sent; `views` may hold other arrays, too."""
        for name, table, patches in (
            ("block", self.block_tables, self._block_patches),
            ("token", self.tokens, self._token_patches),
        ):
            if f"{name}_places" in views:
                places, values = views[f"{name}_places"], views[f"{name}_values"]
                table.view(-1).index_copy_(0, places, values)
                patches.clear()
