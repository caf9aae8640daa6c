"""What a round cannot do without: bytes to expand, to send, to hash and to store, and how long that takes at least.

Pure arithmetic on sizes; the rates are measured by `deploy/bench_rates.py` in the same run, each on both cores. A floor
is the bytes of one kind that all processes of a round handle together, over the rate of that kind alone; a round that
did nothing else, perfectly shared between the cores, would take at least the largest of them.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal

from federation.layout import Component, layout
from federation.plan import Plan
from federation.rounds import UPDATES
from federation.server_optimisers import state_slots
from federation.settings import mask_graph
from federation.thinning import Thinning
from institution_node.model_files import MEMORY_BYTES
from security.ckks.encoding import ciphertext_bytes
from security.secure_sum.spec import Part

Kind = Literal["keystream", "tls", "hash", "disk"]


@dataclass(frozen=True)
class ComponentLoad:
    """One summed component in one round.

    Attributes:
        parameters: of the component.
        owners: institutions that made keys for it.
        gone: of these, how many vanished after the key phase, so that their masks are recovered from shares.
        neighbours: mask neighbours of each owner; None: all other owners.
        word_bytes: of one parameter on the wire.
        slots: state vectors of the server optimiser (FedAvg 0, FedAvgM 1, FedAdam and FedYogi 2).
        masked: False for the backend `none`.
        ciphertext: bytes of one encrypted upload; 0: it is not encrypted.
        filed: whether it is too large for the institutions' memory and rests in a file at each.
        sent: parameters that travel, of a thinned component; None: all.
        passing: how many of the state vectors rest at no institution, but pass by in every round; only where `filed`.
    """

    parameters: int
    owners: int
    gone: int = 0
    neighbours: int | None = None
    word_bytes: int = 4
    slots: int = 0
    masked: bool = True
    ciphertext: int = 0
    filed: bool = False
    sent: int | None = None
    passing: int = 0

    @property
    def alive(self) -> int:
        """Owners whose upload is summed."""
        return self.owners - self.gone

    @property
    def vector(self) -> int:
        """Bytes of one upload: a word per parameter that is sent, and one for the weight behind them."""
        return self.word_bytes * ((self.parameters if self.sent is None else self.sent) + 1)

    @property
    def upload(self) -> int:
        """Bytes of one upload."""
        return self.ciphertext or self.vector

    @property
    def model(self) -> int:
        """Bytes of w(t+1) and the server optimiser's state, float32."""
        return 4 * self.parameters * (1 + self.slots)

    @property
    def passing_bytes(self) -> int:
        """Bytes of the state vectors that an institution fetches in a round."""
        return 4 * self.parameters * self.passing if self.filed else 0


