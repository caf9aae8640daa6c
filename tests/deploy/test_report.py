"""The report: it stands alone, tells the truth of its numbers, and shows nothing that it was not given to show."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.figures import (
    blended_combinations,
    blending,
    losses_of_institutions,
    presence,
    subsets_of,
    training_rounds,
    weights,
)
from deploy.report import (
    Institution,
    Prediction,
    Protection,
    ReportError,
    ReportInput,
    render_report,
    results_table,
    write_report,
)
from deploy.summary import REQUIRED, Summary, SummaryError, build_summary
from deploy.verdicts import cautions, compare, headline, sentence
from federation.blending import default_settings, step_weights
from studies.axes import Linear, Logarithmic
from tests.deploy.generated_run import COMBINATIONS, SUBSETS, facts, record, records, report_input, scores, summary
from tests.plans import example_plan

VOID = {"meta", "link", "br", "line", "rect", "circle", "polyline", "polygon"}


class Page(HTMLParser):
    """Checks nesting, and keeps tags and texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def plots(text: str) -> list[str]:
    return re.findall(r"<svg.*?</svg>", text, re.DOTALL)


def made(**accuracies: list[float]) -> Summary:
    seeds = len(next(iter(accuracies.values())))
    methods = {m: [0.5] * seeds for m in REQUIRED} | {k.replace("_", "-"): v for k, v in accuracies.items()}
    methods["dgb+pcw"] = methods.pop("ours", methods["dgb+pcw"])
    return build_summary(facts(), {m: [{"all": scores(a)} for a in values] for m, values in methods.items()})


