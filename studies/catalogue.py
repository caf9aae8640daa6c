"""The studies by name: what each asks, and which runs answer it.

A study is a list of variants on the same splits; one of them is what the others are held against. Whatever a variant
changes beyond its method stands in `changes`, so that a row can be run again from its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from federation.plan import Training
from federation.plan_presets import PRESETS
from studies.cells import Cell, changes_of
from studies.demo_plan import TRAINING
from studies.federation import StudyError
from studies.frozen import frozen_changes
from studies.methods import ALONE
from studies.recipes import HIDDEN, institutions
from studies.tasks import DIGITS, EARLY_LATE, STAGE_I_II, THREE_STAGES, TOPICS, Task
from studies.tcga import FOLDS

CM_FL: Final = "cm-fl"
DEMO_ROUNDS: Final = 40


@dataclass(frozen=True)
class Variant:
    """One row of a study.

    Attributes:
        name: in its tables.
        method: name of a method (`studies.methods`).
        recipe: of the federation.
        changes: of the plan.
    """

    name: str
    method: str
    recipe: str = "nine"
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A question with its variants.

    Attributes:
        name: of the command.
        question: what it asks, a sentence.
        task: what is told apart.
        variants: in the order of their table.
        against: name of the variant that the others are paired with: a conventional multi-modal FL.
        rounds: of each run.
        beside: name of another variant to pair with as well; empty: none.
        data: what real patients are called.
    """

    name: str
    question: str
    task: Task
    variants: tuple[Variant, ...]
    against: str
    rounds: int = DEMO_ROUNDS
    beside: str = ""
    data: str = "tcga"

    def of(self, variant: Variant, seed: int, fold: int) -> tuple[Cell, ...]:
        """The runs of one variant on one split: one, or of `alone` one an institution, whose figures are averaged."""
        methods = (
            tuple(f"{ALONE}/{name}" for name in institutions(variant.recipe))
            if variant.method == ALONE
            else (variant.method,)
        )
        changes = changes_of(**variant.changes)
        return tuple(Cell(variant.recipe, self.task.name, m, seed, fold, self.rounds, changes) for m in methods)

    def cells(self, seeds: Sequence[int], folds: Sequence[int] = range(FOLDS)) -> Iterator[Cell]:
        """All of them, split by split: a study that is cut short has all variants of the splits that it has."""
        for seed in seeds:
            for fold in folds:
                for variant in self.variants:
                    yield from self.of(variant, seed, fold)


METHODS: Final = (
    Variant("CM-FL", CM_FL),
    Variant("HGB", "hgb"),
    Variant("DGB", "dgb"),
    Variant("DGB + PCW", "dgb+pcw"),
    Variant("each alone", ALONE),
    Variant("pooled", "pooled"),
    Variant("all modalities everywhere", CM_FL, "upper bound"),
    Variant("cohort only", "cohort-only"),
    Variant("constant", "constant"),
)
"""Figure 3 of the paper, and what its methods are held against."""

_SCIENCE: Final = {"k_min": 1, "max_colluders": 0}
"""No privacy floor at all: for science on public data (METHOD.md, "The privacy floor")."""

_PRESETS: Final = {name: {s: dict(f) for s, f in PRESETS[name].items()} for name in ("paper", "paper-code")}

FLOOR: Final = (
    Variant("CM-FL", CM_FL),
    Variant("private default", "dgb+pcw"),
    Variant("default, k_min = 1", "dgb+pcw", changes={"secure_sum": _SCIENCE}),
    Variant("paper, k_min = 1", "dgb+pcw", changes={**_PRESETS["paper"], "secure_sum": _SCIENCE}),
    Variant("paper, k_min = 3", "dgb+pcw", changes=_PRESETS["paper"]),
    Variant("CM-FL without heads", CM_FL, changes={"model": {"heads": False}}),
)

ABLATIONS: Final = (
    Variant("CM-FL", CM_FL),
    Variant("DGB + PCW", "dgb+pcw"),
    Variant("κ = |S|", "dgb+pcw", changes={"blending": {"kappa": "subsets"}}),
    Variant("no smoothing", "dgb+pcw", changes={"blending": {"smoothing": 0.0, "window": 1}}),
    Variant("longer window", "dgb+pcw", changes={"blending": {"smoothing": 0.9, "window": 10}}),
    Variant("no clamp", "dgb+pcw", changes={"blending": {"clamp": False}}),
    Variant("G absolute", "dgb+pcw", changes={"blending": {"generalisation": "absolute"}}),
    Variant("O from means", "dgb+pcw", changes={"blending": {"overfitting": "weighted-means"}}),
    Variant("inner product", "dgb+pcw", changes={"proximity": {"kind": "inner"}}),
    Variant("no floor of p", "dgb+pcw", changes={"proximity": {"floor": 0.0}}),
    Variant("exact counts", "dgb+pcw", changes={"training": {"count_noise": 0.0}}),
    Variant("16-bit words", "dgb+pcw", changes={"secure_sum": {"half_words": True}}),
    Variant("k_min = 4", "dgb+pcw", changes={"secure_sum": {"k_min": 4}, "features": {"min_institutions": 4}}),
)
"""Every choice marked [ours] in METHOD.md, one at a time."""


