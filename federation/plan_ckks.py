"""Whether a plan may encrypt the sums that it names (DESIGN.md, "Secure sum", `ckks`)."""

from __future__ import annotations

from collections.abc import Iterator

from federation.layout import layout
from federation.plan import Plan
from federation.plan_problems import Problem
from federation.rounds import Cohorts, Setup
from security.ckks.encoding import ciphertext_bytes
from security.ckks.packing import packs
from security.secure_sum.spec import Sum


def encryption_problems(plan: Plan) -> Iterator[Problem]:
    """What the plan says beside the names of its encrypted sums."""
    settings = plan.secure_sum
    path = ("secure_sum", "ckks")
    if settings.ckks and settings.coordinator_colludes:
        yield Problem(
            ("secure_sum", "coordinator_colludes"),
            "encrypted sums are open to a coordinator that colludes with any one institution.",
            "Write coordinator_colludes = false if you vouch that it does not, or leave `ckks` out: masks stand it.",
        )
    if not settings.ckks and not settings.coordinator_colludes:
        yield Problem(
            ("secure_sum", "coordinator_colludes"),
            "nothing is encrypted, and masks stand a coordinator that colludes.",
            "Take it out, or name the encrypted sums in `ckks`.",
        )
    if settings.ckks and settings.backend != "masks":
        yield Problem(path, f"backend {settings.backend!r} sends the other sums in clear.", 'Write backend = "masks".')
    if settings.ckks and len(plan.institutions) > settings.complete_graph_up_to:
        yield Problem(
            path,
            f"sums are encrypted only where the mask graph is complete, up to {settings.complete_graph_up_to} "
            "institutions (complete_graph_up_to).",
            "Leave `ckks` out.",
        )
    for i, name in enumerate(settings.ckks):
        if name in settings.ckks[:i]:
            yield Problem((*path, i), f"the sum {name!r} occurs twice.", "Take one of them out.")


def size_problems(plan: Plan) -> Iterator[Problem]:
    """Encrypted sums that are too large, by the widest inputs that the columns can give; of a plan otherwise sound."""
    settings = plan.secure_sum
    if not settings.ckks:
        return
    for which in _sums(plan):
        if which.name not in settings.ckks:
            continue
        sizes = {part.name: ciphertext_bytes(part) for part in which.parts}
        total = sum(pack.sent_bytes for pack in packs(which.parts))
        largest = max(sizes, key=lambda name: sizes[name], default="")
        if total > settings.ckks_max_bytes:
            yield Problem(
                ("secure_sum", "ckks", settings.ckks.index(which.name)),
                f"encrypted, {which.name!r} has up to {total:,} bytes, of which {largest!r} {sizes[largest]:,}; "
                f"ckks_max_bytes allows {settings.ckks_max_bytes:,}.",
                "Take the sum out of `ckks`, so that it is masked; or raise ckks_max_bytes.",
            )


def _sums(plan: Plan) -> tuple[Sum, ...]:
    """Every sum of the run, as large as it can get."""
    cohorts = Cohorts(plan)
    made = layout(plan, {m.name: m.widest_input for m in plan.modalities})
    setup = Setup("", dict.fromkeys(cohorts.patients, 0), frozenset(plan.roster))
    sizes = {name: made.components[name].size for name in cohorts.summed(setup)}
    return (*cohorts.setup_sums(), *cohorts.training_sums(sizes, setup, 1))  # round 1 has all that is ever sent
