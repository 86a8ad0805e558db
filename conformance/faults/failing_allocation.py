"""Memory that runs out in the middle of an execution: torch is refused one tensor's memory."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class FailingAllocation(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it lasts, the operation that makes tensor `number` (from 0) finds no memory for it.

    Tensors are counted, of whatever device and size, and views are none. `on_failure` is told
    before the error is raised; nothing fails after that.
    """

    def __init__(self, number: int, on_failure: Callable[[], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._num_left = number
        self._on_failure = on_failure

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if _makes_tensors(func):
            self._num_left -= 1
            if self._num_left == -1:
                self._on_failure()
                raise torch.OutOfMemoryError(f"made to fail in {func}")
        return func(*args, **(kwargs or {}))


def _makes_tensors(func: Any) -> bool:
    """Whether a result of the operator is memory of its own."""
    results = func._schema.returns
    return any(str(one.type) == "Tensor" and one.alias_info is None for one in results)
