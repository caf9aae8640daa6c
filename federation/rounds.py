"""Which sums a round has, over whom, and the digests that bind them: what both sides derive alike from a plan.

Round 0 settles what is summed once per run: the feature schema and the noised patients. Every round after it has two
sums: `updates` (METHOD.md's sum A) and `statistics` (sum B).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

from consilium.v1 import round_pb2 as pb
from google.protobuf.message import DecodeError

from federation import names, statistics, subgroups
from federation.feature_sums import FEATURE_SUMS, vector_length
from federation.layout import Component, Layout, layout
from federation.plan import Plan
from federation.settings import mask_graph, model_encoding
from federation.thinning import Thinning
from security.ckks.packing import encrypted
from security.errors import ProtocolError
from security.secure_sum.cohorts import institution_of, subtracts_below
from security.secure_sum.derive import digest_of
from security.secure_sum.messages import SurvivorList
from security.secure_sum.spec import Attempt, Context, Part, Sum
from security.signing import parse_public_key_text

WEIGHTS: Final = "weights"
UPDATES: Final = "updates"
STATISTICS: Final = "statistics"
SETUP_SUMS: Final = (*FEATURE_SUMS, WEIGHTS)
TRAINING_SUMS: Final = (UPDATES, STATISTICS)
FORMAT: Final = 1
OTHER: Final = "other"
"""The row of the metrics that merges every combination below the floor (rule 9)."""


class RoundError(ProtocolError):
    """The coordinator opens a round that does not follow from the plan and the rounds before."""

    code = "round"


def digest(data: bytes) -> bytes:
    """SHA-256."""
    return hashlib.sha256(data).digest()


def consumed(opened: Iterable[bytes]) -> bytes:
    """What the next sum of a round is computed from beyond the round's opening: the opened sums before it, in order."""
    return digest_of("consumed", opened)


