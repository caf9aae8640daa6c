"""A small plan for everybody's tests: METHOD.md's nine institutions, a few columns each, and their keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import BaseModel

from federation.plan import Column, FeatureFloors, Institution, Label, LabelClass, Modality, Plan, SecureSumSettings
from security.signing import IdentityKey, compressed_point, public_key_text

COHORTS = ("brca", "lusc", "lihc")
_HOLDINGS = (  # METHOD.md, "The paper's set-ups"
    (("mrna", "image", "clinical"), ("mrna", "image"), ("mrna",)),
    (("mrna", "image", "clinical"), ("image", "clinical"), ("image",)),
    (("mrna", "image", "clinical"), ("mrna", "clinical"), ("clinical",)),
)


def example_private_key(index: int) -> ec.EllipticCurvePrivateKey:
    """The identity key of institution `index` (from 0): the same in every run, and known to everybody."""
    return ec.derive_private_key(index + 1, ec.SECP256R1())


def example_identity(index: int) -> IdentityKey:
    """`example_private_key` as the program holds it."""
    return IdentityKey(example_private_key(index))


def example_institutions(count: int) -> tuple[Institution, ...]:
    """`brca-1` … `lihc-3` as in METHOD.md; beyond nine, cohorts `c4`, `c5`, … with the same kinds in turn."""
    entries = []
    for index in range(count):
        cohort, place = divmod(index, 3)
        name = COHORTS[cohort] if cohort < len(COHORTS) else f"c{cohort + 1}"
        key = public_key_text(compressed_point(example_private_key(index).public_key()))
        held = _HOLDINGS[cohort % 3][place]
        entries.append(Institution(name=f"{name}-{place + 1}", key=key, modalities=held))
    return tuple(entries)


def example_plan(institutions: int = 9, **changes: Any) -> Plan:
    """A plan that passes the check, three rounds long.

    Args:
        institutions: size of the roster; METHOD.md's nine, the first few of them, or more of the same kinds.
        changes: top-level fields of the plan. A dict changes only those fields of a table:
            `example_plan(secure_sum={"k_min": 4}, rounds=5)`. Unless given, features.min_institutions is k_min.
    """
    image = tuple(Column(name=f"f{i}", low=-10.0, high=10.0) for i in range(3))
    genes = tuple(Column(name=f"g{i}", low=-5.0, high=5.0) for i in range(4))
    fields: dict[str, Any] = {
        "federation": "example",
        "run": "example-run",
        "rounds": 3,
        "data": "synthetic",
        "label": Label(
            column="stage",
            classes=(LabelClass(name="early", values=("1",)), LabelClass(name="late", values=("2", "3"))),
        ),
        "modalities": (
            Modality(name="mrna", columns=genes, hidden=(8,)),
            Modality(name="image", columns=image, hidden=(8,)),
            Modality(
                name="clinical",
                columns=(
                    Column(name="age", low=0.0, high=120.0),
                    Column(name="marker", low=0.0, high=1000.0, transform="log1p"),
                    Column(name="smoker", kind="categorical", categories=("yes", "no")),
                ),
                hidden=(),
            ),
        ),
        "institutions": example_institutions(institutions),
        "secure_sum": SecureSumSettings(threshold=min(institutions, (institutions + 3) // 2)),
    }
    for name, change in changes.items():
        old = fields.get(name, Plan.model_fields[name].default)
        if isinstance(change, Mapping) and isinstance(old, BaseModel):
            kept = {each: getattr(old, each) for each in type(old).model_fields}  # dict() trips over Deadlines.keys
            fields[name] = type(old)(**{**kept, **change})
        else:
            fields[name] = change
    if "features" not in changes:
        fields["features"] = FeatureFloors(min_institutions=fields["secure_sum"].k_min)
    return Plan(**fields)


def with_combinations(plan: Plan, listed: Mapping[str, tuple[str, ...]]) -> Plan:
    """The plan with the combinations that some institutions' patients come in."""
    institutions = tuple(
        i.model_copy(update={"combinations": listed.get(i.name, i.combinations)}) for i in plan.institutions
    )
    return plan.model_copy(update={"institutions": institutions})