def test_it_stands_alone_and_is_small() -> None:
    text = render_report(report_input())
    page = Page(text)
    assert len(text.encode()) < 3_000_000
    assert not [tag for tag, _ in page.tags if tag in ("script", "img", "iframe", "object", "form")]
    for tag, attributes in page.tags:
        for name in ("src", "href", "data", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith("#") or (tag == "link" and value == "data:,")
    assert not re.search(r"(https?:)?//", text.replace('xmlns="http://www.w3.org/2000/svg"', ""))
    assert "@import" not in text
    assert "url(" not in text
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_every_plot_is_well_formed_titled_and_described() -> None:
    drawn = plots(render_report(report_input("tcga")))
    titles = []
    for svg in drawn:
        root = ElementTree.fromstring(svg)
        assert root.get("role") == "img"
        label = root.get("aria-label") or ""
        title = next(e.text or "" for e in root.iter() if e.get("class") == "title")
        assert label.startswith(title)
        assert len(label) > len(title) + 10  # it says what the plot shows
        titles.append(title)
    assert len(set(titles)) == len(titles)
    wanted = ["Accuracy by round", "Loss, mrna", "DGB weight (step factor) at mrna+image+clinical",
              "DGB score by subset",
              "DOGR by subset", "Proximity by subset (PCW, mean)", "Confusion, all", "Confusion, BRCA",
              "Reliability: how sure, and how often right", "Institutions by round", "Seconds by round and phase",
              "Peak memory by process"]  # fmt: skip
    assert set(wanted) <= set(titles)


def test_tables_have_headers_and_contents_have_targets() -> None:
    page = Page(render_report(report_input()))
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(set(ids)) == len(ids)
    assert {a["href"] for t, a in page.tags if t == "a"} <= {f"#{i}" for i in ids}
    headers = [a for t, a in page.tags if t == "th"]
    assert headers
    assert all(a.get("scope") in ("row", "col") for a in headers)
    assert next(a for t, a in page.tags if t == "html")["lang"] == "en"


def test_synthetic_is_said_on_the_page_and_in_every_plot() -> None:
    text = render_report(report_input("synthetic"))
    assert text.index("SYNTHETIC DATA") < text.index("<h1>")
    assert all(ElementTree.fromstring(p).get("aria-label", "").startswith("SYNTHETIC · ") for p in plots(text))
    assert "synthetic" not in render_report(report_input("tcga", name="real-run")).lower()


def test_text_from_outside_is_escaped() -> None:
    evil = '<script>alert("1")</script>&'
    given_ = report_input(
        name=evil,
        plan_summary=evil,
        classes=(evil, "II"),
        institutions=[Institution(evil, evil, evil)],
        records=[record(1, np.random.default_rng(1), lost={"lusc-3": evil})],
        created=evil,
    )
    text = render_report(given_)
    assert "<script" not in text
    Page(text)
    for svg in plots(text):
        ElementTree.fromstring(svg)


def test_the_roster_says_who_has_patients_of_several_combinations() -> None:
    rows = report_input().institutions
    text = Page(render_report(report_input())).text
    assert "patients have" not in text
    full = next(i for i in rows if i.combination == "mrna+image+clinical")
    several = replace(full, combinations=("mrna", "mrna+image", full.combination))
    text = Page(render_report(report_input(institutions=[several]))).text
    assert f"{several.name} (patients have mrna, mrna+image, mrna+image+clinical)" in text
    assert "in 3 combinations of modalities" in text


def test_the_table_marks_the_highest_mean_whoever_has_it() -> None:
    table = made(ours=[0.60, 0.60], cm_fl=[0.6004, 0.6004], alone=[0.5, 0.5], constant=[0.70, 0.70], pooled=[0.6, 0.6])
    best = {row["name"]: row["cells"][0]["best"] for row in results_table(table, "all")}
    assert [name for name, marked in best.items() if marked] == ["Constant guess"]
    tied = made(ours=[0.6, 0.6], cm_fl=[0.6001, 0.6001])
    best = {row["name"]: row["cells"][0]["best"] for row in results_table(tied, "all")}
    assert best["DGB + PCW"]
    assert best["CM-FL"]  # printed alike, marked alike


@pytest.mark.parametrize(
    ("ours", "plain", "words", "lead"),
    [
        ([0.62, 0.63, 0.64], [0.60, 0.61, 0.62], "That exceeds the spread", "higher by more than the spread"),
        ([0.60, 0.64, 0.61], [0.61, 0.60, 0.62], "no difference is shown", "not distinguishable"),
        ([0.60, 0.61, 0.62], [0.62, 0.63, 0.64], "lower on average, higher in 0 of 3", "lower by more than the spread"),
        ([0.60, 0.61, 0.62], [0.60, 0.61, 0.62], "no difference", "not distinguishable"),
        ([0.70], [0.60], "One seed has no spread", "no spread"),
    ],
)
def test_sentences_follow_the_numbers(ours: list[float], plain: list[float], words: str, lead: str) -> None:
    table = made(ours=ours, cm_fl=plain)
    assert words in sentence(table, "cm-fl", "accuracy")
    assert lead in headline(table)
    page = Page(render_report(report_input(summary=table.model_dump()))).text
    assert sentence(table, "cm-fl", "accuracy") in page
    assert headline(table) in page


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=5))
def test_a_gap_is_claimed_only_beyond_the_spread(pairs: list[tuple[float, float]]) -> None:
    table = made(ours=[a for a, _ in pairs], cm_fl=[b for _, b in pairs])
    found = compare(table, "cm-fl", "accuracy")
    assert found is not None
    assert found.spread is not None
    claimed = "exceeds the spread" in sentence(table, "cm-fl", "accuracy")
    assert claimed == (abs(found.gap) > found.spread and abs(found.gap) >= 5e-7)
    unpaired = table.model_copy(update={"differences": {}})
    plain = compare(unpaired, "cm-fl", "accuracy")
    assert plain is not None
    assert plain.spread == max(plain.ours.std or 0, plain.other.std or 0)


