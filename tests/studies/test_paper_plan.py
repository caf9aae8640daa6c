"""The paper's model as a plan has exactly the paper's parameters and owners."""

from __future__ import annotations

from federation.layout import layout
from security.signing import IdentityKey, public_key_text
from studies.paper_plan import COLUMNS, INSTITUTIONS, MRNA_PARAMETERS, paper_plan


def test_the_papers_encoders_have_the_papers_sizes_and_six_owners_each() -> None:
    keys = {name: public_key_text(IdentityKey.generate().public) for name in INSTITUTIONS}
    components = layout(paper_plan(keys, 1), COLUMNS).components
    assert components["encoder/mrna"].size == MRNA_PARAMETERS == 513_695_440
    assert components["encoder/image"].size == 150 * 64 + 64 + 64 * 64 + 64 + 64 * 16 + 16
    assert components["encoder/clinical"].size == 11 * 16 + 16
    encoders = {name: c for name, c in components.items() if name.startswith("encoder/")}
    assert {len(c.owners) for c in encoders.values()} == {6}
    assert all(c.shared for c in encoders.values())
    assert components["classifier/mrna+image+clinical"].owners == ("brca-1", "lusc-1", "lihc-1")
    alone = {name for name, c in components.items() if len(c.owners) == 1}
    assert alone == {f"classifier/{c}" for c in ("mrna+image", "image+clinical", "mrna+clinical")}
