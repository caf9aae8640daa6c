"""How a secure sum grows with its institutions: whole attempts in one process, a third vanishing at the worst phase.

`python -m studies.scaling 100 300` prints a row for each number of institutions. Every institution is a real `Member`,
the coordinator a real `Aggregator`; uploads are of random words and lie in memory. The dropouts vanish after they dealt
their shares and before they upload: all masks that they share with the living must be expanded to take them off.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Final, ParamSpec, TypeVar

import numpy as np

from security.privacy.randomness import SystemRandomness
from security.secure_sum.aggregator import Aggregator
from security.secure_sum.fold import fold
from security.secure_sum.graph import MAX_COMPLETE_GRAPH
from security.secure_sum.graph_bound import DROPOUT, neighbours_for
from security.secure_sum.masks import Masker, SignedKey, Words
from security.secure_sum.member import Member
from security.secure_sum.messages import Signed
from security.secure_sum.spec import Attempt, Context, Part, Sum
from security.signing import IdentityKey

COLLUDERS: Final = 5
CORES: Final = 2
P = ParamSpec("P")
R = TypeVar("R")
_MEASURED_BYTES: Final = 1 << 29


@dataclass(frozen=True)
class ScalingRow:
    """One attempt.

    Attributes:
        institutions: n.
        parameters: words of 32 bits that are summed; beside them 64 words of 64 bits, as statistics are.
        dropouts: who vanished after dealing shares.
        neighbours: k; n − 1 where the mask graph is complete.
        share_threshold: shares that open a secret.
        key_ms: CPU milliseconds of the key phase, per institution and key pair (keys, reveals, dealing, accepting).
        mask_seconds: CPU seconds of one institution that masks and encodes its upload.
        list_ms: CPU milliseconds of one institution that signs the list and opens its shares.
        coordinator_seconds: CPU seconds of the coordinator's messages, all phases.
        shamir_seconds: wall seconds to put the secrets together and derive every mask key.
        unmask_seconds: wall seconds from all shares there to the sum in memory, the above among them.
        expanded_bytes: of keystream.
        floor_seconds: `expanded_bytes` over what both cores expand and add in a second, measured right before.
        ratio: (unmask_seconds − shamir_seconds) / floor_seconds.
        bytes_up: of one institution that stayed: keys, shares, masked words, signature, opening.
        bytes_down: of the same: keys, revealed values, shares, list, signatures.
    """

    institutions: int
    parameters: int
    dropouts: int
    neighbours: int
    share_threshold: int
    key_ms: float
    mask_seconds: float
    list_ms: float
    coordinator_seconds: float
    shamir_seconds: float
    unmask_seconds: float
    expanded_bytes: int
    floor_seconds: float
    ratio: float
    bytes_up: int
    bytes_down: int


class _Ones:
    """The encoded vector of every institution: its values cost nothing, so that masks are what is measured."""

    def fill(self, start: int, out: Words) -> None:
        out.fill(1)


class _Uploaded:
    """A spooled upload: the words of one institution in memory."""

    def __init__(self, data: bytearray) -> None:
        self._data = memoryview(data)

    def read_into(self, offset: int, out: memoryview) -> None:
        out[:] = self._data[offset : offset + out.nbytes]


class _Clock:
    """CPU seconds by name."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    def time(self, name: str, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Calls, and adds what it took to `name`."""
        began = time.process_time()
        found = call(*args, **kwargs)
        self.spent[name] = self.spent.get(name, 0.0) + time.process_time() - began
        return found


def expand_rate() -> float:
    """Bytes that both cores expand and add in a second."""
    keys = [SignedKey(1, os.urandom(32)) for _ in range(64)]
    blocks = [np.zeros(1 << 18, np.uint32) for _ in range(CORES)]
    times = max(1, _MEASURED_BYTES // (len(keys) * blocks[0].nbytes))

    def work(words: Words) -> None:
        masker = Masker(keys)
        for _ in range(times):
            masker.apply(words, 0)

    began = time.perf_counter()
    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(work, blocks))
    return CORES * times * len(keys) * blocks[0].nbytes / (time.perf_counter() - began)


def scaling_attempt(names: list[str], roster: dict[str, bytes], parameters: int, dropouts: int) -> Attempt:
    """Sum A of `parameters` words and sum B of statistics, as a plan of one component has them: four key pairs each."""
    n = len(names)
    colluders = min(COLLUDERS, max(0, n - 2 * dropouts - 1))
    everybody = frozenset(names)
    sums = (
        Sum("updates", (Part("encoder", 32, parameters, everybody),)),
        Sum("statistics", tuple(Part(name, 64, 64, everybody) for name in ("losses", "metrics", "clipped"))),
    )
    return Attempt(
        Context("scaling", bytes(32), 1, 1, bytes(32)),
        roster,
        (n + colluders + 2) // 2,
        colluders,
        colluders + 2,
        sums,
        sparse=neighbours_for(n, colluders) if n > MAX_COMPLETE_GRAPH else None,
    )