def _steps(method: str, name: str, k: int, eta: float) -> Variant:
    named = f"{name}, K {k}, η {eta:g}"
    if (k, eta) == (Training().local_steps, TRAINING["learning_rate"]):
        return Variant(named, method)  # the plan as it is: the same run as in other studies
    return Variant(named, method, changes={"training": {"local_steps": k, "learning_rate": eta}})


STEPS: Final = tuple(
    _steps(method, name, k, eta)
    for k, eta in ((1, 2e-3), (5, 2e-3), (10, 5e-4), (10, 1e-3), (10, 2e-3), (10, 4e-3), (20, 2e-3))
    for method, name in ((CM_FL, "CM-FL"), ("dgb+pcw", "DGB + PCW"))
)
"""K and step size, for both: DGB's mean step is smaller at the same η, so each is compared at its own best."""


def _over(recipe: str, upper: str = "", baselines: tuple[str, ...] = ()) -> tuple[Variant, ...]:
    """The paper's four methods on another federation, with its upper bound and some baselines."""
    variants = [replace(v, recipe=recipe) for v in METHODS if v.recipe == "nine" and v.name in (*_FOUR, *baselines)]
    bound = [Variant("all modalities everywhere", CM_FL, upper)] if upper else []
    return (*variants[: len(_FOUR)], *bound, *variants[len(_FOUR) :])


_FOUR: Final = ("CM-FL", "HGB", "DGB", "DGB + PCW")

MODALITIES: Final = tuple(
    Variant(f"{name}, {count} modalities", method, recipe)
    for count, recipe in (("2", "two modalities"), ("3", "nine"), ("4", "four modalities"))
    for method, name in ((CM_FL, "CM-FL"), ("dgb+pcw", "DGB + PCW"))
)

HETEROGENEITY: Final = tuple(
    Variant(f"{name}, {kind}", method, recipe)
    for kind, recipe in (("none", "mixed"), ("by class", "skewed"), ("by cancer", "nine"))
    for method, name in ((CM_FL, "CM-FL"), ("dgb", "DGB"), ("dgb+pcw", "DGB + PCW"))
)
"""The same combinations and test patients: all cohorts mixed, mixed with skewed stages, and a cohort an institution."""

PRIVACY_ROUNDS: Final = 10


def _private(epsilon: float, noise: float) -> dict[str, Any]:
    """Differential privacy with ten rounds of five steps; the noise was found by the accountant, and the ledgers hold
    every institution to its ε."""
    noised = {"noise_multiplier": noise / 2, "feature_noise": 4 * noise, "statistics_noise": 4 * noise}
    return {
        "training": {**_PRIVATE_STEPS, "count_noise": 20.0},
        "differential_privacy": {"enabled": True, "epsilon": epsilon, **noised},
    }


_PRIVATE_STEPS: Final = {"local_steps": 5}

PRIVACY: Final = tuple(
    Variant(f"{name}, {told}", method, changes=changes)
    for told, changes in (
        ("no ε", {"training": _PRIVATE_STEPS}),
        *((f"ε = {epsilon}", _private(epsilon, noise)) for epsilon, noise in ((8, 3.4), (3, 7.0), (1, 18.5))),
    )
    for method, name in ((CM_FL, "CM-FL"), ("dgb+pcw", "DGB + PCW"))
)

SITES: Final = tuple(
    Variant(f"{name}, {count} hospitals", method, f"{count} sites")
    for count in (18, 36)
    for method, name in ((CM_FL, "CM-FL"), ("dgb", "DGB"), ("dgb+pcw", "DGB + PCW"), ("pooled", "pooled"))
)


def _frozen(group: str) -> Mapping[str, Any]:
    """What was chosen for a group; the demo's own step is left out, so that the run is that of other studies."""
    changes = dict(frozen_changes(group))
    own = {k: v for k, v in changes.pop("training").items() if TRAINING.get(k) != v}
    return {**changes, "training": own} if own else changes


def _confirming(recipe: str) -> tuple[Variant, ...]:
    return (
        Variant("CM-FL", CM_FL, recipe, _frozen(CM_FL)),
        Variant("CM-FL, heads teach", CM_FL, recipe, _frozen("cm-fl, heads teach")),
        Variant("DGB + PCW, frozen", "dgb+pcw", recipe, _frozen("dgb+pcw")),
    )


def _missing(percent: int) -> tuple[Variant, ...]:
    return (
        Variant("CM-FL, complete patients", CM_FL, f"{percent}% hidden, complete"),
        Variant("DGB + PCW, complete patients", "dgb+pcw", f"{percent}% hidden, complete"),
        Variant("CM-FL, everybody", CM_FL, f"{percent}% hidden"),
        Variant("DGB + PCW, everybody", "dgb+pcw", f"{percent}% hidden"),
        Variant("CM-FL, nothing hidden", CM_FL, "upper bound"),
    )


