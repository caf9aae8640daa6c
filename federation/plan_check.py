"""Whether a plan may run: ranges, names, keys, and whatever ties two fields together (DESIGN.md, "Actors and
trust").

Institutions run this on every plan they are sent, before their own policy: the coordinator may lie.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Iterator
from itertools import pairwise
from typing import Final, cast

from pydantic import BaseModel

from federation.fixed_point import prove_no_wrap
from federation.layout import layout
from federation.names import NAME_PATTERN, combination, component_kind, modalities_of
from federation.plan import Column, Institution, Plan
from federation.plan_ckks import encryption_problems, size_problems
from federation.plan_encoders import MLP, encoder_problems
from federation.plan_fields import Range
from federation.plan_problems import Path, PlanError, Problem
from federation.plan_subgroups import cohort_problems, subgroup_problems
from federation.rounds import Cohorts
from federation.settings import mask_graph, model_encoding
from security.errors import ConfigurationError
from security.secure_sum.cohorts import subtracts_below
from security.secure_sum.graph import MAX_COMPLETE_GRAPH, MAX_ROSTER
from security.signing import parse_public_key_text, public_key_text

MAX_INSTITUTIONS: Final = MAX_ROSTER
MAX_CLASSES: Final = 1000
LARGEST_WEIGHT_SUM: Final = 1.0  # Σα: α_i = ñ_i / N_c over a component's owners, and survivors are among them
COLUMN_LIMIT: Final = 1e9  # of |low| and |high|
MAX_PARAMETERS: Final = 2**31  # of one encoder, 8 GiB; the paper's largest has 514 million

_NAME_REMEDY: Final = "Use 1 to 63 lower-case letters, digits, '-' and '_', beginning with a letter or digit."
_TEXT_REMEDY: Final = "Use 1 to 200 printable characters, without blanks at the ends."
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


def check(plan: Plan) -> None:
    """Passes a plan that may run.

    Raises:
        PlanError: lists every problem, each with its field and a remedy.
    """
    problems = find_problems(plan)
    if problems:
        raise PlanError(problems)


def find_problems(plan: Plan) -> tuple[Problem, ...]:
    """Every problem of a plan; none: it may run."""
    parts = (
        _run,
        _label,
        _modalities,
        _roster,
        _secure_sum,
        _floors,
        _method,
        _privacy,
        encryption_problems,
        subgroup_problems,
    )
    found = (*_ranges(plan, ()), *(problem for part in parts for problem in part(plan)))
    # What components there are, and how large, follows from a roster that is in order.
    return found or (
        *_components(plan),
        *_counts(plan),
        *_graph(plan),
        *size_problems(plan),
        *cohort_problems(plan),
    )


def minimum_threshold(institutions: int, max_colluders: int) -> int:
    """The smallest t with 2t ≥ n + max_colluders + 1 (DESIGN.md, "Actors and trust")."""
    return (institutions + max_colluders + 2) // 2


# ------------------------------------------------------------------------------------------- what a field may hold


def _ranges(table: BaseModel, path: Path) -> Iterator[Problem]:
    for name, field in type(table).model_fields.items():
        value: object = getattr(table, name)
        allowed = next((each for each in field.metadata if isinstance(each, Range)), None)
        items = enumerate(value) if isinstance(value, tuple) else [(-1, value)]
        for i, item in items:
            here = (*path, name) if i < 0 else (*path, name, i)
            if isinstance(item, BaseModel):
                yield from _ranges(item, here)
            elif allowed is not None and cast(float, item) not in allowed:
                unit = f" {allowed.unit}" if allowed.unit else ""
                yield Problem(here, f"{item} is out of range.", f"Write a number {allowed}{unit}.")


def _legal_name(name: str, path: Path) -> Iterator[Problem]:
    if not NAME_PATTERN.fullmatch(name):
        yield Problem(path, f"{name!r} is not a legal name.", _NAME_REMEDY)


def _legal_text(text: str, path: Path) -> Iterator[Problem]:
    if not (0 < len(text) <= 200 and text.isprintable() and text == text.strip()):
        yield Problem(path, f"{text[:200]!r} cannot be told apart or shown.", _TEXT_REMEDY)


def _distinct(values: Iterable[tuple[Path, Hashable]], what: str) -> Iterator[Problem]:
    first: dict[Hashable, Path] = {}
    for path, value in values:
        if value in first:
            yield Problem(path, f"{what} {value!r} occurs twice.", "Take one of them out, or correct it.")
        first.setdefault(value, path)


# ------------------------------------------------------------------------------------------------- table by table


def _run(plan: Plan) -> Iterator[Problem]:
    yield from _legal_name(plan.federation, ("federation",))
    yield from _legal_name(plan.run, ("run",))
    if plan.initial_model and not _DIGEST.fullmatch(plan.initial_model):
        yield Problem(
            ("initial_model",),
            "not the digest of a model.",
            "Write the 64 lower-case hex digits that `consilium export` shows, or leave it out.",
        )


def _label(plan: Plan) -> Iterator[Problem]:
    classes, path = plan.label.classes, ("label", "classes")
    yield from _legal_text(plan.label.column, ("label", "column"))
    if not 2 <= len(classes) <= MAX_CLASSES:
        yield Problem(path, f"{len(classes)} classes.", f"Name 2 to {MAX_CLASSES} classes to tell apart.")
    for i, each in enumerate(classes):
        yield from _legal_text(each.name, (*path, i, "name"))
        if not each.values:
            yield Problem((*path, i, "values"), "no value means this class.", "List its label values.")
        for k, value in enumerate(each.values):
            yield from _legal_text(value, (*path, i, "values", k))
    yield from _distinct((((*path, i, "name"), each.name) for i, each in enumerate(classes)), "the class")
    values = (((*path, i, "values", k), v) for i, c in enumerate(classes) for k, v in enumerate(c.values))
    yield from _distinct(values, "the label value")


def _modalities(plan: Plan) -> Iterator[Problem]:
    if not plan.modalities:
        yield Problem(("modalities",), "no modality.", "Describe at least one modality and its columns.")
    named = ((("modalities", i, "name"), m.name) for i, m in enumerate(plan.modalities))
    yield from _distinct(named, "the modality")
    held = {name for institution in plan.institutions for name in institution.modalities}
    for i, modality in enumerate(plan.modalities):
        path: Path = ("modalities", i)
        yield from _legal_name(modality.name, (*path, "name"))
        if modality.name not in held:
            yield Problem(
                (*path, "name"),
                f"no institution holds {modality.name!r}.",
                "Take the modality out, or add it to the institutions that hold it.",
            )
        if not modality.columns:
            yield Problem((*path, "columns"), "no column.", "List the columns of this modality.")
        yield from _legal_name(modality.kind, (*path, "kind"))
        yield from encoder_problems(modality, path, MAX_PARAMETERS)
        for field in ("options", "tensors"):
            listed = (((*path, field, k, "name"), each.name) for k, each in enumerate(getattr(modality, field)))
            yield from _distinct(listed, f"the {field[:-1]}")
        for k, option in enumerate(modality.options):
            yield from _legal_name(option.name, (*path, "options", k, "name"))
        widths = (modality.widest_input, *modality.hidden, plan.model.encoding_width)
        parameters = sum((a + 1) * b for a, b in pairwise(widths))
        if modality.kind == MLP and parameters > MAX_PARAMETERS:
            remedy = "Make the layers narrower, or use fewer columns."
            yield Problem((*path, "hidden"), f"an encoder of {parameters:,} parameters.", remedy)
        columns = (((*path, "columns", k, "name"), c.name) for k, c in enumerate(modality.columns))
        yield from _distinct(columns, "the column")
        for k, column in enumerate(modality.columns):
            yield from _column(column, (*path, "columns", k))


def _column(column: Column, path: Path) -> Iterator[Problem]:
    yield from _legal_text(column.name, (*path, "name"))
    if column.kind == "numeric":
        if not column.low < column.high:
            yield Problem(
                (*path, "low"),
                f"low {column.low:g} is not below high {column.high:g}.",
                "Give the range outside which a value is a mistake.",
            )
        for side, value in (("low", column.low), ("high", column.high)):
            if abs(value) > COLUMN_LIMIT:
                yield Problem((*path, side), f"{value:g} is beyond ±{COLUMN_LIMIT:g}.", "Use another unit.")
        if column.transform == "log1p" and column.low <= -1:
            remedy = "Raise low above -1, or take the transform out."
            yield Problem((*path, "low"), f"log1p is not defined at {column.low:g}.", remedy)
        if column.categories:
            yield Problem((*path, "categories"), "a numeric column has none.", "Take them out.")
        return
    if not column.categories:
        remedy = "List the values to tell apart; any other is `other`."
        yield Problem((*path, "categories"), "a categorical column needs some.", remedy)
    for i, category in enumerate(column.categories):
        yield from _legal_text(category, (*path, "categories", i))
    yield from _distinct((((*path, "categories", i), c) for i, c in enumerate(column.categories)), "the value")
    for field, unused in (("low", 0.0), ("high", 0.0), ("transform", "none")):
        if getattr(column, field) != unused:
            yield Problem((*path, field), "a categorical column has none.", "Take it out.")


def _roster(plan: Plan) -> Iterator[Problem]:
    n = len(plan.institutions)
    # One institution has nobody to sum with: only where nothing is masked (a bench, a study of pooled data).
    smallest = 1 if plan.secure_sum.backend == "none" else 2
    if not smallest <= n <= MAX_INSTITUTIONS:
        remedy = f"A run has {smallest} to {MAX_INSTITUTIONS} institutions."
        yield Problem(("institutions",), f"{n} institutions.", remedy)
    named = ((("institutions", i, "name"), each.name) for i, each in enumerate(plan.institutions))
    yield from _distinct(named, "the institution")
    owners: dict[bytes, str] = {}
    for i, institution in enumerate(plan.institutions):
        path: Path = ("institutions", i)
        yield from _legal_name(institution.name, (*path, "name"))
        try:
            public = parse_public_key_text(institution.key)
            if public_key_text(public) != institution.key:
                yield Problem((*path, "key"), "the key has blanks around it.", "Take them out.")
            if public in owners:
                remedy = "Each legal institution has one entry and one key of its own."
                yield Problem((*path, "key"), f"the key of {owners[public]!r} again.", remedy)
            owners.setdefault(public, institution.name)
        except ConfigurationError as error:
            yield Problem((*path, "key"), error.message, error.remedy)
        if not institution.modalities:
            yield Problem((*path, "modalities"), "it holds no modality.", "Name those that it holds.")
        held = (((*path, "modalities", k), name) for k, name in enumerate(institution.modalities))
        yield from _distinct(held, "the modality")
        for k, name in enumerate(institution.modalities):
            if name not in plan.modality_order:
                known = ", ".join(plan.modality_order)
                yield Problem((*path, "modalities", k), f"unknown modality {name!r}.", f"Use: {known}.")
        yield from _combinations(plan, institution, path)


def _combinations(plan: Plan, institution: Institution, path: Path) -> Iterator[Problem]:
    """Of patients who lack modalities: legal names, each once, that use each modality of the institution."""
    listed, held = institution.combinations, set(institution.modalities)
    if not listed or not held <= set(plan.modality_order):
        return  # an unknown modality is told already
    for k, name in enumerate(listed):
        used = set(modalities_of(name))
        if not used <= held:
            remedy = f"Use {', '.join(institution.modalities)}, joined by +."
            yield Problem((*path, "combinations", k), f"{name!r} is not of its modalities.", remedy)
        elif combination(used, plan.modality_order) != name:
            remedy = f"Write {combination(used, plan.modality_order)!r}: the order is that of the modalities."
            yield Problem((*path, "combinations", k), f"{name!r} is not in order.", remedy)
    yield from _distinct((((*path, "combinations", k), name) for k, name in enumerate(listed)), "the combination")
    for modality in institution.modalities:
        if not any(modality in modalities_of(name) for name in listed):
            remedy = "Add a combination with it, or take the modality out."
            yield Problem((*path, "combinations"), f"nobody there would have {modality!r}.", remedy)


def _counts(plan: Plan) -> Iterator[Problem]:
    """Patients by combination are an institution's own: what is summed over others must not single them out.

    Where everybody has one combination, a sum that would stays shut in the run. With several, all sums are meant to
    open: a plan in which one could not is refused here.
    """
    if not any(len(held) > 1 for held in plan.by_institution.values()):
        return
    cohorts, k_min = Cohorts(plan), plan.secure_sum.k_min
    made = cohorts.ownership
    patients = [made.pieces(name, c.owners) for name, c in cohorts.shared.items() if component_kind(name) == "encoder"]
    for counted in (patients, [*cohorts.counted.values()]):
        rest = subtracts_below(k_min, counted)
        if rest is not None:
            yield Problem(
                ("institutions",),
                "the sums of patients would together tell how many patients of some combination "
                f"{rest or 'very few'} institutions have.",
                f"Let at least k_min = {k_min} institutions list the same combinations; leave out what fewer list.",
            )
            return


def _secure_sum(plan: Plan) -> Iterator[Problem]:
    settings, n = plan.secure_sum, len(plan.institutions)
    t, colluders, k_min = settings.threshold, settings.max_colluders, settings.k_min
    least = minimum_threshold(n, colluders)
    if t > n:
        remedy = f"Choose {least} to {n}." if least <= n else "Enlarge the roster."
        yield Problem(("secure_sum", "threshold"), f"{t} of {n} institutions cannot sign.", remedy)
    elif t < least:
        yield Problem(
            ("secure_sum", "threshold"),
            f"2·{t} is below n + max_colluders + 1 = {n + colluders + 1}: two survivor lists could be signed.",
            f"Choose {least} to {n}." if least <= n else "Enlarge the roster or lower max_colluders.",
        )
    if k_min < colluders + 2 and not (k_min == 1 and colluders == 0):
        yield Problem(
            ("secure_sum", "k_min"),
            f"{k_min} survivors, {colluders} of them colluding, leave fewer than two behind a sum.",
            f"Set k_min to at least max_colluders + 2 = {colluders + 2}.",
        )
    holders = [sum(m in i.modalities for i in plan.institutions) for m in plan.modality_order]
    if n and holders and max(holders) < k_min:
        yield Problem(
            ("secure_sum", "k_min"),
            f"no modality has {k_min} holders, so no component could be summed.",
            f"The most common modality has {max(holders)}: add institutions, or lower k_min where allowed.",
        )
    try:
        prove_no_wrap(model_encoding(plan, max(1, n)), LARGEST_WEIGHT_SUM)
    except ConfigurationError as error:
        yield Problem(("secure_sum", "headroom"), error.message, error.remedy)


def _graph(plan: Plan) -> Iterator[Problem]:
    try:
        mask_graph(plan)
    except ConfigurationError as error:
        n = len(plan.institutions)
        remedy = "Lower secure_sum.max_colluders or secure_sum.graph_dropout"
        if n <= MAX_COMPLETE_GRAPH:
            remedy += f", or set complete_graph_up_to to at least {n}"
        yield Problem(("secure_sum", "complete_graph_up_to"), error.message, f"{remedy}.")


def _floors(plan: Plan) -> Iterator[Problem]:
    floor, k_min, n = plan.features.min_institutions, plan.secure_sum.k_min, len(plan.institutions)
    if floor < k_min:
        remedy = f"Set it to at least k_min = {k_min}."
        yield Problem(("features", "min_institutions"), f"{floor} is below secure_sum.k_min.", remedy)
    elif floor > n > 0:
        remedy = f"Set it to at most {n}."
        yield Problem(("features", "min_institutions"), f"the roster has only {n} institutions.", remedy)


def _method(plan: Plan) -> Iterator[Problem]:
    blending = plan.blending
    if blending.v_min > blending.v_max:
        remedy = f"Set v_max to at least v_min = {blending.v_min:g}."
        yield Problem(("blending", "v_max"), f"{blending.v_max:g} is below v_min.", remedy)
    if blending.among == "modalities" and blending.kind == "local":
        remedy = 'Write among = "subsets", or kind = "dgb".'
        yield Problem(("blending", "among"), "an institution alone cannot blend modalities for all.", remedy)


def _components(plan: Plan) -> Iterator[Problem]:
    made = layout(plan, {modality.name: 1 for modality in plan.modalities}).components
    yield from _distinct(((("components", i, "name"), r.name) for i, r in enumerate(plan.components)), "the component")
    for i, rule in enumerate(plan.components):
        if rule.name not in made:
            known = ", ".join(made)
            yield Problem(("components", i, "name"), f"there is no component {rule.name!r}.", f"Use: {known}.")
    if not any(component.shared and plan.component(name).every == 1 for name, component in made.items()):
        yield Problem(
            ("components",),
            "there are rounds in which no component is summed.",
            "Leave at least one component that enough institutions own at every = 1.",
        )


def _privacy(plan: Plan) -> Iterator[Problem]:
    if not plan.differential_privacy.enabled:
        return
    if plan.training.count_noise == 0:
        yield Problem(
            ("training", "count_noise"),
            "differential privacy needs noise on the patient counts.",
            "Set it above 0 (its default is 5 patients); 1/count_noise is what it spends of ε.",
        )
    if plan.training.class_weights != "none":
        yield Problem(
            ("training", "class_weights"),
            "class weights from exact counts let one patient move every other patient's gradient.",
            'Write class_weights = "none" under differential privacy.',
        )
