"""Rows of bench/results.json: what a case is, what was measured of it, and the ratios that follow. No I/O."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table

from deploy.bench_floors import Kind, Rates, RoundBytes, largest_floor, median_rates

Backend = Literal["masks", "ckks", "none"]
Transport = Literal["grpc", "memory"]
WordBits = Literal[16, 32]
MIB = 2**20


@dataclass(frozen=True)
class Case:
    """What one row measures.

    Attributes:
        institutions: of the roster; all own the bench's one component, six the paper's large one.
        parameters: wanted; the plan's encoder comes close.
        backend: how sums are protected.
        dropouts: institutions that vanish from every round after the key phase.
        transport: `grpc`: real processes over mTLS; `memory`: one process, the same machines in turn.
        word_bits: 32, or 16 for half words.
        fraction: of the encoder's parameters that is sent in a round, above 0, at most 1.
    """

    institutions: int
    parameters: int
    backend: Backend = "masks"
    dropouts: int = 0
    transport: Transport = "grpc"
    word_bits: WordBits = 32
    fraction: float = 1.0

    @property
    def comparable(self) -> Case:
        """The case that this one is told as a ratio to: all that is sent, in whole words and bare."""
        return replace(self, backend="none", dropouts=0, word_bits=32, fraction=1.0)


@dataclass(frozen=True)
class Measured:
    """What was read of one case.

    Attributes:
        work: bytes of each kind in a round.
        owned: parameters that institutions own, all together: each parameter once an owner.
        seconds: of each counted round.
        cpu_coordinator, cpu_institution: processor seconds a round, of the coordinator and of one institution (mean).
        coordinator_peak: bytes of `RssAnon`; None where it has no process of its own.
        node_peak: bytes of `RssAnon` above the idle process, of the institution that took most; None as above.
        all_peaks: the sum of all processes' peaks, bytes of `RssAnon`; None as above.
        disk_peak: bytes that all files of the federation take; None as above.
        up, down: payload bytes a round, of all institutions.
        rates: of the machine, read beside the rounds.
    """

    work: RoundBytes
    owned: int
    seconds: tuple[float, ...]
    cpu_coordinator: float
    cpu_institution: float
    coordinator_peak: float | None
    node_peak: float | None
    all_peaks: float | None
    disk_peak: float | None
    up: float
    down: float
    rates: Rates

    def __add__(self, other: Measured) -> Measured:
        """Both passes of one case: all rounds, the larger peaks, the mean of the rest by rounds."""
        a, b = len(self.seconds), len(other.seconds)

        def mean(x: float, y: float) -> float:
            return (a * x + b * y) / (a + b)

        return Measured(
            self.work,
            self.owned,
            (*self.seconds, *other.seconds),
            mean(self.cpu_coordinator, other.cpu_coordinator),
            mean(self.cpu_institution, other.cpu_institution),
            _larger(self.coordinator_peak, other.coordinator_peak),
            _larger(self.node_peak, other.node_peak),
            _larger(self.all_peaks, other.all_peaks),
            _larger(self.disk_peak, other.disk_peak),
            mean(self.up, other.up),
            mean(self.down, other.down),
            Rates(**{k: mean(v, getattr(other.rates, k)) for k, v in vars(self.rates).items()}),
        )


def _larger(a: float | None, b: float | None) -> float | None:
    return max((x for x in (a, b) if x is not None), default=None)


@dataclass(frozen=True)
class Row:
    """One row of bench/results.json.

    Attributes:
        institutions, parameters, backend, dropouts, transport, word_bits, fraction: the case.
        rounds: counted.
        wall_seconds: median of these rounds, from the first key to the commit.
        ratio_to_none: to the same case without masks and dropouts, everything sent in words of 32 bits.
        ratio_to_floor: to `floor_seconds`.
        floor, floor_seconds: the largest floor and what it takes.
        cpu_seconds: processor time of all processes together, a round.
        cpu_seconds_coordinator, cpu_seconds_institution: of the coordinator, and of one institution.
        coordinator_peak_mib: peak of `RssAnon`; None where the coordinator has no process of its own.
        node_peak_mib: peak of `RssAnon` of any institution, above its idle process; None as above.
        all_peaks_mib: the peaks of all processes added; None as above.
        disk_peak_mib: what all files of the federation take; None as above.
        bytes_up_per_parameter, bytes_down_per_parameter: of an institution that owns the parameter, a round.
    """

    institutions: int
    parameters: int
    backend: Backend
    dropouts: int
    transport: Transport
    word_bits: WordBits
    fraction: float
    rounds: int
    wall_seconds: float
    ratio_to_none: float | None
    ratio_to_floor: float
    floor: Kind
    floor_seconds: float
    cpu_seconds: float
    cpu_seconds_coordinator: float
    cpu_seconds_institution: float
    coordinator_peak_mib: float | None
    node_peak_mib: float | None
    all_peaks_mib: float | None
    disk_peak_mib: float | None
    bytes_up_per_parameter: float
    bytes_down_per_parameter: float


def row(case: Case, m: Measured, base: Measured | None) -> Row:
    """The row of one case.

    Args:
        case: what was measured.
        m: the readings.
        base: of `case.comparable`; None: not measured.
    """
    wall = statistics.median(m.seconds)
    kind, floor = largest_floor(m.work, m.rates)
    cpu = m.cpu_coordinator + case.institutions * m.cpu_institution
    return Row(
        institutions=case.institutions,
        parameters=case.parameters,
        backend=case.backend,
        dropouts=case.dropouts,
        transport=case.transport,
        word_bits=case.word_bits,
        fraction=case.fraction,
        rounds=len(m.seconds),
        wall_seconds=round(wall, 3),
        ratio_to_none=None if base is None else round(wall / statistics.median(base.seconds), 2),
        ratio_to_floor=round(wall / floor, 2),
        floor=kind,
        floor_seconds=round(floor, 4),
        cpu_seconds=round(cpu, 3),
        cpu_seconds_coordinator=round(m.cpu_coordinator, 3),
        cpu_seconds_institution=round(m.cpu_institution, 4),
        coordinator_peak_mib=_mib(m.coordinator_peak),
        node_peak_mib=_mib(m.node_peak),
        all_peaks_mib=_mib(m.all_peaks),
        disk_peak_mib=_mib(m.disk_peak),
        bytes_up_per_parameter=round(m.up / m.owned, 3),
        bytes_down_per_parameter=round(m.down / m.owned, 3),
    )


def _mib(size: float | None) -> float | None:
    return None if size is None else round(size / MIB, 1)


def merge(kept: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """The new rows in the place of kept ones of the same case, all in the order of a table."""
    by_case = {_case_of(r): r for r in (*kept, *new)}
    order = {"none": 0, "masks": 1}
    return sorted(
        by_case.values(),
        key=lambda r: (
            *(r.transport, r.institutions, r.parameters, order.get(r.backend, 2)),
            *(-r.word_bits, -r.fraction, r.dropouts),
        ),
    )


def _case_of(r: Row) -> Case:
    return Case(r.institutions, r.parameters, r.backend, r.dropouts, r.transport, r.word_bits, r.fraction)


def sent(r: Row) -> str:
    """What an institution sends of a component, in words: `32 bit`, `16 bit`, `10%, 32 bit`."""
    part = "" if r.fraction >= 1 else f"{r.fraction:.0%}, "
    return f"{part}{r.word_bits} bit"


def at_one_rate(measured: Sequence[tuple[Case, Measured]]) -> list[tuple[Case, Measured]]:
    """The same, with the median of all rates that were read in the run in the place of each case's own: a disk that
    others write to, too, is three times as fast in one minute as in the next."""
    if not measured:
        return []
    rates = median_rates([m.rates for _, m in measured])
    return [(case, replace(m, rates=rates)) for case, m in measured]


def rows_of(measured: Sequence[tuple[Case, Measured]]) -> list[Row]:
    """All rows, in the order in which their cases were first measured; several passes of a case become one row."""
    found: dict[Case, Measured] = {}
    for case, m in measured:
        found[case] = found[case] + m if case in found else m
    return [row(case, m, found.get(case.comparable)) for case, m in found.items()]


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def table(rows: Sequence[Row]) -> Table:
    """The rows for people."""
    t = Table(
        title="Secure rounds without training, keys to committed sums",
        caption="N institutions, of which `gone` vanish after the key phase; n rounds, the median.\n"
        "÷floor: wall over the largest of keystream, TLS, hash and disk at their rates on both cores.\n"
        "CPU: seconds a round of all processes, of the coordinator, of one institution.\n"
        "MiB: peak RssAnon, of a node above its idle process. up: bytes a parameter and institution.",
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    left = ("backend", "over", "sent", "floor")
    headings = ("N", "size", "backend", "over", "sent", "gone", "n", "wall s", "÷none", "÷floor", "floor")
    for heading in (*headings, "CPU s", "coord.", "inst.", "coord.\nMiB", "node\nMiB", "up"):
        t.add_column(heading, justify="left" if heading in left else "right", no_wrap=True)
    last: tuple[str, int] | None = None
    for r in rows:
        if last not in (None, (r.transport, r.institutions)):
            t.add_section()
        last = (r.transport, r.institutions)
        t.add_row(
            str(r.institutions),
            f"{r.parameters / 1e6:.4g}M" if r.parameters >= 100_000 else str(r.parameters),
            r.backend,
            r.transport,
            sent(r),
            str(r.dropouts),
            str(r.rounds),
            f"{r.wall_seconds:.2f}",
            _number(r.ratio_to_none, ".2f"),
            f"{r.ratio_to_floor:.1f}",
            r.floor,
            f"{r.cpu_seconds:.2f}",
            f"{r.cpu_seconds_coordinator:.2f}",
            f"{r.cpu_seconds_institution:.3f}",
            _number(r.coordinator_peak_mib, ".0f"),
            _number(r.node_peak_mib, ".0f"),
            f"{r.bytes_up_per_parameter:.2f}",
        )
    return t