def test_cautions_name_the_baselines_and_the_coin() -> None:
    table = made(ours=[0.50, 0.46, 0.48], constant=[0.6, 0.6, 0.6])
    text = " ".join(cautions(table))
    assert "stays below it by 12.0 points" in text
    assert "the toss of a coin" in text
    assert "3 seeds can show large effects only" in text
    many = made(ours=[0.7 + 0.001 * i for i in range(12)])
    assert cautions(many) == []


def test_protection_says_what_was_missing() -> None:
    def said(**changes: Any) -> str:
        return Page(
            render_report(report_input(protection=Protection(**({"k_min": 3, "max_colluders": 1} | changes))))
        ).text

    assert "No differential privacy" in said()
    assert "No differential privacy" not in said(epsilon=8.0, delta=1e-5)
    assert "ε = 8, δ = 1e-05" in said(epsilon=8.0, delta=1e-5)
    assert "Sums were not protected" in said(backend="none")
    assert "up to 2 institutions help" in said(max_colluders=2)
    plan = example_plan()
    assert Protection.of(plan) == Protection(plan.secure_sum.k_min, plan.secure_sum.max_colluders, "masks")


def test_subgroups_of_the_last_count_are_told_and_small_ones_are_not() -> None:
    told = {"patients": 61, "accuracy": 0.617, "balanced_accuracy": 0.591, "auroc": 0.64, "confusion": [[1, 2], [3, 4]]}
    made = records(12)
    assert "By subgroup" not in render_report(report_input(records=made))
    made[3] |= {"subgroups": {"sex": {"female": None, "male": None, "other": {**told, "patients": 7}}}}
    made[9] |= {"subgroups": {"sex": {"female": told, "male": None, "other": None}, "<age>": {"other": told}}}
    page = render_report(report_input(records=made))
    assert f"Validation patients of round {made[9]['round']}, counted by secure sum" in page
    table = page.partition("metrics by subgroup")[2].partition("</table>")[0]
    cells = [
        [re.sub("<[^>]+>", "", c) for c in re.findall(r"<t[dh].*?</t[dh]>", row)] for row in table.split("<tr>")[2:]
    ]
    assert cells[0] == ["sex", "female", "61", "0.617", "0.591", "0.640"]
    assert cells[1] == ["sex", "male", "–", "–", "–", "–"]
    assert [c[:2] for c in cells] == [["sex", "female"], ["sex", "male"], ["sex", "other"], ["&lt;age&gt;", "other"]]


def test_dropouts_and_burnt_rounds_are_told() -> None:
    text = Page(render_report(report_input())).text
    assert "2 dropouts in committed rounds" in text
    assert "never repeated under the same number: round 17." in text
    found = losses_of_institutions(records())
    assert [(d.round, d.institution, d.before) for d in found] == [
        (12, "lusc-3", "its statistics counted"),
        (30, "brca-2", "its update counted"),
    ]
    by_round = {r["round"]: r for r in records()}
    assert presence(by_round[31], "brca-2") == "absent"
    assert presence(by_round[23], "brca-2") == "in"  # nobody's statistics were opened in that round


def drawn(text: str) -> dict[str, ElementTree.Element]:
    """The page's plots by title."""
    found = [ElementTree.fromstring(svg) for svg in plots(text)]
    return {next(e.text or "" for e in root.iter() if e.get("class") == "title"): root for root in found}


def sections(text: str) -> set[str]:
    return {a["id"] or "" for _, a in Page(text).tags if "id" in a}


def shapes(plot: ElementTree.Element, kind: str) -> int:
    return sum((e.get("class") or "").startswith(kind) for e in plot.iter())


def test_one_round_is_dots_and_what_was_not_given_has_no_section() -> None:
    text = render_report(report_input("tcga", records=records(1), test_curve={}, predictions=[], plan_summary=""))
    plots_ = drawn(text)
    assert {"Accuracy by round", "Loss, mrna", "Institutions by round"} <= plots_.keys()
    assert shapes(plots_["Accuracy by round"], "dot") == 1  # a line of one point would not be seen
    assert shapes(plots_["Accuracy by round"], "line") == 0
    assert not [title for title in plots_ if title.startswith(("Confusion", "Reliability"))]
    assert {"results", "training", "blending", "who"} <= sections(text)
    assert "plan" not in sections(text)