STUDIES: Final[Mapping[str, Study]] = {
    study.name: study
    for study in (
        Study(
            "figure3",
            "Do DGB and PCW beat conventional multi-modal FL on the paper's task, stage I against II?",
            STAGE_I_II,
            METHODS,
            "CM-FL",
        ),
        Study("late", "The same, early stages against late ones.", EARLY_LATE, METHODS, "CM-FL"),
        Study("three", "The same, stages I, II and III + IV.", THREE_STAGES, METHODS, "CM-FL"),
        Study(
            "floor",
            "What does the privacy floor cost against the paper's DGB, which needs k_min = 1?",
            STAGE_I_II,
            FLOOR,
            "CM-FL",
        ),
        Study(
            "ablations",
            "What is each of our own choices worth?",
            STAGE_I_II,
            ABLATIONS,
            "CM-FL",
            beside="DGB + PCW",
        ),
        Study(
            "privacy",
            "What does record-level differential privacy cost, everything charged, at ε = 8, 3 and 1 (δ = 1e-5)?",
            STAGE_I_II,
            PRIVACY,
            "CM-FL, no ε",
            PRIVACY_ROUNDS,
        ),
        Study("steps", "Local steps K and step size η.", STAGE_I_II, STEPS, "CM-FL, K 10, η 0.002"),
        *(
            Study(
                f"missing-{percent}",
                f"Patients lack {percent}% of their modalities, one by one: is it worth training on incomplete ones?",
                STAGE_I_II,
                _missing(percent),
                "CM-FL, complete patients",
                beside="CM-FL, everybody",
            )
            for percent in HIDDEN
        ),
        *(
            Study(
                f"imbalance-{kind}",
                f"Do the methods hold where {kind}-modal institutions are most?",
                STAGE_I_II,
                tuple(Variant(v.name, v.method, f"{kind}-modal") for v in METHODS[:4]),
                "CM-FL",
            )
            for kind in ("uni", "bi", "tri")
        ),
        Study(
            "kidney",
            "Do they win where the stage signal is strong? KIRC and KIRP, early against late, mRNA and clinical data.",
            EARLY_LATE,
            _over("kidney", "kidney upper bound", ("each alone", "pooled", "cohort only")),
            "CM-FL",
        ),
        Study(
            "kidney-images",
            "The same with images, which differ between the two: a modality of its own for each.",
            EARLY_LATE,
            _over("kidney with images", "kidney with images upper bound", ("each alone", "pooled", "cohort only")),
            "CM-FL",
        ),
        Study(
            "liver",
            "With LIHC's three institutions, which have no images at all: twelve institutions.",
            STAGE_I_II,
            _over("with liver", "", ("pooled", "cohort only")),
            "CM-FL",
        ),
        Study(
            "modalities",
            "Two, three and four modalities: how do figures and cost grow with the combinations?",
            STAGE_I_II,
            MODALITIES,
            "CM-FL, 3 modalities",
        ),
        Study(
            "heterogeneity",
            "Which heterogeneity hurts: skewed stages at institutions, or another cancer at each?",
            STAGE_I_II,
            HETEROGENEITY,
            "CM-FL, by cancer",
        ),
        Study(
            "sites",
            "Hospitals as they are: tissue source sites as institutions, tested on patients of other hospitals.",
            STAGE_I_II,
            SITES,
            "CM-FL, 18 hospitals",
        ),
        Study(
            "digits",
            "Another domain: handwritten digits in six views.",
            DIGITS,
            _over("digits", "", ("pooled",)),
            "CM-FL",
            data="uci_mfeat",
        ),
        Study(
            "articles",
            "Another domain: articles as image and text.",
            TOPICS,
            _over("articles", "", ("pooled",)),
            "CM-FL",
            data="wikipedia",
        ),
        *(
            Study(name, f"Does what validation patients chose (studies.tune) hold {where}?", task, variants, "CM-FL")
            for name, where, task, variants in (
                (
                    "frozen",
                    "on the test sets of the nine",
                    STAGE_I_II,
                    (*_confirming("nine"), Variant("all modalities everywhere", CM_FL, "upper bound")),
                ),
                ("frozen-kidney", "on other cancers, early against late", EARLY_LATE, _confirming("kidney")),
                ("frozen-sites", "at hospitals as they are", STAGE_I_II, _confirming("18 sites")),
            )
        ),
    )
}


def study(name: str) -> Study:
    """A study by its name.

    Raises:
        StudyError: there is none.
    """
    found = STUDIES.get(name)
    if found is None:
        raise StudyError(f"there is no study {name!r}.", remedy=f"Choose from: {', '.join(STUDIES)}.")
    return found