@dataclass(frozen=True)
class Setup:
    """What round 0 settled.

    Attributes:
        schema: hex digest of the feature schema's bytes.
        patients: Σñ by cohort name (`Cohorts.name_of`).
        institutions: whose weight was summed; the others sit the run out.
        groups: attribute of the plan's subgroups to the institutions that count each of its groups by itself.
    """

    schema: str
    patients: Mapping[str, int]
    institutions: frozenset[str]
    groups: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def to_proto(self) -> pb.Setup:
        """As it travels in a RoundStart."""
        groups = {name: pb.Groups(holders=holders) for name, holders in self.groups.items()}
        return pb.Setup(
            schema=self.schema, patients=dict(self.patients), institutions=sorted(self.institutions), groups=groups
        )

    def to_json(self) -> dict[str, Any]:
        """As it rests, at the coordinator and at nodes."""
        return {
            "schema": self.schema,
            "patients": dict(self.patients),
            "institutions": sorted(self.institutions),
            "groups": {name: list(holders) for name, holders in self.groups.items()},
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Setup:
        """As it rested; KeyError, TypeError or AttributeError where it is none."""
        groups = {name: tuple(holders) for name, holders in data.get("groups", {}).items()}
        return Setup(data["schema"], data["patients"], frozenset(data["institutions"]), groups)

    @staticmethod
    def from_proto(message: pb.Setup) -> Setup:
        """As it came."""
        groups = {name: tuple(each.holders) for name, each in message.groups.items()}
        return Setup(message.schema, dict(message.patients), frozenset(message.institutions), groups)


@dataclass(frozen=True)
class ComponentDigests:
    """Where one component's weights and server-optimiser state are, by content digest (hex)."""

    weights: str
    slots: Mapping[str, str]

    def to_proto(self, component: str) -> pb.ComponentState:
        """As it travels."""
        return pb.ComponentState(component=component, weights=self.weights, slots=dict(self.slots))

    @staticmethod
    def all_from(states: Iterable[pb.ComponentState]) -> dict[str, ComponentDigests]:
        """As they came, by component."""
        return {s.component: ComponentDigests(s.weights, dict(s.slots)) for s in states}


@dataclass(frozen=True)
class Figures:
    """DGB's figures as they are published with a round.

    Attributes:
        scores: blending score `b_s` by subset, finite and at least 0; None where there is none yet.
        median_squared_overfitting: so that an institution's own score is on the federation's scale; None before.
        temperatures: calibration by subset, above 0, for an institution's own copy of the model.
    """

    scores: Mapping[str, float | None]
    median_squared_overfitting: float | None
    temperatures: Mapping[str, float] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        published = {
            "scores": dict(self.scores),
            "median_squared_overfitting": self.median_squared_overfitting,
            "temperatures": dict(self.temperatures),
        }
        return json.dumps(published, sort_keys=True, allow_nan=False).encode()

    @staticmethod
    def from_bytes(data: bytes) -> Figures:
        """As they came.

        Raises:
            RoundError: no such figures.
        """
        try:
            read = json.loads(data)
            figures = Figures(dict(read["scores"]), read["median_squared_overfitting"], dict(read["temperatures"]))
            if not all(math.isfinite(t) and t > 0 for t in figures.temperatures.values()):
                raise ValueError
            for value in (*figures.scores.values(), figures.median_squared_overfitting):
                if value is not None and not (math.isfinite(value) and value >= 0):
                    raise ValueError
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise RoundError("the blending figures of a round cannot be read.") from error
        return figures


def _several(pieces: frozenset[str]) -> frozenset[str]:
    """Without those that are whole institutions, as `Part.pieces` has them."""
    return frozenset(piece for piece in pieces if institution_of(piece) != piece)


class Cohorts:
    """The sums over institutions that a plan allows, before dropouts.

    Args:
        plan: a checked plan.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        # Owners do not depend on the widths of the inputs, which only the schema tells.
        self.ownership: Layout = layout(plan, {m.name: 1 for m in plan.modalities})

    @cached_property
    def shared(self) -> Mapping[str, Component]:
        """Components with enough owners to be summed."""
        return {name: c for name, c in self.ownership.components.items() if c.shared}

    @cached_property
    def counted(self) -> Mapping[str, frozenset[str]]:
        """Cohorts whose patients are summed, each once, to whose patients these are (`Layout.pieces`): those who train
        a shared component, at its owners, and those who have a subset, at its evaluators."""
        floor, made = self.plan.secure_sum.k_min, self.ownership
        wanted = [(name, made.pieces(name, c.owners)) for name, c in self.shared.items()]
        wanted += [
            (f"subset/{s}", made.pieces(names.classifier(s), e)) for s, e in made.subsets.items() if len(e) >= floor
        ]
        cohorts: dict[str, frozenset[str]] = {}
        for name, pieces in wanted:
            if pieces not in cohorts.values():
                cohorts[name] = pieces
        return cohorts

    @cached_property
    def patients(self) -> Mapping[str, frozenset[str]]:
        """The same cohorts to their institutions."""
        return {name: frozenset(map(institution_of, pieces)) for name, pieces in self.counted.items()}

    def name_of(self, component: str, members: Iterable[str]) -> str | None:
        """Name of the cohort of the patients who train a component at these institutions; None: they are not summed."""
        wanted = self.ownership.pieces(component, members)
        return next((name for name, pieces in self.counted.items() if pieces == wanted), None)

    @cached_property
    def metric_rows(self) -> Mapping[str, frozenset[str]]:
        """Rows of the federated metrics: combinations at or above the floor, and one merged row of all others."""
        floor = self.plan.secure_sum.k_min
        by_combination: dict[str, set[str]] = {}
        for institution, held in self.ownership.combinations.items():
            for combination in held:
                by_combination.setdefault(combination, set()).add(institution)
        rows = {c: frozenset(m) for c, m in by_combination.items() if len(m) >= floor}
        rest = frozenset().union(*(m for c, m in by_combination.items() if c not in rows))
        if len(rest) >= floor:
            rows[OTHER] = rest
        return rows

    @cached_property
    def subgroups(self) -> Mapping[str, frozenset[str]]:
        """Attributes that patients are counted by, to the institutions that do."""
        return subgroups.contributors(self.plan, self.metric_rows.values())

    def row_combinations(self, row: str, institution: str) -> tuple[str, ...]:
        """An institution's combinations whose patients are counted in a row; each patient is in one row at most."""
        held = self.ownership.combinations[institution]
        return (row,) if row != OTHER else tuple(c for c in held if c not in self.metric_rows)

    # -- attempts -----------------------------------------------------------------------------------------------

    def setup_sums(self) -> tuple[Sum, ...]:
        """The sums of round 0."""
        made = self.ownership
        holders = {
            m: made.components[e].owners for m in self.plan.modality_order if (e := names.encoder(m)) in made.components
        }
        features = [
            Sum(
                name,
                tuple(
                    # One quantity: an institution's patients are the same in each of its modalities' counts, or, where
                    # it has several combinations, some of them are.
                    Part(
                        f"features/{m}",
                        64,
                        vector_length(self.plan, name, m),
                        frozenset(owners),
                        f"features/{name}",
                        pieces=_several(made.pieces(names.encoder(m), owners)),
                    )
                    for m, owners in holders.items()
                ),
            )
            for name in FEATURE_SUMS
        ]
        weights = tuple(
            Part(name, 64, 1, self.patients[name], WEIGHTS, pieces=_several(pieces))
            for name, pieces in self.counted.items()
        )
        return (*features, Sum(WEIGHTS, (*weights, *self._holders())))

    def _holders(self) -> Iterator[Part]:
        """Who counts which subgroup: with the weights, so that the survivors are those of the run. Under differential
        privacy nobody is asked: that an institution has enough patients of a group is told by a single one of them."""
        if not self.plan.differential_privacy.enabled:
            for each in self.plan.evaluation.subgroups.by:
                groups = len(subgroups.groups_of(each))
                yield Part(f"{subgroups.PREFIX}{each.name}", 64, groups, self.subgroups[each.name])

    def training_sums(self, sizes: Mapping[str, int], setup: Setup, round_: int) -> tuple[Sum, ...]:
        """The sums of a training round.

        Args:
            sizes: parameters by component.
            setup: of the run.
            round_: its number, from 1.
        """
        floor, present = self.plan.secure_sum.k_min, setup.institutions
        due = {name: members for name, members in self.summed(setup).items() if self.plan.component(name).due(round_)}
        how = {name: model_encoding(self.plan, len(members)) for name, members in due.items()}
        sent = {name: Thinning(sizes[name], self.plan.component(name).fraction).words for name in due}
        updates = tuple(
            Part(name, how[name].bits, sent[name] + how[name].weight_words, members) for name, members in due.items()
        )
        classes, bins = len(self.plan.label.classes), self.plan.evaluation.bins
        quantity = self._losses_quantity
        parts = [
            Part(f"losses/{s}", 64, statistics.LOSSES_LENGTH, members, quantity, pieces=self._loss_pieces(s, members))
            for s, members in self.evaluators(setup).items()
            if self.moves(s, round_)
        ]
        metrics = statistics.metrics_length(classes, bins)
        # The validation patients are the same in every round, so their exact counts are summed over one cohort only.
        exact = not self.plan.differential_privacy.enabled
        parts += [
            Part(
                f"metrics/{row}",
                64,
                metrics,
                members & present,
                "metrics",
                together=exact,
                pieces=_several(self.row_pieces(row, members & present)),
            )
            for row, members in self.metric_rows.items()
            if len(members & present) >= floor
        ]
        parts += self._subgroup_parts(setup, round_)
        parts += [
            Part(f"clipped/{first}", 64, len(components), self.summed(setup)[first])
            for first, components in self.clip_groups(setup).items()
        ]
        return Sum(UPDATES, updates), Sum(STATISTICS, tuple(parts))

    def _subgroup_parts(self, setup: Setup, round_: int) -> Iterator[Part]:
        """Behind the metrics and of the same quantity: the groups of an attribute add up to the counts of everybody who
        counts by it, so that both are of the same patients, and exact counts are summed over one cohort only.

        Exact counts of several rounds subtract as those of one round do: what the others' would subtract from, once
        those who sit the run out are gone, is summed in no round, whoever drops out of it.
        """
        settings, exact = self.plan.evaluation.subgroups, not self.plan.differential_privacy.enabled
        floor = self.plan.secure_sum.k_min
        if not subgroups.due(self.plan, round_):
            return
        there = {row: members & setup.institutions for row, members in self.metric_rows.items()}
        beside = [self.row_pieces(row, members) for row, members in there.items() if len(members) >= floor]
        for each in settings.by:
            members = self.subgroups[each.name] & setup.institutions
            open_ = not exact or subgroups.tells(setup.groups.get(each.name, (0,)), settings.min_institutions)
            if open_ and len(members) >= floor:
                whose = self.row_pieces(None, members)
                if exact and subtracts_below(floor, [*beside, whose]) is not None:
                    continue
                beside.append(whose)
                words = subgroups.length(self.plan, each)
                name, pieces = f"{subgroups.PREFIX}{each.name}", _several(whose)
                yield Part(name, 64, words, members, "metrics", together=exact, pieces=pieces)

    @property
    def _losses_quantity(self) -> str:
        """All but `cosine` give an institution one p_i for all of its subsets: then Σp over several is one quantity.

        With several combinations the losses are in any case. A coordinator that chooses the model may choose one whose
        classifiers say the same of a patient by its mRNA, images or not, and a δ_G of zeros, so that all have p_i =
        floor: Σ over those with mRNA less Σ over those with both is then of those few who have patients without images.
        """
        several = any(len(held) > 1 for held in self.ownership.combinations.values())
        return "losses" if several or self.plan.proximity.kind != "cosine" else ""

    def _loss_pieces(self, subset: str, members: Iterable[str]) -> frozenset[str]:
        """Whose patients the losses of a subset are of, as `Part.pieces`; none with `inner`, which gives an institution
        one p_i for all of its subsets: Σp is of whole institutions, and tells more than the losses of its pieces."""
        if self.plan.proximity.kind == "inner":
            return frozenset()
        return _several(self.ownership.pieces(names.classifier(subset), members))

    def row_pieces(self, row: str | None, members: Iterable[str]) -> frozenset[str]:
        """Whose patients a row of the metrics counts, as `Layout.pieces`; None: whoever validates there, as subgroups
        do."""
        found: set[str] = set()
        for name in members:
            held = self.ownership.combinations[name]
            counted = held if row is None else self.row_combinations(row, name)
            found |= {f"{name}/{c}" for c in counted} if len(held) > 1 else {name}
        return frozenset(found)

    def moves(self, subset: str, round_: int) -> bool:
        """Whether a subset's model changes in a round. Where all of it is held fixed, its losses are those of the round
        before: summed again over a cohort with one institution less, they would tell that institution's (rule 9)."""
        parts = (*map(names.encoder, names.modalities_of(subset)), names.classifier(subset))
        return any(self.plan.component(name).due(round_) for name in parts if name in self.ownership.components)

    def clip_groups(self, setup: Setup) -> Mapping[str, tuple[str, ...]]:
        """Summed components with the same owners, under the name of the first: their clip counts travel as one part."""
        groups: dict[frozenset[str], list[str]] = {}
        for name, members in self.summed(setup).items():
            groups.setdefault(members, []).append(name)
        return {names_[0]: tuple(names_) for names_ in groups.values()}

    def summed(self, setup: Setup) -> Mapping[str, frozenset[str]]:
        """The components of this run's global model, to their owners that take part in it; frozen ones too."""
        return {
            name: frozenset(c.owners) & setup.institutions
            for name, c in self.shared.items()
            if len(frozenset(c.owners) & setup.institutions) >= self.plan.secure_sum.k_min
            and self.name_of(name, c.owners) in setup.patients
        }

    def evaluators(self, setup: Setup) -> Mapping[str, frozenset[str]]:
        """Subsets whose losses are summed in this run, to the institutions that send them."""
        floor = self.plan.secure_sum.k_min
        return {
            s: frozenset(e) & setup.institutions
            for s, e in self.ownership.subsets.items()
            if len(frozenset(e) & setup.institutions) >= floor
            and self.name_of(names.classifier(s), e) in setup.patients
        }

    def attempt(self, context: Context, sums: tuple[Sum, ...]) -> Attempt:
        """An attempt of this plan."""
        s = self.plan.secure_sum
        roster = {i.name: parse_public_key_text(i.key) for i in self.plan.institutions}
        sums = tuple(encrypted(each) if each.name in s.ckks else each for each in sums)
        return Attempt(
            context,
            roster,
            s.threshold,
            s.max_colluders,
            s.k_min,
            sums,
            masked=s.backend == "masks",
            sparse=mask_graph(self.plan),
        )


def read_round_start(data: bytes, run: bytes) -> pb.RoundStart:
    """Parses a RoundStart and checks that it belongs to the run.

    Raises:
        RoundError: it does not parse, or is of another run or format.
    """
    message = pb.RoundStart()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise RoundError("the opening of a round does not parse.") from error
    if message.format != FORMAT or message.run != run or (message.round > 0) != message.HasField("setup"):
        raise RoundError("the opening of a round is of another run or format.")
    return message


def opened_by(data: bytes) -> tuple[pb.OpenedSum, SurvivorList]:
    """Parses an OpenedSum and the survivor list in it.

    Raises:
        RoundError: it does not parse.
    """
    message = pb.OpenedSum()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise RoundError("an opened sum does not parse.") from error
    return message, SurvivorList.decode(message.list)
