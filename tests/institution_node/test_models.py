from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from federation import names
from institution_node.errors import WeightsError
from institution_node.models import DropoutMasks, InstitutionModel
from security.privacy.randomness import SeededRandomness
from tests.institution_node.cases import Case, case


def model_of(made: Case) -> InstitutionModel:
    return InstitutionModel(made.plan, made.layout, made.institution)


def inputs(made: Case, model: InstitutionModel) -> list[torch.Tensor]:
    return [torch.from_numpy(made.features[m]) for m in model.modalities]


@pytest.mark.parametrize("institution", ["brca-1", "brca-2", "brca-3", "lihc-3"])
@pytest.mark.parametrize("heads", [True, False])
def test_load_and_store_keep_every_bit(institution: str, heads: bool) -> None:
    made = case(institution, model={"heads": heads})
    model = model_of(made)
    odd = {n: np.frombuffer(np.random.default_rng(1).bytes(4 * w.size), "<f4") for n, w in made.weights.items()}
    model.load(odd)
    assert {n: v.tobytes() for n, v in model.store().items()} == {n: v.tobytes() for n, v in odd.items()}
    assert set(odd) == set(made.layout.owned(institution))


def test_parameters_are_the_tensors_of_the_layout_in_its_order() -> None:
    made = case()
    model = model_of(made)
    model.load(made.weights)
    component = made.layout.components["encoder/mrna"]
    start = 0
    stack = model.stack("encoder/mrna")
    for tensor in component.tensors:
        parameter = stack.layers.get_parameter(tensor.name)
        size = parameter.numel()
        expected = made.weights["encoder/mrna"][start : start + size].reshape(tensor.shape)
        assert np.array_equal(parameter.detach().numpy(), expected)
        start += size


def test_wrong_missing_and_foreign_weights() -> None:
    made = case()
    model = model_of(made)
    name = "encoder/mrna"
    short: Any = made.weights[name][:-1]
    wide: Any = made.weights[name].astype(np.float64)
    for wrong in (short, wide):
        with pytest.raises(WeightsError, match="encoder/mrna"):
            model.load({**made.weights, name: wrong})
    with pytest.raises(WeightsError, match="missing"):
        model.load({n: v for n, v in made.weights.items() if n != name})
    model.load({**made.weights, "classifier/mrna+image": np.zeros(3, np.float32)})


def test_a_heads_loss_trains_the_head_alone() -> None:
    made = case()
    model = model_of(made)
    model.load(made.weights)
    model(inputs(made, model))["image"].sum().backward()
    moved = {n for n, part in model.slices.items() if bool(model.gradients_flat[part].any())}
    assert moved == {"classifier/image"}


def test_a_uni_modal_institutions_classifier_trains_its_encoder() -> None:
    made = case("brca-3")
    model = model_of(made)
    model.load(made.weights)
    assert model.heads == ()
    model(inputs(made, model))["mrna"].sum().backward()
    moved = {n for n, part in model.slices.items() if bool(model.gradients_flat[part].any())}
    assert moved == {"encoder/mrna", "classifier/mrna"}


def test_every_component_is_used_or_opacus_would_refuse_the_model() -> None:
    for institution in case().layout.combinations:
        made = case(institution)
        model = model_of(made)
        model.load(made.weights)
        sum(logits.sum() for logits in model(inputs(made, model)).values()).backward()
        assert all(bool(model.gradients_flat[part].any()) for part in model.slices.values())


def test_modalities_may_be_called_like_methods_of_torch_containers() -> None:
    made = case()
    renamed = made.plan.model_copy(
        update={
            "modalities": tuple(
                m.model_copy(update={"name": n})
                for m, n in zip(made.plan.modalities, ("keys", "items", "training"), strict=True)
            ),
            "institutions": tuple(
                i.model_copy(update={"modalities": ("keys", "items", "training")}) for i in made.plan.institutions
            ),
        }
    )
    from federation.layout import layout

    model = InstitutionModel(renamed, layout(renamed, {"keys": 2, "items": 2, "training": 2}), "brca-1")
    assert set(model([torch.zeros(1, 2)] * 3)) == {"keys+items+training", "keys", "items", "training"}


@settings(max_examples=20, deadline=None)
@given(st.floats(0.0, 0.95), st.integers(0, 2**32))
def test_dropout_keeps_the_mean_and_drops_the_share(dropout: float, seed: int) -> None:
    masks = DropoutMasks(SeededRandomness(seed, "test"), dropout, torch.device("cpu"))
    masks.draw(200, 50)
    values = masks.apply(torch.ones(200, 50))
    dropped = float((values == 0).double().mean())
    assert abs(dropped - dropout) < 0.03
    assert float(values.max()) == pytest.approx(1 / (1 - round(dropout * 65536) / 65536))


def test_dropout_masks_of_layers_are_disjoint_and_used_up() -> None:
    made = case(model={"dropout": 0.5})
    model = model_of(made)
    model.load(made.weights)
    masks = DropoutMasks(SeededRandomness(1, "test"), 0.5, torch.device("cpu"))
    x = inputs(made, model)
    first, second = model(x, masks), model(x, masks)
    assert masks._used == model.dropped_units
    for subset in first:
        assert not torch.equal(first[subset], second[subset])
        assert torch.equal(model(x)[subset], model(x)[subset])
    assert names.classifier("mrna") in model.components
