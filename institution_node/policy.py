"""`policy.toml`: what this institution permits. It decides alone, and it can only tighten what a plan says."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import Field, field_validator, model_validator

from federation.plan import Plan
from federation.settings_files import Table
from institution_node.encoder_kinds import PIN, InstalledKind, kinds_of
from institution_node.subgroups import counts_by
from institution_node.toml_files import load_toml
from security.errors import ConsiliumError
from security.privacy.randomness import Randomness

PRIVATE_K_MIN: Final = 3
"""Fewest survivors of a sum, unless the data is public: of two, each would see the other's value."""
PRIVATE_SUBGROUP: Final = 5
"""Fewest own patients of a subgroup that are counted by themselves, unless the data is public."""

Rule = Literal[
    "federation",
    "roster",
    "key",
    "modalities",
    "encoders",
    "accepted_plans",
    "allow_encoders",
    "backend",
    "allow_ckks",
    "k_min",
    "allow_subgroups",
    "subgroup_min_patients",
    "differential_privacy",
    "epsilon_max",
    "delta_max",
    "allow_seeded_randomness",
]


class PolicyRefusal(ConsiliumError):  # noqa: N818 - a refusal is what it is called everywhere
    """This institution takes no part, and says by which `rule`; only the rule's name may travel."""

    code = "policy-refusal"

    def __init__(self, rule: Rule, message: str, *, remedy: str) -> None:
        super().__init__(message, remedy=remedy, place=f"policy rule {rule}")
        self.rule: Rule = rule


@dataclass(frozen=True)
class NodeIdentity:
    """Who this node is, from its own certificate and configuration.

    Attributes:
        federation: name of the federation.
        institution: name of the institution.
        key: public identity key, the `p256:…` text.
        modalities: those that the node has tables of.
        encoders: kinds of encoders that packages on this machine offer.
    """

    federation: str
    institution: str
    key: str
    modalities: Collection[str]
    encoders: Collection[InstalledKind] = ()


