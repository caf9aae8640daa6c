from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from federation.model_archive import (
    CARD,
    MANIFEST,
    PLAN,
    SCHEMA,
    WEIGHTS,
    ModelArchiveError,
    component_digest,
    manifest_digest,
    pack,
    unpack,
    with_private,
)
from security.errors import ConsiliumError
from tests.federation.models import example_model
from tests.plans import example_plan

PRIVATE = "classifier/mrna+image"


@pytest.mark.parametrize("without", [(), (PRIVATE, "encoder/image")])
def test_what_is_packed_comes_back_bit_for_bit(without: tuple[str, ...]) -> None:
    model = example_model(without)
    files = pack(model)
    found = unpack(files, manifest_digest(files))
    assert (found.plan, found.schema, found.round) == (model.plan, model.schema, model.round)
    assert found.temperatures == model.temperatures
    assert {n: v.tobytes() for n, v in found.components.items()} == {
        n: v.tobytes() for n, v in model.components.items()
    }
    assert pack(found) == files  # one model, one set of bytes, one digest
    assert "encoder/mrna/0.weight" in load(files[WEIGHTS])


def test_the_card_says_what_the_data_was_and_may_be_edited() -> None:
    files = pack(example_model(), {"mrna": {"accuracy": 0.625}, "image": {"auroc": 0.5}})
    card = files[CARD].decode()
    assert "Synthetic data" in card
    assert "| mrna | 0.625 | – |" in card
    assert "Private" not in card
    unpack({**files, CARD: b"our own words"})
    unpack({name: data for name, data in files.items() if name != CARD})


def test_private_components_are_merged_and_marked() -> None:
    whole = example_model()
    shared = example_model([PRIVATE])
    merged = with_private(shared, {PRIVATE: whole.components[PRIVATE]}, {"mrna+image": 2.5})
    files = pack(merged)
    found = unpack(files)
    assert found.private == (PRIVATE,)
    assert found.temperatures["mrna+image"] == 2.5
    assert found.components.keys() == whole.components.keys()
    assert f"Private: `{PRIVATE}`" in files[CARD].decode()


@settings(max_examples=120, deadline=None)
@given(st.sampled_from([WEIGHTS, SCHEMA, PLAN, MANIFEST]), st.data())
def test_no_altered_byte_goes_unnoticed(name: str, data: st.DataObject) -> None:
    files = pack(example_model())
    name_digest = manifest_digest(files)
    place = data.draw(st.integers(0, len(files[name]) - 1))
    flip = data.draw(st.integers(1, 255))
    altered = bytearray(files[name])
    altered[place] ^= flip
    with pytest.raises(ConsiliumError):
        unpack({**files, name: bytes(altered)}, name_digest)
    with pytest.raises(ConsiliumError):
        unpack({**files, name: files[name][:place]}, name_digest)


@pytest.mark.parametrize("name", [WEIGHTS, SCHEMA, PLAN, MANIFEST])
def test_a_missing_file_is_named(name: str) -> None:
    files = pack(example_model())
    del files[name]
    with pytest.raises(ModelArchiveError, match="is missing") as refusal:
        unpack(files)
    assert refusal.value.place == name


def test_files_of_two_models_do_not_mix() -> None:
    one, other = pack(example_model()), pack(example_model(seed=2))
    for name in (WEIGHTS, PLAN):
        with pytest.raises(ModelArchiveError, match="not what the manifest names"):
            unpack({**one, name: other[name]})
    with pytest.raises(ModelArchiveError, match="another model"):
        unpack(other, manifest_digest(one))


def test_a_schema_with_other_numbers_is_refused() -> None:
    files = pack(example_model())
    schema = files[SCHEMA].replace(b'"mean":0.0', b'"mean":0.5', 1)
    assert schema != files[SCHEMA]
    with pytest.raises(ModelArchiveError, match="not what the manifest names"):
        unpack({**files, SCHEMA: schema})


def test_a_manifest_in_another_layout_is_refused_or_one_model_had_two_names() -> None:
    files = pack(example_model())
    again = json.dumps(json.loads(files[MANIFEST]), sort_keys=True, indent=2).encode()
    with pytest.raises(ModelArchiveError, match="not a manifest"):
        unpack({**files, MANIFEST: again})


