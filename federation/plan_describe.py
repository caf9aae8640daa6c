"""A plan in plain text, for the people who must accept it (`consilium plan check`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil

from federation.layout import Component, Layout, layout
from federation.plan import Plan, digest
from federation.rounds import Cohorts
from federation.settings import graph_dropout, mask_graph, model_encoding
from federation.subgroups import groups_of
from federation.thinning import Thinning


def describe(plan: Plan) -> str:
    """A summary of a checked plan: who takes part with what, what is summed, what stays, what travels.

    Sizes are upper bounds: the feature schema, agreed when the run begins, may leave columns out.
    """
    parts = layout(plan, {modality.name: modality.widest_input for modality in plan.modalities})
    sections = (
        _head(plan),
        _roster(plan),
        _components(plan, parts),
        _sums(plan, parts),
        _subgroups(plan),
        _privacy(plan),
    )
    return "\n\n".join("\n".join(section) for section in map(tuple, sections) if section) + "\n"


def _head(plan: Plan) -> Iterator[str]:
    yield f"Run {plan.run!r} of federation {plan.federation!r} on {plan.data} data"
    yield f"  digest     {digest(plan.to_bytes()).hex()}"
    yield f"  rounds     {plan.rounds}, {plan.training.local_steps} local steps of {plan.training.batch_size} patients"
    yield f"  predicts   {plan.label.column}: {', '.join(plan.class_names)}"
    start = f"model {plan.initial_model[:16]}…" if plan.initial_model else f"seed {plan.seed}"
    yield f"  begins at  {start}"
    blending = "plain steps" if plan.blending.kind == "off" else f"blending {plan.blending.kind}"
    yield f"  method     preset {plan.preset}: {blending}, proximity {plan.proximity.kind}"


def _roster(plan: Plan) -> Iterator[str]:
    yield f"{len(plan.institutions)} institutions"
    rows = [("", *plan.modality_order)]
    rows += [(i.name, *("x" if m in i.modalities else "-" for m in plan.modality_order)) for i in plan.institutions]
    several = [(name, held) for name, held in plan.by_institution.items() if len(held) > 1]
    rows.append(("columns", *(str(len(m.columns)) for m in plan.modalities)))
    yield from _table(rows)
    if several:
        yield "Patients there lack modalities one by one, and come in these combinations"
        yield from _table([(name, ", ".join(held)) for name, held in several])


def _components(plan: Plan, parts: Layout) -> Iterator[str]:
    yield f"Components (summed from k_min = {plan.secure_sum.k_min} owners on)"
    rows = [("", "owners", "parameters up to", "")]
    rows += [
        (name, str(len(each.owners)), f"{each.size:,}", _fate(plan, each)) for name, each in parts.components.items()
    ]
    yield from _table(rows)


def _fate(plan: Plan, component: Component) -> str:
    rule = plan.component(component.name)
    if rule.every == 0:
        return "frozen: never trained, never sent"
    if component.shared:
        part = "summed" if rule.fraction >= 1 else f"a part of {rule.fraction:g} summed, another each time"
        return part if rule.every == 1 else f"{part}, in rounds 1, {1 + rule.every}, {1 + 2 * rule.every}, …"
    owners = ", ".join(component.owners)
    return f"stays at its institution ({owners})" if len(component.owners) == 1 else f"stays with each of {owners}"


def _sums(plan: Plan, parts: Layout) -> Iterator[str]:
    settings, n = plan.secure_sum, len(plan.institutions)
    encoding = model_encoding(plan, n)
    shared = [name for name, each in parts.components.items() if each.shared]
    floor = settings.k_min
    losses = [subset for subset, holders in parts.subsets.items() if len(holders) >= floor]
    yield "Secure sums"
    yield f"  backend    {settings.backend}"
    if settings.ckks:
        yield f"  encrypted  {', '.join(settings.ckks)} (CKKS): open to a coordinator that colludes with one of them"
    opens = "sign for a sum" if settings.backend == "masks" and mask_graph(plan) else "open a sum and sign for it"
    yield (
        f"  roster     {settings.threshold} of {n} {opens}; stands {settings.max_colluders} "
        f"colluding and {n - settings.threshold} dropped out"
    )
    yield from _graph(plan)
    yield f"  sum A      {len(shared)} components a round"
    yield f"  sum B      losses of {', '.join(losses) if losses else 'no subset'}"
    kept = [subset for subset in parts.subsets if subset not in losses]
    if kept:
        yield f"             too few institutions, kept local: {', '.join(kept)}"
    yield (
        f"  ring       mod 2^{encoding.bits}, clip ±{settings.clip:g}, headroom {settings.headroom:g}: "
        f"scale {encoding.scale:.6g}, one step is {1 / encoding.scale:.3g}"
    )
    uploads = {name: encoding.bits // 8 * _sent(plan, parts, name) for name in plan.roster}
    most = max(uploads, key=lambda name: uploads[name])
    each = encoding.bits // 8
    yield f"  bytes      up to {uploads[most]:,} a round from one institution ({most}), {each} a parameter, plus keys"


def _graph(plan: Plan) -> Iterator[str]:
    settings, n = plan.secure_sum, len(plan.institutions)
    if settings.backend != "masks":
        return
    drawn = mask_graph(plan)
    if drawn is None:
        yield "  graph      complete: everybody masks with everybody, and holds a share of everybody's secrets"
        return
    yield f"  graph      drawn for every attempt, as there are more than {drawn.complete_up_to} institutions: each has"
    yield f"             {drawn.neighbours} neighbours to mask with, of whom {drawn.share_threshold} open its secrets"
    gone, bits = ceil(n * graph_dropout(plan)), settings.graph_failure_bits
    yield f"             stands {gone} dropped out, but for a chance of 2^-{bits} to lose an attempt;"
    yield "             what may be opened is no matter of chance: each checks who is left before it signs"


def _sent(plan: Plan, parts: Layout, institution: str) -> int:
    """Parameters that an institution uploads in a round in which all is due that ever is."""
    owned = [(parts.components[name], plan.component(name)) for name in parts.owned(institution)]
    return sum(Thinning(c.size, rule.fraction).words for c, rule in owned if c.shared and rule.every)


def _privacy(plan: Plan) -> Iterator[str]:
    privacy = plan.differential_privacy
    if not privacy.enabled:
        yield "Differential privacy: off. The opened sums themselves are seen by everybody in the run."
        return
    yield f"Differential privacy: at most ε = {privacy.epsilon:g} at δ = {privacy.delta:g} for one institution"
    sigma, norm = privacy.noise_multiplier, privacy.max_gradient_norm
    yield f"  training   σ = {sigma:g}, gradients of a patient clipped to {norm:g}"


def _subgroups(plan: Plan) -> Iterator[str]:
    settings = plan.evaluation.subgroups
    if not settings.by:
        return
    yield f"Validation patients are counted by subgroup, in every {settings.every}. round and the last"
    cohorts = Cohorts(plan).subgroups
    for each in settings.by:
        members = cohorts[each.name]
        who = f"all {len(plan.roster)}" if len(members) == len(plan.roster) else ", ".join(sorted(members))
        yield f"  {each.name:10} column {each.column}: {', '.join(groups_of(each))}; at {who}"
    if plan.differential_privacy.enabled:
        yield f"  noise      statistics_noise = {plan.differential_privacy.statistics_noise:g} on each, charged"
    else:
        floors = f"{settings.min_patients} patients of an institution, {settings.min_institutions} institutions"
        yield f"  floors     {floors}; what is smaller is counted in other"


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