def test_a_run_of_nothing_claims_nothing() -> None:
    nothing = report_input(
        "tcga", records=[], test_curve={}, predictions=[], summary=summary("tcga").model_dump() | {"methods": {}}
    )
    text = render_report(nothing)
    assert drawn(text).keys() == {"Peak memory by process"}
    assert "blending" not in sections(text)
    assert "This run was made without comparisons." in Page(text).text
    assert not re.search(r"accuracy: |higher on average|exceeds", Page(text).text, re.IGNORECASE)


def test_a_run_whose_records_are_lost_in_between_shows_what_is_left() -> None:
    text = render_report(report_input("tcga", records=[r for r in records(23) if r["round"] in (0, 23)]))
    plots_ = drawn(text)
    assert shapes(plots_["Seconds by round and phase"], "bar") > 0
    assert "took part" in (plots_["Institutions by round"].get("aria-label") or "")
    assert not re.search(r"\b(nan|none|inf)\b", Page(text).text, re.IGNORECASE)


def test_a_thousand_rounds_stay_small() -> None:
    assert len(render_report(report_input(records=records(1000)))) < 3_000_000


def test_bad_input() -> None:
    for prediction in (Prediction(2, (0.5, 0.5), "BRCA"), Prediction(0, (1.0,), "BRCA")):
        with pytest.raises(ReportError, match="classes"):
            render_report(report_input(predictions=[prediction]))
    with pytest.raises(SummaryError, match="seeds"):
        render_report(report_input(summary=summary().model_dump() | {"seeds": 0}))
    with pytest.raises(ReportError, match="classes"):
        render_report(report_input(classes=("one",)))


def test_writes_one_file(tmp_path: Path) -> None:
    write_report(tmp_path / "deep" / "report.html", report_input())
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["report.html"]
    assert ReportInput.settings_of(example_plan()).enabled


# -- what the records say ------------------------------------------------------------------------------------------


def test_weights_are_those_that_a_round_used() -> None:
    rounds = training_rounds(records(6))
    found = weights(rounds, "mrna+image+clinical", default_settings())
    for subset in SUBSETS:
        assert [v for _, v in found[subset][:2]] == [0.25, 0.25]
    published = {s: blending(rounds[3], s, "score") for s in SUBSETS}  # after round 4
    expected = step_weights(published, SUBSETS, default_settings(), 5)
    assert {s: found[s][4] for s in SUBSETS} == {s: (5, expected[s]) for s in SUBSETS}


def test_only_published_combinations_have_weights() -> None:
    assert blended_combinations(records(3), COMBINATIONS.values()) == ["mrna+image+clinical"]
    assert subsets_of(records(3)) == list(SUBSETS)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8), st.booleans())
def test_linear_scales_hold_their_values(values: list[float], zero: bool) -> None:
    scale = Linear.around(values, zero=zero)
    slack = 1e-6 * max(1.0, *map(abs, values))
    assert scale.low - slack <= min(values)
    assert scale.high + slack >= max(values)
    ticks = scale.ticks()
    assert 2 <= len(ticks) <= 14
    assert len({label for _, label in ticks}) == len(ticks)
    assert all(0 <= place <= 1 for place, _ in ticks)


@given(st.lists(st.floats(1e-12, 1e12) | st.just(0.0), min_size=1, max_size=8))
def test_logarithmic_scales_keep_zero_apart_and_order(values: list[float]) -> None:
    scale = Logarithmic.around(values)
    places = [scale.place(v) for v in sorted(values)]
    assert places == sorted(places)
    assert all(scale.place(v) > 0 for v in values if v > 0)
    assert scale.place(0.0) == 0
    assert len(scale.ticks()) <= 8
