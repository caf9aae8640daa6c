"""A safetensors file that is made as it is written: no second copy of a model (github.com/huggingface/safetensors,
"Format"). The same bytes as that library's `save`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]

PIECE_BYTES: Final = 1 << 20


class TensorFile:
    """The file's bytes, in order, as often as they are asked for.

    Args:
        tensors: name to a contiguous float32 array; mapped ones are read as they are passed on.
    """

    def __init__(self, tensors: Mapping[str, Float32]) -> None:
        self._tensors = {name: np.ascontiguousarray(tensors[name], dtype="<f4") for name in sorted(tensors)}
        entries, start = {}, 0
        for name, values in self._tensors.items():
            stop = start + values.nbytes
            entries[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [start, stop]}
            start = stop
        header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        header += b" " * (-len(header) % 8)
        self._header = len(header).to_bytes(8, "little") + header
        self.length = len(self._header) + start

    def __iter__(self) -> Iterator[bytes | memoryview]:
        yield self._header
        for values in self._tensors.values():
            view = values.reshape(-1).data.cast("B")
            for start in range(0, len(view), PIECE_BYTES):
                yield view[start : start + PIECE_BYTES]


def whole(data: bytes | TensorFile) -> bytes:
    """A file's bytes at once."""
    return data if isinstance(data, bytes) else b"".join(data)
