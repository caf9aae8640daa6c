"""The tables of a plan that say what is measured; as `federation.plan_tables`, of which they are a part."""

from __future__ import annotations

from typing import Annotated, Literal

from federation.plan_fields import U32, Number, PlanTable, Range, about


class Subgroup(PlanTable):
    """One attribute that divides patients into groups; who has no value, or another one, is in `other`."""

    name: Annotated[str, about("Name of the attribute, for people: lower-case letters, digits, `-` and `_`.")]
    column: Annotated[
        str,
        about("Column of the institutions' table of subgroups (`data.subgroups` of node.toml, or the label table)."),
    ]
    categories: Annotated[tuple[str, ...], about("The values that are told apart; or `cuts`.")] = ()
    cuts: Annotated[
        tuple[Number, ...],
        about("Of a numeric column: ascending; `[50, 65]` makes under 50, 50 to 65, and 65 and over."),
    ] = ()
    institutions: Annotated[
        tuple[str, ...],
        about(
            "Who counts by it, where some have no such column or refuse. Left out: all whose patients the federated "
            "metrics count."
        ),
    ] = ()


class Subgroups(PlanTable):
    """Metrics by subgroup, by secure sum: needs `allow_subgroups` in the policy of every institution that counts."""

    by: Annotated[tuple[Subgroup, ...], about("The attributes; none: nothing is counted.")] = ()
    every: Annotated[
        U32, Range(1, 1000000, "rounds"), about("Counted in rounds 1, 1 + every, 1 + 2·every, …, and in the last.")
    ] = 10
    bins: Annotated[U32, Range(0, 100), about("Bins of a group's score histograms; 0: none, and no AUROC.")] = 10
    min_patients: Annotated[
        U32,
        Range(1, 1000000, "patients"),
        about("An institution counts a group with fewer of its own validation patients in `other`."),
    ] = 5
    min_institutions: Annotated[
        U32,
        Range(1, 1000, "institutions"),
        about("A group that fewer institutions count by itself is counted in `other` everywhere; at least k_min."),
    ] = 3


class Evaluation(PlanTable):
    """What is measured in every round, and which round is exported."""

    bins: Annotated[U32, Range(2, 1000), about("Bins of the score histograms.")] = 50
    metric: Annotated[
        Literal["balanced_accuracy", "auroc", "accuracy", "loss"],
        about("What picks the exported round and stops early."),
    ] = "balanced_accuracy"
    patience: Annotated[
        U32, Range(0, 1000000, "rounds"), about("Rounds without improvement that stop the run; 0: never.")
    ] = 0
    select: Annotated[Literal["best", "last"], about("Exported round.")] = "best"
    fallback_after: Annotated[
        U32,
        Range(0, 1000000, "rounds"),
        about(
            "Rounds in a row without the metric, an institution being gone, from which the validation losses choose; "
            "and rounds without these from which the last round is taken; 0: the metric alone chooses."
        ),
    ] = 3
    subgroups: Annotated[Subgroups, about("Metrics by subgroup.")] = Subgroups()
