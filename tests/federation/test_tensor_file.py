"""A safetensors file made as it is written is the library's own, byte for byte."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from federation.tensor_file import PIECE_BYTES, TensorFile, whole

NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789/+.-", min_size=1, max_size=20)


@given(
    st.dictionaries(NAMES, st.lists(st.integers(1, 5), min_size=1, max_size=3), max_size=5), st.integers(0, 2**32 - 1)
)
def test_it_is_what_the_library_writes(shapes: dict[str, list[int]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    tensors = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    file = TensorFile(tensors)
    assert whole(file) == whole(file) == save(tensors)
    assert file.length == len(whole(file))
    assert {n: v.tobytes() for n, v in load(whole(file)).items()} == {n: v.tobytes() for n, v in tensors.items()}


def test_its_pieces_are_small_and_copy_nothing() -> None:
    values = np.arange(600_000, dtype=np.float32)
    pieces = list(TensorFile({"0.weight": values}))
    assert max(map(len, pieces)) == PIECE_BYTES
    assert all(np.shares_memory(np.frombuffer(p, np.float32), values) for p in pieces[1:])
