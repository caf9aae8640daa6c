"""Plans as people write them: what is filled in, and that every mistake is told on its own line."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.plan import Blending, Column, Plan, PlanError, Proximity
from federation.plan_presets import PRESETS
from federation.plan_problems import Problem
from federation.plan_toml import load_plan
from tests.plans import example_institutions

KEYS = [institution.key for institution in example_institutions(3)]

GOOD = f"""\
federation = "example"
run = "first"
data = "synthetic"
rounds = 20

[label]
column = "stage"
classes = [
  {{ name = "early", values = ["1"] }},
  {{ name = "late", values = ["2", "3"] }},
]

[[modalities]]
name = "mrna"
hidden = [8]
columns_file = "genes.txt"
default_column = {{ low = -5, high = 5 }}

[[modalities]]
name = "clinical"
columns = [
  {{ name = "age", low = 0, high = 120 }},
  {{ name = "smoker", kind = "categorical", categories = ["yes", "no"] }},
]

[[institutions]]
name = "brca-1"
key = "{KEYS[0]}"
modalities = ["mrna", "clinical"]

[[institutions]]
name = "brca-2"
key = "{KEYS[1]}"
modalities = ["mrna", "clinical"]

[[institutions]]
name = "brca-3"
key = "{KEYS[2]}"
modalities = ["mrna"]

[secure_sum]
threshold = 3

