"""How are bytes in host memory looked at as an array, without keeping the memory from being given back?"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nvdma.memory import MemoryKind, Span
from nvstreamd.errors import KernelError
from nvstreamd.kernels.arrays import Floats
from nvstreamd.kernels.dequantise import dequantise
from nvstreamd.kernels.device import Tensors


class _Borrowed:
    """An address as numpy's array interface wants it. It exports no buffer, so a traceback that keeps an array of a
    failed pass alive does not keep the arena from closing."""

    def __init__(self, address: int, nbytes: int) -> None:
        self.__array_interface__ = {"data": (address, False), "shape": (nbytes,), "typestr": "|u1", "version": 3}


def host_bytes(span: Span, offset: int, nbytes: int) -> npt.NDArray[np.uint8]:
    """Bytes `offset` to `offset + nbytes` of the span, uint8, not a copy. Raises KernelError unless they are there."""
    if span.memory.kind is MemoryKind.VRAM:
        raise KernelError("bytes in VRAM are no host's to look at", "report this")
    if not 0 <= offset <= offset + nbytes <= span.nbytes:
        raise KernelError(f"bytes {offset} to {offset + nbytes} of {span.nbytes}", "report this")
    return np.asarray(_Borrowed(span.address + offset, nbytes))


def vector_of(span: Span, tensors: Tensors, name: str, columns: int) -> Floats:
    """The vector `name` [columns] as float32, a copy."""
    tensor = tensors[name]
    raw = host_bytes(span, tensor.offset, tensor.type.row_bytes(columns))
    found: Floats = dequantise(tensor.type, raw, columns)[0].copy()
    return found