def scaling_row(institutions: int, parameters: int, dropout: float = float(DROPOUT)) -> ScalingRow:
    """Runs one attempt of `institutions`, of whom `dropout` vanish once they dealt, and measures it.

    Args:
        institutions: 3 to 1000.
        parameters: words of the large sum.
        dropout: part that vanishes, 0 to below a half.

    Raises:
        ConfigurationError: no mask graph stands that.
    """
    names = [f"institution-{x:04}" for x in range(institutions)]
    keys = {name: IdentityKey.generate() for name in names}
    gone = set(names[1 :: max(2, round(1 / dropout))][: int(institutions * dropout)]) if dropout else set()
    lives = [name for name in names if name not in gone]
    attempt = scaling_attempt(names, {name: key.public for name, key in keys.items()}, parameters, len(gone))
    members = {name: Member(attempt, name, keys[name], SystemRandomness()) for name in names}
    machine, clock = Aggregator(attempt), _Clock()
    up, down = _key_phase(members, machine, clock)
    key_ms = 1e3 * clock.spent["keys"] / institutions / len(attempt.keyed_parts(names[0]))
    watched = members[lives[0]]

    clock.time("coordinator", machine.begin_sum, b"")
    spool: dict[str, bytearray] = {}
    for name in lives:
        members[name].enter("updates", b"")
        upload = members[name].mask({"encoder": _Ones()})
        clock.time("coordinator", machine.take_header, upload.header)
        began = time.process_time()
        data = bytearray()
        for chunk in upload.chunks():
            data += chunk
        clock.spent["masking"] = clock.spent.get("masking", 0.0) + time.process_time() - began
        spool[name] = data
        clock.time("coordinator", machine.complete_upload, name)
    up += attempt.sums[0].parts[0].bytes
    payload = clock.time("coordinator", machine.close_uploads)
    signatures = [clock.time("list", members[name].sign, payload) for name in lives]
    for signed in signatures:
        clock.time("coordinator", machine.take_signature, signed)
    clock.time("coordinator", machine.decide)
    decided = signatures[: attempt.threshold]
    for name in lives:
        opening = clock.time("list", members[name].open, decided)
        clock.time("coordinator", machine.take_opening, opening)
        up += _size([opening]) if name == watched.name else 0
    up += _size(signatures[:1])
    down += 2 * len(payload) + sum(len(s.signature) + len(s.signer) for s in decided)

    rate = expand_rate()
    began = time.perf_counter()
    (found,) = machine.unmask()
    shamir = time.perf_counter() - began
    total = bytearray()
    fold(found, {name: (_Uploaded(spool[name]), 0) for name in lives}, total.extend, CORES)
    unmask = time.perf_counter() - began
    if not np.array_equal(np.frombuffer(total, np.uint32), np.full(parameters, len(lives), np.uint32)):
        raise AssertionError("the opened sum is not the plaintext sum")
    expanded = len(found.keystreams) * found.part.bytes
    return ScalingRow(
        institutions,
        parameters,
        len(gone),
        attempt.sparse.neighbours if attempt.sparse else institutions - 1,
        attempt.share_threshold,
        key_ms,
        clock.spent["masking"] / len(lives),
        1e3 * clock.spent["list"] / len(lives),
        clock.spent["coordinator"],
        shamir,
        unmask,
        expanded,
        expanded / rate,
        (unmask - shamir) / (expanded / rate),
        up,
        down,
    )


def _key_phase(members: dict[str, Member], machine: Aggregator, clock: _Clock) -> tuple[int, int]:
    """Everybody through keys, reveals and shares. Returns bytes up and down of the first one."""
    first = next(iter(members))
    for member in members.values():
        made = clock.time("keys", member.make_keys)
        clock.time("coordinator", machine.take_keys, made)
    clock.time("coordinator", machine.close_keys)
    relayed = list(machine.keys.values())
    up, down = _size(relayed[:1]), _size(relayed)
    drawn = machine.attempt.sparse is not None
    if drawn:
        for name, member in members.items():
            value = clock.time("keys", member.reveal, relayed)
            clock.time("coordinator", machine.take_reveal, name, value)
        clock.time("coordinator", machine.close_reveals)
        down += sum(len(name) + len(value) for name, value in machine.reveals.items())
    for name, member in members.items():
        if drawn:
            messages = clock.time("keys", member.deal_around, machine.reveals)
        else:
            messages = clock.time("keys", member.deal, relayed)
        dealt = list(messages.values())
        clock.time("coordinator", machine.take_shares, name, dealt)
        up += _size(dealt) if name == first else 0
    clock.time("coordinator", machine.close_shares)
    cohort = sorted(machine.cohort)
    for name, member in members.items():
        shares = machine.shares_for(name)
        clock.time("keys", member.accept, cohort, shares)
        down += _size(shares) if name == first else 0
    return up, down


def _size(messages: Iterable[Signed]) -> int:
    return sum(message.to_proto().ByteSize() for message in messages)


def main() -> None:
    """Prints a row for each number of institutions."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("institutions", nargs="*", type=int, default=[10, 30, 100, 300, 1000])
    parser.add_argument("--parameters", type=int, default=1_000_000)
    parser.add_argument(
        "--most-bytes", type=int, default=2 << 30, help="fewer parameters where uploads would be larger"
    )
    options = parser.parse_args()
    for institutions in options.institutions:
        parameters = min(options.parameters, options.most_bytes // (4 * institutions))
        row = scaling_row(institutions, parameters)
        figures = (f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in asdict(row).items())
        sys.stdout.write("  ".join(figures) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