@dataclass(frozen=True)
class RoundBytes:
    """Bytes of each kind that all processes of a round handle together.

    Attributes:
        keystream: expanded and added: by who masks, and by the coordinator that takes the masks off.
        sent: through TLS connections, each byte sealed at one end and opened at the other.
        hashed: by the content hash.
        written: to files that are flushed to disk.
        read: from files.
    """

    keystream: int = 0
    sent: int = 0
    hashed: int = 0
    written: int = 0
    read: int = 0

    def __add__(self, other: RoundBytes) -> RoundBytes:
        return RoundBytes(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def keystream_bytes(load: ComponentLoad) -> int:
    """Each survivor expands one keystream a neighbour and its own; the coordinator every survivor's own, and those
    between every survivor and each neighbour of it that is gone."""
    if not load.masked or load.ciphertext:
        return 0
    neighbours = load.owners - 1 if load.neighbours is None else load.neighbours
    masking = load.alive * (neighbours + 1)
    crossing = load.gone * neighbours * load.alive / max(1, load.owners - 1)  # of a random graph: the mean
    return round((masking + load.alive + crossing) * load.vector)


def component_bytes(load: ComponentLoad, transport: Literal["grpc", "memory"] = "grpc") -> RoundBytes:
    """The bytes of one component's part of sum A; all else in a round is kilobytes.

    Up go the survivors' vectors, down to every owner the opened sum. Hashed: every vector at both ends, and w(t+1) with
    the optimiser's state by every owner and the coordinator. The coordinator writes the spool, the opened sum and the
    model, and reads the spool, the opened sum (to advance the model, then once for every owner) and the old model. A
    model that rests in files is read and written once by every owner; state that passes by goes down and is hashed on
    its way, instead. Ciphertexts go on to whoever decrypts.
    """
    up, down = load.alive * load.upload, load.owners * load.vector
    fetched = up if load.ciphertext else 0
    opened, passing = load.vector, load.owners * load.passing_bytes
    made = RoundBytes(
        keystream=keystream_bytes(load),
        hashed=2 * up + fetched + opened + down + (load.owners + 1) * load.model + passing,
    )
    if transport == "memory":
        return made
    filed = load.owners * load.model - passing if load.filed else 0
    written, read = up + opened + load.model + filed, up + opened + load.model + down + filed + passing
    return made + RoundBytes(sent=up + fetched + down + passing, written=written, read=read)


def round_bytes(loads: Iterable[ComponentLoad], transport: Literal["grpc", "memory"] = "grpc") -> RoundBytes:
    """The bytes of a whole round."""
    return sum((component_bytes(load, transport) for load in loads), RoundBytes())


def loads_of(
    plan: Plan, widths: Mapping[str, int], gone: Iterable[str] = (), resting: int | None = None
) -> list[ComponentLoad]:
    """What every summed component of a plan is to a round.

    Args:
        plan: of the run.
        widths: modality to the numbers that come out of its table.
        gone: institutions that vanish after the key phase.
        resting: how many of the optimiser's vectors the nodes keep in files; None: all.
    """
    vanished, slots = frozenset(gone), len(state_slots(plan.server_optimiser.kind))
    components = layout(plan, dict(widths)).components
    drawn = mask_graph(plan)
    return [
        ComponentLoad(
            parameters=c.size,
            owners=len(c.owners),
            gone=len(vanished & set(c.owners)),
            word_bytes=2 if plan.secure_sum.half_words else 4,
            slots=slots,
            masked=plan.secure_sum.backend != "none",
            ciphertext=_ciphertext(c) if UPDATES in plan.secure_sum.ckks else 0,
            sent=Thinning(c.size, plan.component(c.name).fraction).words,
            filed=4 * c.size * (1 + slots) > MEMORY_BYTES,
            neighbours=drawn.neighbours if drawn is not None and len(c.owners) > drawn.complete_up_to else None,
            passing=0 if resting is None else max(0, slots - resting),
        )
        for c in components.values()
        if c.shared
    ]


def _ciphertext(component: Component) -> int:
    return ciphertext_bytes(Part(component.name, 32, component.size + 1, frozenset(component.owners)))


def owned_parameters(loads: Iterable[ComponentLoad]) -> int:
    """Parameters of all owners together: what bytes are told per."""
    return sum(load.owners * load.parameters for load in loads)


@dataclass(frozen=True)
class Rates:
    """Bytes a second, measured on both cores at once.

    Attributes:
        keystream: AES-256-CTR expanded and added to words, as `security.secure_sum.masks.Masker` does.
        tls: through a TLS 1.3 connection on loopback, both ends on this machine.
        hash: content hash of a buffer.
        write: sequential writes, flushed to disk at the end.
        read: sequential reads of what was just written.
    """

    keystream: float
    tls: float
    hash: float
    write: float
    read: float


def median_rates(readings: Sequence[Rates]) -> Rates:
    """The median of each rate."""
    return Rates(**{name: statistics.median(getattr(r, name) for r in readings) for name in Rates.__dataclass_fields__})


def floors(work: RoundBytes, rates: Rates) -> dict[Kind, float]:
    """Seconds of each floor."""
    return {
        "keystream": work.keystream / rates.keystream,
        "tls": work.sent / rates.tls,
        "hash": work.hashed / rates.hash,
        "disk": work.written / rates.write + work.read / rates.read,
    }


def largest_floor(work: RoundBytes, rates: Rates) -> tuple[Kind, float]:
    """The floor that binds, and its seconds."""
    found = floors(work, rates)
    kind: Kind = max(found, key=lambda k: found[k])
    return kind, found[kind]


def ratio_to_floor(wall_seconds: float, work: RoundBytes, rates: Rates) -> float:
    """How many times the largest floor a round took.

    Raises:
        ValueError: there is no work, so no floor.
    """
    _, floor = largest_floor(work, rates)
    if floor <= 0:
        raise ValueError("a round without bytes has no floor")
    return wall_seconds / floor


def processor_floor(work: RoundBytes, rates: Rates, cores: int) -> float:
    """Processor seconds that the work of every kind takes together, at rates measured in processor time.

    Args:
        work: of a round.
        rates: of so many cores.
        cores: that they were measured on.
    """
    return cores * sum(floors(work, rates).values())
