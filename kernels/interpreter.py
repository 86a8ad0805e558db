"""Mends Triton's interpreter, so that kernels can be tested without a GPU.

Where TRITON_INTERPRET=1 is set before Triton is imported, kernels run as numpy code. Up to 3.9 that
code (triton/runtime/interpreter.py) holds bfloat16 and 8-bit floats as integers, computes on those
integers, truncates where hardware rounds, and reads out of bounds in silence. 3.6 also takes loop
bounds from arrays in a way that numpy 2.4 has given up.
"""

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

_NARROW: dict[Any, np.dtype[Any]] = {
    tl.bfloat16: np.dtype(ml_dtypes.bfloat16),
    tl.float8e4nv: np.dtype(ml_dtypes.float8_e4m3fn),
    tl.float8e5: np.dtype(ml_dtypes.float8_e5m2),
}
_RAW = {1: np.dtype(np.uint8), 2: np.dtype(np.uint16)}


def _narrow(dtype: Any) -> np.dtype[Any] | None:
    return None if isinstance(dtype, tl.pointer_type) else _NARROW.get(dtype)


class OutOfBounds(Exception):
    """A kernel touched memory of none of its arguments."""


class _Memory:
    """The address ranges of the tensors that the running kernel was given."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []

    def check(self, addresses: Any, mask: Any, itemsize: int) -> None:
        touched = np.broadcast_to(addresses, np.broadcast_shapes(addresses.shape, mask.shape))
        # A mask may be of integers, and indexing with those would mean something else.
        touched = touched[np.broadcast_to(mask, touched.shape).astype(bool)]
        inside = np.zeros(touched.shape, dtype=bool)
        for start, end in self.ranges:
            inside |= (touched >= start) & (touched + np.uint64(itemsize) <= end)
        if not inside.all():
            program = interpreter.interpreter_builder.grid_idx
            raise OutOfBounds(
                f"program {program}: {(~inside).sum()} of {inside.size} addresses lie outside "
                "the tensors that the kernel was given"
            )


def mend_interpreter() -> None:
    """Patch Triton's interpreter, for this process, once.

    Then bfloat16, float8e4nv and float8e5 are computed as ml_dtypes does (rounded to nearest even,
    e4m3 saturating), sums of products in float32, and an access outside the storage of the
    launch's tensors raises OutOfBounds, wrapped in an InterpreterError.
    """
    builder = interpreter.InterpreterBuilder
    if builder.create_dot is _create_dot:
        return
    memory = _Memory()
    interpreter._get_np_dtype = _with_narrow_floats(interpreter._get_np_dtype)
    builder.create_masked_load = _masked_load(memory)
    builder.create_masked_store = _masked_store(memory)
    builder.cast_impl = _cast
    builder.create_fp_to_fp = _cast
    builder.create_dot = _create_dot
    interpreter._patch_lang_tensor = _with_loop_bounds(interpreter._patch_lang_tensor)
    interpreter.GridExecutor.__call__ = _remember_arguments(
        interpreter.GridExecutor.__call__, memory
    )


def _with_loop_bounds(original: Callable[..., None]) -> Callable[..., None]:
    def patch(tensor: Any, *scope: Any) -> None:
        original(tensor, *scope)
        tensor.__index__ = lambda self: self.handle.data.item()

    return patch


def _with_narrow_floats(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def np_dtype(dtype: Any) -> Any:
        element = dtype.element_ty if isinstance(dtype, tl.block_type) else dtype
        return _narrow(element) or original(dtype)

    return np_dtype


def _masked_load(memory: _Memory) -> Callable[..., Any]:
    def load(self: Any, pointers: Any, mask: Any, other: Any, *hints: Any) -> Any:
        element = pointers.get_element_ty()
        dtype: Any = interpreter._get_np_dtype(element)
        raw: Any = _RAW[dtype.itemsize] if _narrow(element) else dtype
        memory.check(pointers.data, mask.data, dtype.itemsize)
        default = np.zeros_like(pointers.data, dtype=raw)
        if other is not None:
            default = np.ascontiguousarray(other.data, dtype=dtype).view(raw)
        loaded = interpreter._interpreter.load(pointers.data, mask.data, default, raw)
        return interpreter.TensorHandle(loaded.view(dtype), element)

    return load


def _masked_store(memory: _Memory) -> Callable[..., Any]:
    def store(self: Any, pointers: Any, value: Any, mask: Any, *hints: Any) -> Any:
        data: Any = np.ascontiguousarray(value.data)
        memory.check(pointers.data, mask.data, data.itemsize)
        if _narrow(value.dtype.scalar):
            data = data.view(_RAW[data.itemsize])
        return interpreter._interpreter.store(pointers.data, data, mask.data)

    return store


def _cast(self: Any, source: Any, target: Any, rounding_mode: Any = None) -> Any:
    data = source.data
    if target.scalar == tl.float8e4nv:
        data = np.clip(data.astype(np.float32), -448, 448)
    data = data.astype(interpreter._get_np_dtype(target))
    return interpreter.TensorHandle(data, target.scalar)


def _create_dot(self: Any, a: Any, b: Any, d: Any, *precision: Any) -> Any:
    wide = [x.data.astype(np.float32) if _narrow(x.dtype.scalar) else x.data for x in (a, b)]
    product = np.matmul(*wide, dtype=d.data.dtype)
    return interpreter.TensorHandle(product + d.data, d.dtype.scalar)


def _remember_arguments(original: Callable[..., Any], memory: _Memory) -> Callable[..., Any]:
    def launch(self: Any, *args: Any, **options: Any) -> Any:
        tensors = [x for x in (*args, *options.values()) if isinstance(x, torch.Tensor)]
        storages = [tensor.untyped_storage() for tensor in tensors]
        memory.ranges = [(s.data_ptr(), s.data_ptr() + s.nbytes()) for s in storages]
        return original(self, *args, **options)

    return launch