def edited(change: Callable[[dict[str, Any]], object]) -> dict[str, bytes]:
    files = pack(example_model())
    manifest = json.loads(files[MANIFEST])
    change(manifest)
    text = json.dumps(manifest, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
    return {**files, MANIFEST: text.encode()}


MANIFESTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "another format": lambda m: m.update(format=2),
    "another round": lambda m: m.update(round=10**6),
    "a round that is no number": lambda m: m.update(round=True),
    "other classes": lambda m: m.update(classes=["early", "never"]),
    "real instead of synthetic": lambda m: m.update(data="real"),
    "a component of another plan": lambda m: m["components"].update({"encoder/sound": "0" * 64}),
    "a component taken out": lambda m: m["components"].pop("encoder/mrna"),
    "no components": lambda m: m.update(components={}),
    "components as a list": lambda m: m.update(components=[]),
    "no temperature": lambda m: m["temperatures"].pop("mrna"),
    "temperature zero": lambda m: m["temperatures"].update(mrna=0.0),
    "temperature as text": lambda m: m["temperatures"].update(mrna="1"),
    "a private component that is not there": lambda m: m.update(private=["encoder/sound"]),
    "a key too many": lambda m: m.update(note="hello"),
    "a key too few": lambda m: m.pop("private"),
    "digest of another tensor": lambda m: m["components"].update({"encoder/mrna": "0" * 64}),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_that_do_not_fit(name: str) -> None:
    with pytest.raises(ModelArchiveError):
        unpack(edited(MANIFESTS[name]))


def test_an_untouched_manifest_passes_the_same_way() -> None:
    """So that it is the change that the refusals above are about, not the way in which it was made."""
    untouched = edited(lambda m: None)
    assert untouched == pack(example_model())
    assert unpack(untouched).components.keys() == example_model().components.keys()


@pytest.mark.parametrize("text", [b"", b"null", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"format": 1}'])
def test_things_that_are_no_manifest(text: bytes) -> None:
    with pytest.raises(ModelArchiveError):
        unpack({**pack(example_model()), MANIFEST: text})


def weights_with(change: Callable[[dict[str, Any]], object]) -> dict[str, bytes]:
    files = pack(example_model())
    tensors = load(files[WEIGHTS])
    change(tensors)
    return {**files, WEIGHTS: save(tensors)}


WEIGHT: str = "encoder/mrna/0.weight"
TENSORS: dict[str, Callable[[dict[str, Any]], object]] = {
    "missing": lambda t: t.pop(WEIGHT),
    "too many": lambda t: t.update({"encoder/mrna/9.weight": t[WEIGHT]}),
    "transposed": lambda t: t.update({WEIGHT: np.ascontiguousarray(t[WEIGHT].T)}),
    "float64": lambda t: t.update({WEIGHT: t[WEIGHT].astype(np.float64)}),
    "other values": lambda t: t.update({WEIGHT: t[WEIGHT] + np.float32(1)}),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_do_not_fit(name: str) -> None:
    with pytest.raises(ModelArchiveError) as refusal:
        unpack(weights_with(TENSORS[name]))
    assert refusal.value.place == WEIGHTS


def test_a_model_that_is_not_whole_is_not_packed() -> None:
    model = example_model()
    vector = model.components["encoder/mrna"]
    bad: list[Any] = [vector[:-1], vector.astype(np.float64), np.full_like(vector, np.nan)]
    for wrong in bad:
        with pytest.raises(ModelArchiveError, match="encoder/mrna"):
            pack(replace(model, components={**model.components, "encoder/mrna": wrong}))
    with pytest.raises(ModelArchiveError, match="temperature"):
        pack(replace(model, temperatures={}))
    with pytest.raises(ModelArchiveError, match="do not fit"):
        pack(replace(model, round=example_plan().rounds + 1))


def test_a_components_digest_is_of_its_little_endian_bytes() -> None:
    vector = np.array([1.0, -2.0], np.float32)
    # SHA-256 of 0000803f000000c0, by coreutils' sha256sum
    assert component_digest(vector) == component_digest(vector.astype(">f4"))
    assert component_digest(vector) == "ee4ac73c2bd27756ab82780f27c73a7bc4d3f0bb6acb37e008bc27eccd7e588b"