[training]
local_steps = 5
"""

GENES = "# a comment\nTP53\nBRCA1\t\t-1\t2.5\n\nlevel\tnumeric\t0\t9\tlog1p\nsubtype\tcategorical\t\t\t\tlum a|basal\n"


def read(name: str, genes: str) -> str:
    if name != "genes.txt":
        raise FileNotFoundError(2, "No such file or directory", name)
    return genes


def load(text: str, genes: str = GENES) -> Plan:
    return load_plan(text, path_label="plan.toml", read_relative=lambda name: read(name, genes))


def line_of(text: str, part: str) -> int:
    assert text.count(part) == 1, part
    return text[: text.index(part)].count("\n") + 1


def problems(text: str, genes: str = GENES) -> list[str]:
    with pytest.raises(PlanError) as caught:
        load(text, genes)
    return [str(problem) for problem in caught.value.problems]


def test_a_good_plan() -> None:
    plan = load(GOOD)
    assert (plan.federation, plan.run, plan.rounds, plan.preset) == ("example", "first", 20, "default")
    assert plan.training.local_steps == 5
    assert plan.blending == Blending()
    assert plan.proximity == Proximity()
    assert plan.modalities[0].columns == (
        Column(name="TP53", low=-5.0, high=5.0),
        Column(name="BRCA1", low=-1.0, high=2.5),
        Column(name="level", low=0.0, high=9.0, transform="log1p"),
        Column(name="subtype", kind="categorical", categories=("lum a", "basal")),
    )
    assert plan.modalities[1].columns[0] == Column(name="age", low=0.0, high=120.0)
    assert Plan.from_bytes(plan.to_bytes()) == plan


def test_columns_may_be_names_and_stand_before_those_of_a_file() -> None:
    plan = load(GOOD.replace("columns_file", 'columns = ["first", { name = "second", high = 1 }]\ncolumns_file'))
    assert plan.modalities[0].columns[:3] == (
        Column(name="first", low=-5.0, high=5.0),
        Column(name="second", low=-5.0, high=1.0),
        Column(name="TP53", low=-5.0, high=5.0),
    )


def test_line_ends_of_another_system_and_a_byte_order_mark_change_nothing() -> None:
    windows = "\ufeff" + GOOD.replace("\n", "\r\n")
    assert load(windows, "\ufeff" + GENES.replace("\n", "\r\n")).to_bytes() == load(GOOD).to_bytes()
    assert problems(windows.replace("local_steps", "local_step"))[0].startswith("plan.toml:45: ")


# ------------------------------------------------------------------------------------------------------- presets

SCIENCE = GOOD.replace("threshold = 3", "threshold = 3\nmax_colluders = 0\nk_min = 1")


def with_preset(preset: str, more: str = "") -> Plan:
    return load(SCIENCE.replace("rounds = 20", f'rounds = 20\npreset = "{preset}"') + more)


@pytest.mark.parametrize("preset", ["default", "paper", "paper-code"])
def test_a_preset_fills_what_is_left_out(preset: str) -> None:
    text = "" if preset != "paper-code" else "local_steps = 10\n"
    plan = load(SCIENCE.replace("rounds = 20", f'rounds = 20\npreset = "{preset}"').replace("local_steps = 5\n", text))
    assert plan.preset == preset
    for section, fields in PRESETS[preset].items():
        table = getattr(plan, section)
        assert {name: getattr(table, name) for name in fields} == dict(fields)


def test_the_paper_s_reading() -> None:
    plan = with_preset("paper")
    assert not plan.model.heads
    assert plan.training.count_noise == 0.0
    blending = plan.blending
    assert (blending.kappa, blending.smoothing, blending.window, blending.clamp) == ("one", 0.0, 1, False)
    assert (blending.generalisation, blending.overfitting) == ("absolute", "weighted-means")
    assert (blending.losses_from, blending.encoder_times_combination) == ("combination", False)
    assert plan.proximity.kind == "inner"


def test_the_authors_program() -> None:
    plan = load(SCIENCE.replace("rounds = 20", 'rounds = 20\npreset = "paper-code"').replace("local_steps = 5\n", ""))
    training = plan.training
    assert (training.optimiser, training.learning_rate, training.batch_size, training.local_steps) == (
        "adam",
        1e-4,
        5,
        10,
    )
    assert plan.blending.encoder_times_combination


@pytest.mark.parametrize(
    ("more", "preset"),
    [
        ("[blending]\nwindow = 5\n", "custom"),
        ("[blending]\nwindow = 1\n", "paper"),
        ("[model]\nheads = true\n", "custom"),
        ("[model]\ndropout = 0.5\n", "paper"),
        ("[proximity]\nkind = 'cosine'\n", "custom"),
    ],
)
def test_what_is_written_wins_and_makes_a_preset_custom_where_it_differs(more: str, preset: str) -> None:
    plan = with_preset("paper", more)
    assert plan.preset == preset
    assert plan.blending.losses_from == "combination"  # the rest is still the paper's
    if "window = 5" in more:
        assert plan.blending.window == 5


# ------------------------------------------------------------------------------------------------- wrong on a line


@dataclass(frozen=True)
class Wrong:
    """`old` is replaced by `new`; the problem stands on the line where `mark` (or else `new`) then is."""

    name: str
    old: str
    new: str
    says: str
    mark: str = ""


AGE = '{ name = "age", low = 0, high = 120 }'
WRONG = [
    Wrong(
        "unknown-key",
        "local_steps",
        "local_step",
        "[training] local_step: there is no such field. Remedy: Take it "
        "out, or correct its name (did you mean 'local_steps'?)",
    ),
    Wrong(
        "unknown-root-key",
        "rounds",
        "round",
        "round: there is no such field. Remedy: Take it out, or correct its name (did you mean 'rounds'?)",
        "round =",
    ),
    Wrong(
        "unknown-table",
        "[training]",
        "[trainings]",
        "trainings: there is no such table. Remedy: Take it out, or correct its name (did you mean 'training'?)",
    ),
    Wrong(
        "unknown-key-of-an-entry",
        'name = "brca-2"',
        'nam = "x"\nname = "brca-2"',
        "[[institutions]] nam: there is no such field. Remedy: Take it out, or correct its name (did you mean 'name'?)",
        'nam = "x"',
    ),
    Wrong(
        "unknown-key-in-an-inline-table",
        AGE,
        AGE.replace("high", "hi"),
        "[[modalities]] columns[0].hi: there is no such field.",
    ),
    Wrong(
        "unknown-key-of-a-default",
        "low = -5, high = 5",
        "low = -5, hihg = 5",
        "[[modalities]] default_column.hihg:"
        " there is no such field. Remedy: Use: kind, low, high, transform, categories (did you mean 'high'?).",
    ),
    Wrong("text-for-a-number", "rounds = 20", 'rounds = "20"', "rounds: must be a whole number."),
    Wrong(
        "fraction-for-a-whole-number",
        "local_steps = 5",
        "local_steps = 5.5",
        "[training] local_steps: must be a whole number.",
    ),
    Wrong("number-for-a-text", 'column = "stage"', "column = 3", "[label] column: must be a text in quotes."),
    Wrong(
        "text-for-a-list",
        'modalities = ["mrna"]',
        'modalities = "mrna"',
        "[[institutions]] modalities: must be a list in [ ].",
    ),
    Wrong("not-finite", AGE, AGE.replace("120", "inf"), "[[modalities]] columns[0].high: must be a finite number."),
    Wrong("date", 'run = "first"', "run = 2026-01-01", "run: must be a text in quotes."),
    Wrong("negative", "rounds = 20", "rounds = -1", "rounds: the number is below 0."),
    Wrong("too-large-for-the-wire", "rounds = 20", "rounds = 5000000000", "rounds: the number is above 4294967295."),
    Wrong(
        "unknown-word",
        'data = "synthetic"',
        'data = "sinthetic"',
        "data: not one of the words allowed here. Remedy: Write 'real' or 'synthetic' (did you mean 'synthetic'?).",
    ),
    Wrong("unknown-preset", "rounds = 20", 'preset = "papr"', "preset: not one of the words allowed here.", "papr"),
    Wrong(
        "missing-key-of-a-table",
        "threshold = 3\n",
        "k_min = 3\n",
        "[secure_sum] threshold: this field is missing. Remedy: Write it: t: signatures that decide a survivor list",
        "[secure_sum]",
    ),
    Wrong(
        "missing-key-of-an-entry",
        'name = "brca-3"\n',
        "",
        "[[institutions]] name: this field is missing.",
        f'[[institutions]]\nkey = "{KEYS[2]}"',
    ),
    Wrong("missing-key-of-the-root", 'run = "first"\n', "", "run: this field is missing.", "federation"),
    Wrong("missing-table", "[secure_sum]\nthreshold = 3\n", "", "[secure_sum]: this table is missing.", "local_steps"),
    Wrong(
        "missing-columns",
        'columns_file = "genes.txt"\n',
        "",
        "[[modalities]] columns: this list is missing.",
        '[[modalities]]\nname = "mrna"',
    ),
    Wrong(
        "table-for-a-list",
        GOOD[GOOD.index("[[institutions]]") : GOOD.index("[secure_sum]")],
        "[institutions]\n",
        "[institutions]: must be a list of tables. Remedy: Begin each entry with [[institutions]].",
        "[institutions]",
    ),
    Wrong("value-for-a-table", "rounds = 20", "rounds = 20\nblending = 3", "[blending]: must be a table.", "blending"),
    Wrong(
        "out-of-range",
        "local_steps = 5",
        "local_steps = 0",
        "[training] local_steps: 0 is out of range. Remedy: Write a number from 1 to 100000 batches.",
    ),
    Wrong(
        "threshold-too-low",
        "threshold = 3",
        "threshold = 2",
        "[secure_sum] threshold: 2·2 is below n + max_colluders + 1 = 5",
    ),
    Wrong(
        "default-that-does-not-fit",
        "threshold = 3\n",
        "threshold = 3\n\nk_min = 4\n",
        "[secure_sum] k_min: no modality has 4 holders",
        "k_min",
    ),
    Wrong(
        "encrypted-without-a-word-about-the-coordinator",
        "threshold = 3\n",
        'threshold = 3\nckks = ["statistics"]\n',
        "[secure_sum] coordinator_colludes: encrypted sums are open to a coordinator that colludes with any one "
        "institution",
        "[secure_sum]",
    ),
    Wrong(
        "encrypted-sum-that-there-is-not",
        "threshold = 3\n",
        'threshold = 3\nckks = ["statistic"]\n',
        "[secure_sum] ckks[0]: not one of the words allowed here. Remedy: Write 'holders', 'counts', 'means'",
        "ckks",
    ),
    Wrong(
        "value-in-two-classes",
        '"2", "3"',
        '"2", "1"',
        "[label] classes[1].values[1]: the label value '1' occurs twice.",
    ),
    Wrong(
        "low-above-high",
        AGE,
        AGE.replace("low = 0", "low = 500"),
        "[[modalities]] columns[0].low: low 500 is not below high 120.",
    ),
    Wrong(
        "unknown-modality",
        'modalities = ["mrna"]',
        'modalities = [\n  "mrna",\n  "rna",\n]',
        "[[institutions]] modalities[1]: unknown modality 'rna'. Remedy: Use: mrna, clinical.",
        '  "rna",',
    ),
    Wrong("bad-key", KEYS[1], "p256:AAAA", "[[institutions]] key: the public key is not a P-256 key in base64."),
    Wrong(
        "no-such-file",
        '"genes.txt"',
        '"gene.txt"',
        "[[modalities]] columns_file: 'gene.txt' cannot be read: No such file or directory.",
    ),
    Wrong(
        "file-name-is-no-text",
        '"genes.txt"',
        "7",
        "[[modalities]] columns_file: must be a text in quotes.",
        "columns_file = 7",
    ),
    Wrong("default-is-no-table", "{ low = -5, high = 5 }", '"all"', "[[modalities]] default_column: must be a table."),
    Wrong("default-of-a-wrong-type", "high = 5", 'high = "5"', "[[modalities]] default_column.high: must be a number."),
    Wrong("syntax", "rounds = 20", "rounds 20", "not valid TOML: Expected '=' after a key in a key/value pair."),
    Wrong(
        "key-twice",
        "rounds = 20",
        "rounds = 20\nrounds = 21",
        "not valid TOML: Cannot overwrite a value.",
        "rounds = 21",
    ),
    Wrong("open-text", 'run = "first"', 'run = "first', "not valid TOML: Illegal character '\\n'.", 'run = "first'),
    Wrong("open-list-at-the-end", "local_steps = 5\n", "local_steps = [5", "not valid TOML: Unclosed array."),
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.name)
def test_a_mistake_is_told_on_its_line(wrong: Wrong) -> None:
    assert GOOD.count(wrong.old) == 1
    text = GOOD.replace(wrong.old, wrong.new)
    place = f"plan.toml:{line_of(text, wrong.mark or wrong.new)}: {wrong.says}"
    found = problems(text)
    assert any(problem.startswith(place) for problem in found), "\n".join(found)
    assert all(" Remedy: " in problem for problem in found)


@pytest.mark.parametrize(
    "value",
    [
        "[" * 20000,
        "[" * 500 + "]" * 500,
        "9" * 5000,
        "9" * 400,
        "-9" + "9" * 400,
        "1979-99-99",
        '"\\u0000"',
        '"\\ud800"',
    ],
    ids=["endless-list", "deep-list", "5000-digits", "400-digits", "minus", "no-date", "nul", "surrogate"],
)
@pytest.mark.parametrize("key", ["rounds = 20", "high = 120", 'run = "first"', 'columns_file = "genes.txt"'])
def test_values_meant_to_break_a_parser(key: str, value: str) -> None:
    name = key.split(" = ")[0]
    assert problems(GOOD.replace(key, f"{name} = {value}"))


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("TP53\tnumeric\tlow", "genes.txt:2: low: 'low' is not a number. Remedy: Write a number like -2.5"),
        ("TP53\tnumeric\t1\t2\tnone\t\tmore", "genes.txt:2: 7 cells."),
        ("TP53\tnumber", "genes.txt:2: kind: not one of the words allowed here."),
        ("TP53\tnumeric\tnan\t2", "genes.txt:2: low: must be a finite number."),
        ("BRCA1", "genes.txt:3: name: the column 'BRCA1' occurs twice."),
        ("TP53\tnumeric\t9", "genes.txt:2: low: low 9 is not below high 5."),
        ("TP53\tcategorical", "genes.txt:2: categories: a categorical column needs some."),
        ("\tnumeric", "genes.txt:2: name: '' cannot be told apart or shown."),
    ],
)
def test_a_mistake_in_a_file_of_columns_is_told_on_that_file_s_line(row: str, says: str) -> None:
    assert problems(GOOD, GENES.replace("TP53", row))[0].startswith(says)


def test_a_file_without_columns_and_a_file_that_is_no_text() -> None:
    line = line_of(GOOD, "columns_file")
    assert problems(GOOD, "# nothing\n")[0].startswith(
        f"plan.toml:{line}: [[modalities]] columns_file: 'genes.txt' has no columns."
    )

    def binary(name: str) -> str:
        return b"\xff".decode()

    with pytest.raises(PlanError, match=f"plan.toml:{line}: .* or not UTF-8"):
        load_plan(GOOD, path_label="plan.toml", read_relative=binary)


def test_all_mistakes_are_told_at_once_each_once() -> None:
    text = GOOD.replace("rounds = 20", "rounds = true").replace("high = 5", 'high = "5"').replace("local_", "loca_")
    assert [problem.split(": ")[0] for problem in problems(text)] == ["plan.toml:4", "plan.toml:17", "plan.toml:45"]


@given(st.text(alphabet=st.sampled_from("ab=[]{}\"'\\,.#\n 1-:"), max_size=40), st.integers(0, len(GOOD)))
def test_whatever_is_typed_in_the_middle_gives_a_plan_or_a_plan_error(typed: str, place: int) -> None:
    found: tuple[Problem, ...] = ()
    try:
        load(GOOD[:place] + typed + GOOD[place:])
    except PlanError as error:
        found = error.problems
    assert all(problem.place.startswith(("plan.toml:", "genes.txt:")) for problem in found)
