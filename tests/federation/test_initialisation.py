"""Round 0: the same bits everywhere, checked against Philox written out in Python's integers."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.initialisation import TensorSpec, initial_blocks, initial_tensor, philox_key
from security.errors import ConfigurationError

MASK = 2**64 - 1


def philox(counter: int, key: int) -> list[int]:
    """Philox-4x64-10 (Salmon et al., SC 2011): one block of four words."""
    c = [counter >> (64 * k) & MASK for k in range(4)]
    k0, k1 = key & MASK, key >> 64
    for _ in range(10):
        a, b = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [(b >> 64) ^ c[1] ^ k0, b & MASK, (a >> 64) ^ c[3] ^ k1, a & MASK]
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
    return c


def reference(seed: int, component: str, spec: TensorSpec) -> list[float]:
    text = b"consilium/v1/initialisation"
    for field in (str(seed), component, spec.name):
        text += len(field.encode()).to_bytes(4, "little") + field.encode()
    key = int.from_bytes(hashlib.sha256(text).digest()[:16], "little")
    values: list[float] = []
    counter = 1  # numpy counts up before its first block
    while len(values) < spec.size:
        for word in philox(counter, key):
            for half in (word & 0xFFFFFFFF, word >> 32):
                values.append((((half >> 8) + 0.5) * 2.0**-23 - 1.0) * (1.0 / math.sqrt(spec.fan_in)))
        counter += 1
    return values[: spec.size]


@settings(max_examples=40)
@given(
    st.integers(0, 2**64),
    st.sampled_from(["encoder/mrna", "classifier/mrna+image"]),
    st.integers(1, 40),
    st.integers(1, 50),
)
def test_the_stream_is_philox_written_out(seed: int, component: str, size: int, fan_in: int) -> None:
    spec = TensorSpec("0.weight", (size,), "uniform_fan_in", fan_in)
    expected = np.array(reference(seed, component, spec)).astype(np.float32)
    assert np.array_equal(initial_tensor(seed, component, spec), expected)


def test_a_pinned_value() -> None:
    """From `reference` above. A change breaks every run that is going on."""
    values = initial_tensor(7, "encoder/mrna", TensorSpec("0.weight", (2, 3), "uniform_fan_in", 4))
    assert values.shape == (2, 3)
    digest = hashlib.sha256(values.astype("<f4").tobytes()).hexdigest()
    assert digest == "abf0135deaa275bec90b6f320465325576ff4663ac9b97f51f0595055c7861e4"


@settings(max_examples=40)
@given(st.integers(1, 200), st.integers(1, 70))
def test_blocks_of_any_size_join_to_the_tensor(size: int, block: int) -> None:
    spec = TensorSpec("w", (size,), "uniform_fan_in", 3)
    pieces = list(initial_blocks(1, "encoder/a", spec, block))
    assert all(p.size == block for p in pieces[:-1])
    assert np.array_equal(np.concatenate(pieces), initial_tensor(1, "encoder/a", spec))


@pytest.mark.parametrize(("init", "value"), [("zeros", 0.0), ("ones", 1.0)])
def test_constant_tensors(init: str, value: float) -> None:
    spec = TensorSpec("b", (3, 5), init)  # type: ignore[arg-type] # of the parameter's two names
    assert np.array_equal(initial_tensor(1, "encoder/a", spec), np.full((3, 5), value, np.float32))
    assert sum(p.size for p in initial_blocks(1, "encoder/a", spec, 4)) == 15


def test_one_number_is_a_tensor_too() -> None:
    assert initial_tensor(1, "c", TensorSpec("s", (), "uniform_fan_in", 1)).shape == ()


def test_values_are_uniform_within_the_bound() -> None:
    values = initial_tensor(3, "encoder/a", TensorSpec("w", (200_000,), "uniform_fan_in", 25)).astype(np.float64)
    assert np.abs(values).max() < 0.2
    assert abs(values.mean()) < 0.001
    assert values.std() == pytest.approx(0.2 / math.sqrt(3), rel=0.01)
    counts, _ = np.histogram(values, 20, (-0.2, 0.2))
    assert counts.min() > 9_500


def test_every_part_of_the_name_matters() -> None:
    keys = {
        philox_key(*name)
        for name in (
            (1, "a", "b"),
            (2, "a", "b"),
            (1, "c", "b"),
            (1, "a", "d"),
            (1, "ab", ""),
            (1, "", "ab"),
            (11, "", "ab"),
        )
    }
    assert len(keys) == 7


@pytest.mark.parametrize(
    ("name", "shape", "init", "fan_in"),
    [
        ("", (1,), "zeros", 0),
        ("w", (0,), "zeros", 0),
        ("w", (2, -1), "zeros", 0),
        ("w", (1,), "normal", 1),
        ("w", (1,), "uniform_fan_in", 0),
    ],
)
def test_bad_tensors_cannot_be_declared(name: str, shape: tuple[int, ...], init: str, fan_in: int) -> None:
    with pytest.raises(ConfigurationError):
        TensorSpec(name, shape, init, fan_in)  # type: ignore[arg-type] # that is the point


def test_a_bad_seed_or_block_is_refused_at_once() -> None:
    spec = TensorSpec("w", (1,), "zeros")
    with pytest.raises(ConfigurationError):
        initial_blocks(-1, "a", spec)
    with pytest.raises(ConfigurationError):
        initial_blocks(1, "a", spec, 0)