class Policy(Table):
    """The institution's own rules.

    Attributes:
        accepted_plans: digests (64 hex digits) of the plans that may run here; nothing else runs.
        k_min: fewest survivors of a sum; never below 3 unless the data is public.
        epsilon_max: most privacy loss of one plan; where it is given, a plan without differential privacy is refused.
        delta_max: largest δ that ε may be stated at, where `epsilon_max` is given: at a δ of 0.1 one patient in ten may
            be shown outright, and every ε is small.
        data_is_public: the tables hold nothing that needs protection: tests, studies, the bench.
        similar_cohorts: `withhold` does so even where the plan only logs.
        allow_ckks: plans may encrypt sums (CKKS); these fall to one institution that colludes with the coordinator, and
            each of the two institutions that decrypt could read every vector by itself.
        allow_encoders: packages whose encoders plans may name, `"my-encoders==1.2.0"`, or with a hash of their files,
            `"my-encoders==1.2.0@sha256:…"` (`consilium-node encoders` prints both).
        allow_subgroups: plans may count this institution's validation patients by the subgroups that they name.
        subgroup_min_patients: fewest of its own patients that a plan may count as a subgroup; never below 5 unless the
            data is public. Without meaning under differential privacy, which bounds what single patients move.
        allow_seeded_randomness: batches, noise and keys may come from a seed; only where the data is public.
    """

    accepted_plans: tuple[str, ...] = ()
    k_min: Annotated[int, Field(ge=1, le=100)] | None = None
    epsilon_max: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    delta_max: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = 1e-5
    data_is_public: bool = False
    similar_cohorts: Literal["log", "withhold"] = "log"
    allow_ckks: bool = False
    allow_encoders: tuple[str, ...] = ()
    allow_subgroups: bool = False
    subgroup_min_patients: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    allow_seeded_randomness: bool = False

    @field_validator("accepted_plans")
    @classmethod
    def _digests(cls, digests: tuple[str, ...]) -> tuple[str, ...]:
        for digest in digests:
            if not re.fullmatch(r"[0-9a-f]{64}", digest):
                raise ValueError(
                    f"{digest[:16]!r}… is not the digest of a plan; write the 64 hex digits that "
                    "`consilium plan check` prints"
                )
        return digests

    @field_validator("allow_encoders")
    @classmethod
    def _pins(cls, pins: tuple[str, ...]) -> tuple[str, ...]:
        for pin in pins:
            if not PIN.fullmatch(pin):
                raise ValueError(
                    f"{pin[:40]!r} names no version of a package; write what `consilium-node encoders` prints, "
                    '"my-encoders==1.2.0"'
                )
        return pins

    @model_validator(mode="after")
    def _only_public_data_may_loosen(self) -> Self:
        if not self.data_is_public:
            if self.allow_seeded_randomness:
                raise ValueError(
                    "allow_seeded_randomness needs data_is_public = true, because who knows the seed can "
                    "subtract the noise; take it out"
                )
            if self.k_min is not None and self.k_min < PRIVATE_K_MIN:
                raise ValueError(
                    f"k_min below {PRIVATE_K_MIN} needs data_is_public = true; write {PRIVATE_K_MIN} or more"
                )
            if self.subgroup_min_patients is not None and self.subgroup_min_patients < PRIVATE_SUBGROUP:
                raise ValueError(
                    f"subgroup_min_patients below {PRIVATE_SUBGROUP} needs data_is_public = true; write "
                    f"{PRIVATE_SUBGROUP} or more"
                )
        return self

    @property
    def smallest_sum(self) -> int:
        """Fewest survivors of a sum that this institution helps to open."""
        return self.k_min or (1 if self.data_is_public else PRIVATE_K_MIN)

    @property
    def smallest_subgroup(self) -> int:
        """Fewest own patients of a subgroup that are counted by themselves here."""
        return self.subgroup_min_patients or (1 if self.data_is_public else PRIVATE_SUBGROUP)

    def similar_cohorts_of(self, plan: Plan) -> Literal["log", "withhold"]:
        """The stricter of what plan and policy say about similar cohorts."""
        return "withhold" if "withhold" in (self.similar_cohorts, plan.secure_sum.similar_cohorts) else "log"

    def check(self, plan: Plan, plan_digest: bytes, own: NodeIdentity) -> None:
        """Returns if this institution takes part in the plan.

        Args:
            plan: a plan that has passed `federation.plan_check`.
            plan_digest: SHA-256 of the exact bytes received, `federation.plan.digest`.
            own: this node.

        Raises:
            PolicyRefusal: the first rule that the plan breaks.
        """
        for refusal in self.refusals(plan, plan_digest, own):
            raise refusal

    def check_randomness(self, rng: Randomness) -> None:
        """Returns if keys, batches and noise may come from `rng`.

        Raises:
            PolicyRefusal: it is seeded, and the policy does not allow that.
        """
        if rng.seeded and not self.allow_seeded_randomness:
            raise PolicyRefusal(
                "allow_seeded_randomness",
                "randomness from a seed protects nobody.",
                remedy="Take [testing] seed out of node.toml; only policies of public data may allow it.",
            )

    def refusals(self, plan: Plan, plan_digest: bytes, own: NodeIdentity) -> tuple[PolicyRefusal, ...]:
        """Every rule that the plan breaks, in order: what `consilium-node check` lists."""
        permitted = self._not_permitted(plan, plan_digest.hex(), own.institution)
        return (*self._not_ours(plan, own), *permitted, *self._not_allowed(plan, own))

    def _not_allowed(self, plan: Plan, own: NodeIdentity) -> Iterator[PolicyRefusal]:
        for kind in kinds_of(plan, own.institution) if own.institution in plan.roster else ():
            offered = [installed for installed in own.encoders if installed.kind == kind]
            if offered and not any(installed.allowed_by(self.allow_encoders) for installed in offered):
                pins = " or ".join(f'"{installed.pin}"' for installed in offered)
                yield PolicyRefusal(
                    "allow_encoders",
                    f"the plan's encoder {kind!r} would run code that has not been allowed here.",
                    remedy=f"Review the package, then add {pins} to allow_encoders in policy.toml.",
                )

    def _not_ours(self, plan: Plan, own: NodeIdentity) -> list[PolicyRefusal]:
        broken: list[PolicyRefusal] = []

        def refuse(rule: Rule, message: str, remedy: str) -> None:
            broken.append(PolicyRefusal(rule, message, remedy=remedy))

        if plan.federation != own.federation:
            refuse(
                "federation",
                f"the plan is for federation {plan.federation!r}, this node belongs to {own.federation!r}.",
                "Ask the operator for a plan of this federation.",
            )
        entry = next((each for each in plan.institutions if each.name == own.institution), None)
        if entry is None:
            refuse(
                "roster",
                f"{own.institution!r} is not in the plan's roster.",
                "Ask the operator to add this institution; a new roster is a new run.",
            )
            return broken
        if entry.key != own.key:
            refuse(
                "key",
                f"the plan has another identity key for {own.institution!r}.",
                "Send the operator what `consilium pki show` prints of this node's certificate.",
            )
        absent = [modality for modality in entry.modalities if modality not in own.modalities]
        if absent:
            refuse(
                "modalities",
                f"the plan expects {', '.join(absent)} of {own.institution!r}, and there is no such table here.",
                "Name the table in [data.tables] of node.toml, or ask the operator to correct the roster.",
            )
        there = {installed.kind for installed in own.encoders}
        for kind, modalities in kinds_of(plan, own.institution).items():
            if kind not in there:
                refuse(
                    "encoders",
                    f"the plan encodes {', '.join(modalities)} by {kind!r}, which no package on this machine offers.",
                    "Install the package that the plan's author names, review it, allow it in policy.toml, and start "
                    "the node again.",
                )
        return broken

    def _not_permitted(self, plan: Plan, digest: str, institution: str) -> list[PolicyRefusal]:
        broken: list[PolicyRefusal] = []

        def refuse(rule: Rule, message: str, remedy: str) -> None:
            broken.append(PolicyRefusal(rule, message, remedy=remedy))

        if digest not in self.accepted_plans:
            refuse(
                "accepted_plans",
                f"plan {digest} has not been accepted here.",
                f'Review it with `consilium plan check`, then add "{digest}" to accepted_plans in policy.toml.',
            )
        if plan.secure_sum.backend != "masks" and not self.data_is_public:
            refuse(
                "backend",
                f"the plan's backend {plan.secure_sum.backend!r} shows every vector to the coordinator.",
                'Ask for a plan with backend = "masks".',
            )
        if plan.secure_sum.ckks and not self.allow_ckks:
            refuse(
                "allow_ckks",
                f"the plan encrypts {', '.join(plan.secure_sum.ckks)}: one institution that colludes with the "
                "coordinator opens every vector.",
                "Ask for a plan without `ckks`; or, if you trust every institution, write allow_ckks = true.",
            )
        if plan.secure_sum.k_min < self.smallest_sum:
            refuse(
                "k_min",
                f"the plan opens sums of {plan.secure_sum.k_min}, fewer than the {self.smallest_sum} demanded here.",
                f"Ask for a plan with k_min of at least {self.smallest_sum}.",
            )
        attributes = [each.name for each in counts_by(plan, institution)]
        if attributes and not self.allow_subgroups:
            refuse(
                "allow_subgroups",
                f"the plan counts this institution's validation patients by {', '.join(attributes)}.",
                "Ask for a plan that leaves this institution out of them; or, if it may, write allow_subgroups = true.",
            )
        floor = plan.evaluation.subgroups.min_patients
        if attributes and not plan.differential_privacy.enabled and floor < self.smallest_subgroup:
            refuse(
                "subgroup_min_patients",
                f"the plan counts subgroups of {floor} patients, fewer than the {self.smallest_subgroup} wanted here.",
                f"Ask for a plan with evaluation.subgroups.min_patients of at least {self.smallest_subgroup}.",
            )
        if self.epsilon_max is not None:
            privacy = plan.differential_privacy
            if not privacy.enabled:
                refuse(
                    "differential_privacy",
                    "the plan has no differential privacy, and this institution demands it.",
                    f"Ask for a plan with differential privacy and epsilon of at most {self.epsilon_max:g}.",
                )
            elif privacy.epsilon > self.epsilon_max:
                refuse(
                    "epsilon_max",
                    f"the plan may spend ε = {privacy.epsilon:g}, more than the {self.epsilon_max:g} allowed here.",
                    f"Ask for a plan with epsilon of at most {self.epsilon_max:g}.",
                )
            if privacy.enabled and privacy.delta > self.delta_max:
                refuse(
                    "delta_max",
                    f"the plan states its ε at δ = {privacy.delta:g}, more than the {self.delta_max:g} allowed here.",
                    f"Ask for a plan with delta of at most {self.delta_max:g}, well below one over the patients.",
                )
        return broken


def load_policy(path: Path) -> Policy:
    """Reads `policy.toml`.

    Raises:
        NodeFileError: every problem with file, line and remedy.
    """
    return load_toml(path, Policy)
