"""Shadow memory: what each slot of each block holds, as a name of the text up to there."""

from collections.abc import Iterable, Sequence

_EMPTY = 0


class TextNames:
    """One number for each text (a run of tokens from the start): equal texts, equal numbers."""

    def __init__(self) -> None:
        self._names: dict[tuple[int, int], int] = {}

    def extend(self, name: int, token: int) -> int:
        """The name of the text that is one token longer; the empty text's is 0."""
        return self._names.setdefault((name, token), len(self._names) + 1)

    def of(self, tokens: Iterable[int], start: int = _EMPTY) -> list[int]:
        """The names after each of the tokens."""
        names: list[int] = []
        for token in tokens:
            start = self.extend(start, token)
            names.append(start)
        return names


class ShadowMemory:
    """Content of the device's slots, by (block, offset), and of the host's blocks."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._device: dict[int, dict[int, int]] = {}
        self._host: dict[int, dict[int, int]] = {}

    def write(self, table: Sequence[int], position: int, name: int) -> None:
        block, offset = table[position // self._block_size], position % self._block_size
        self._device.setdefault(block, {})[offset] = name

    def read(self, table: Sequence[int], position: int) -> int | None:
        """The name at a position; None for a slot that nothing was written to."""
        block = table[position // self._block_size]
        return self._device.get(block, {}).get(position % self._block_size)

    def copy(self, source: int, destination: int) -> None:
        self._device[destination] = dict(self._device.get(source, {}))

    def swap_out(self, source: int, destination: int) -> None:
        self._host[destination] = dict(self._device.get(source, {}))

    def swap_in(self, source: int, destination: int) -> None:
        self._device[destination] = dict(self._host.get(source, {}))
