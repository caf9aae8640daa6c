"""The plan: a run, described as data (DESIGN.md, "Actors and trust"); fields as in `consilium/v1/plan.proto`.

Constructing a model here checks types, words and what the wire can hold. Ranges and whatever ties two fields
together are `federation.plan_check.check`'s, which must have passed before anything runs by a plan.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cached_property, lru_cache
from typing import Annotated, Final, Literal, Self

from consilium.v1 import plan_pb2
from google.protobuf.message import DecodeError
from pydantic import ValidationError

from federation import names
from federation.evaluation_tables import Evaluation, Subgroup, Subgroups
from federation.plan_encoders import EncoderOption, EncoderTensor
from federation.plan_fields import U32, U64, PlanTable, Range, about
from federation.plan_problems import SAME_RELEASE, PlanError, Problem, problems_of
from federation.plan_tables import (
    Blending,
    Column,
    ComponentRule,
    Deadlines,
    DifferentialPrivacy,
    FeatureFloors,
    Institution,
    Label,
    LabelClass,
    Modality,
    Model,
    Proximity,
    SecureSumSettings,
    ServerOptimiser,
    Training,
)
from federation.plan_wire import fill, plain

__all__ = [
    "Plan",
    "PlanError",
    "Label",
    "LabelClass",
    "Modality",
    "Column",
    "ComponentRule",
    "EncoderOption",
    "EncoderTensor",
    "Institution",
    "Model",
    "SecureSumSettings",
    "Training",
    "ServerOptimiser",
    "Blending",
    "Proximity",
    "Evaluation",
    "Subgroup",
    "Subgroups",
    "FeatureFloors",
    "DifferentialPrivacy",
    "Deadlines",
    "FORMAT",
    "MAX_BYTES",
    "digest",
]

FORMAT: Final = 1
MAX_BYTES: Final = 32 << 20  # 20,531 genes take 1 MiB, 450,000 methylation sites 17; longer: an attack or a mistake


class Plan(PlanTable):
    """A run, described as data; its digest names the run."""

    format: Annotated[Literal[1], about("Format of the plan.")] = FORMAT
    federation: Annotated[str, about("Name of the federation, as in its certificates.")]
    run: Annotated[str, about("Name of the run for people; a second run of the same study takes another.")]
    seed: Annotated[U64, about("Drives the initialisation of the model and nothing else.")] = 1
    rounds: Annotated[U32, Range(1, 1000000, "rounds"), about("Number of training rounds.")] = 100
    data: Annotated[Literal["real", "synthetic"], about("What the data is, shown on every screen.")]
    initial_model: Annotated[
        str, about("Digest (64 hex digits) of the model manifest to start from; empty: from the seed.")
    ] = ""
    preset: Annotated[
        Literal["default", "paper", "paper-code", "custom"],
        about(
            "What fields left out of blending, proximity, training and model.heads were filled from; "
            "`custom` once a field that the preset fixes was written differently."
        ),
    ] = "default"
    label: Annotated[Label, about("What is predicted.")]
    modalities: Annotated[tuple[Modality, ...], about("The order is the modality order of every combination name.")]
    institutions: Annotated[tuple[Institution, ...], about("The roster: one entry per legal institution.")]
    model: Annotated[Model, about("Shape of the model.")] = Model()
    secure_sum: Annotated[SecureSumSettings, about("How sums are kept shut.")]
    training: Annotated[Training, about("Local training.")] = Training()
    server_optimiser: Annotated[ServerOptimiser, about("Server optimiser.")] = ServerOptimiser()
    blending: Annotated[Blending, about("DGB.")] = Blending()
    proximity: Annotated[Proximity, about("PCW.")] = Proximity()
    evaluation: Annotated[Evaluation, about("Evaluation.")] = Evaluation()
    features: Annotated[FeatureFloors, about("Floors of the feature schema.")] = FeatureFloors()
    differential_privacy: Annotated[DifferentialPrivacy, about("Differential privacy.")] = DifferentialPrivacy()
    deadlines: Annotated[Deadlines, about("Deadlines.")] = Deadlines()
    components: Annotated[tuple[ComponentRule, ...], about("Components that are not summed whole in every round.")] = ()

    @cached_property
    def modality_order(self) -> tuple[str, ...]:
        """Names of the modalities, in the order of every combination name."""
        return tuple(modality.name for modality in self.modalities)

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the model's outputs."""
        return tuple(each.name for each in self.label.classes)

    @cached_property
    def roster(self) -> tuple[str, ...]:
        """Names of the institutions, in plan order."""
        return tuple(institution.name for institution in self.institutions)

    def component(self, name: str) -> ComponentRule:
        """What is sent of a component."""
        return next((rule for rule in self.components if rule.name == name), ComponentRule(name=name))

    def institution(self, name: str) -> Institution:
        """The roster's entry of that name.

        Raises:
            PlanError: the roster has no such institution.
        """
        for institution in self.institutions:
            if institution.name == name:
                return institution
        raise PlanError.one(
            f"institution {name!r} is not in the roster of run {self.run!r}.",
            "Use the name in the institution's certificate, or a plan whose roster has it.",
            path=("institutions",),
        )

    def combination(self, name: str) -> str:
        """All modalities of an institution of the roster, `mrna+image`; raises as `institution` does."""
        return names.combination(self.institution(name).modalities, self.modality_order)

    def combinations(self, name: str) -> tuple[str, ...]:
        """The combinations that an institution's patients come in, smallest first; raises as `institution` does."""
        return self._combinations(self.institution(name))

    # Not cached, nor made of what is: `model_copy` would take it along to a plan with another roster.
    @property
    def by_institution(self) -> dict[str, tuple[str, ...]]:
        """`combinations` of everybody, in plan order."""
        return {each.name: self._combinations(each) for each in self.institutions}

    @property
    def occurring(self) -> tuple[str, ...]:
        """Every combination of any institution, smallest first."""
        return self._in_order(c for held in self.by_institution.values() for c in held)

    def _combinations(self, institution: Institution) -> tuple[str, ...]:
        if not institution.combinations:
            return (names.combination(institution.modalities, [each.name for each in self.modalities]),)
        return self._in_order(institution.combinations)

    def _in_order(self, combinations: Iterable[str]) -> tuple[str, ...]:
        place = {modality.name: k for k, modality in enumerate(self.modalities)}

        def order(combination: str) -> tuple[int, list[int]]:
            return combination.count("+"), [place[m] for m in names.modalities_of(combination)]

        return tuple(sorted(set(combinations), key=order))

    def to_bytes(self) -> bytes:
        """The plan as it is sent: the protobuf message in its one encoding."""
        message = plan_pb2.Plan()
        fill(message, self)
        return message.SerializeToString(deterministic=True)

    @classmethod
    @lru_cache(maxsize=2)  # 20,000 columns take a quarter of a second and 25 MiB, and a node reads its plan thrice
    def from_bytes(cls, data: bytes) -> Self:
        """Reads what `to_bytes` wrote, and nothing else: one plan has one encoding and so one digest.

        Raises:
            PlanError: not a plan, another format, unknown or missing fields, wrong words, or not this
                one encoding.
        """
        if len(data) > MAX_BYTES:
            raise PlanError.one(f"the plan has {len(data)} bytes, more than {MAX_BYTES}.", "Use fewer columns.")
        message = plan_pb2.Plan()
        try:
            message.ParseFromString(data)
        except DecodeError:
            raise PlanError.one("these bytes are not a plan.", SAME_RELEASE) from None
        if message.format != FORMAT:
            raise PlanError.one(
                f"the plan has format {message.format}; this program reads {FORMAT}.",
                SAME_RELEASE,
                path=("format",),
            )
        problems: list[Problem] = []
        values = plain(message, (), problems)
        if problems:
            raise PlanError(problems)
        try:
            plan = cls.model_validate(values)
        except ValidationError as error:
            raise PlanError(problems_of(error, cls)) from None
        if plan.to_bytes() != data:
            raise PlanError.one("the plan is not in its one encoding.", SAME_RELEASE)
        return plan


def digest(data: bytes) -> bytes:
    """SHA-256 of the exact bytes of a plan: 32 bytes, the name of the run."""
    return hashlib.sha256(data).digest()
