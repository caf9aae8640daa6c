"""Round 0: the first weights of every tensor, made in numpy from the plan's seed, the same bits on every
machine.

Nodes make round 0 themselves (DESIGN.md, "Secure sum", rule 6), so nothing here may depend on a library
version: numpy promises the raw output of its bit generators for ever (NEP 19) but not the streams of its
distributions, so only Philox's raw words are used and the floats are made from them here.

Stream: Philox-4x64-10, key = the first 128 bits of SHA-256 over the tag and the length-prefixed (seed,
component, tensor name), counter from 0. Each 64-bit word gives two 32-bit halves, low one first; a half `h`
gives `((h >> 8) + 1/2) · 2^-23 − 1`, uniform in (−1, 1) with 24 bits, times the tensor's bound in float64,
cast once.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from security.errors import ConfigurationError

Init = Literal["uniform_fan_in", "zeros", "ones"]

TAG: Final = b"consilium/v1/initialisation"
BLOCK: Final = 1 << 16

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of a component, as the plan fixes it.

    Args:
        name: the tensor's name within its component.
        shape: its shape, positive sizes; `()` is one number.
        init: `uniform_fan_in` draws from ±1/√fan_in (PyTorch's default for linear layers), or constant
            values.
        fan_in: inputs of the layer, at least 1 for `uniform_fan_in`; ignored otherwise.

    Raises:
        ConfigurationError: a field is out of range.
    """

    name: str
    shape: tuple[int, ...]
    init: Init
    fan_in: int = 0

    def __post_init__(self) -> None:
        if not self.name or any(size < 1 for size in self.shape):
            raise ConfigurationError(
                f"tensor {self.name!r} has shape {self.shape}.",
                remedy="Every tensor has a name and sizes of 1 or more.",
            )
        if self.init not in get_args(Init):
            raise ConfigurationError(
                f"tensor {self.name!r}: unknown initialisation {self.init!r}.",
                remedy=f"Use one of: {', '.join(get_args(Init))}.",
            )
        if self.init == "uniform_fan_in" and self.fan_in < 1:
            raise ConfigurationError(f"tensor {self.name!r} has fan-in {self.fan_in}.", remedy="Use 1 or more.")

    @property
    def size(self) -> int:
        """Number of parameters."""
        return math.prod(self.shape)


def philox_key(seed: int, component: str, tensor: str) -> int:
    """The 128-bit Philox key of one tensor: SHA-256 with a domain tag, little-endian."""
    digest = hashlib.sha256(TAG)
    for field in (str(seed).encode(), component.encode(), tensor.encode()):
        digest.update(len(field).to_bytes(4, "little"))
        digest.update(field)
    return int.from_bytes(digest.digest()[:16], "little")


def initial_blocks(seed: int, component: str, spec: TensorSpec, block: int = BLOCK) -> Iterator[Float32Array]:
    """The tensor's values in row-major order, in pieces of `block` (the last may be shorter).

    Each piece is a new array, the caller's own; their concatenation is the same for every `block`.

    Args:
        seed: the plan's seed, 0 or above.
        component: e.g. `encoder/mrna`; equal names in different components get different values.
        spec: the tensor.
        block: elements per piece, at least 1.

    Yields:
        float32[<= block].

    Raises:
        ConfigurationError: seed or block is out of range.
    """
    if seed < 0 or block < 1:
        raise ConfigurationError(
            f"seed {seed}, block {block}.", remedy="Use a seed of 0 or more and blocks of 1 or more."
        )
    return _blocks(seed, component, spec, block)


def _blocks(seed: int, component: str, spec: TensorSpec, block: int) -> Iterator[Float32Array]:
    if spec.init != "uniform_fan_in":
        value = 1.0 if spec.init == "ones" else 0.0
        for start in range(0, spec.size, block):
            yield np.full(min(block, spec.size - start), value, np.float32)
        return
    generator = np.random.Philox(key=philox_key(seed, component, spec.name))
    bound = 1.0 / math.sqrt(spec.fan_in)
    spare = np.empty(0, np.uint32)  # the high half of a word whose low half ended the piece before
    for start in range(0, spec.size, block):
        length = min(block, spec.size - start)
        missing = length - spare.size
        words = np.asarray(generator.random_raw((missing + 1) // 2), np.dtype("<u8"))
        halves = np.concatenate([spare, words.view(np.dtype("<u4"))]) if spare.size else words.view(np.dtype("<u4"))
        spare = halves[length:].copy()
        values = (halves[:length] >> np.uint32(8)).astype(np.float64)
        values += 0.5
        values *= 2.0**-23
        values -= 1.0
        values *= bound
        yield values.astype(np.float32)


def initial_tensor(seed: int, component: str, spec: TensorSpec) -> Float32Array:
    """The whole tensor, float32 of `spec.shape`; see `initial_blocks`, whose concatenation it is."""
    flat = np.empty(spec.size, np.float32)
    start = 0
    for piece in initial_blocks(seed, component, spec):
        flat[start : start + piece.size] = piece
        start += piece.size
    return flat.reshape(spec.shape)
