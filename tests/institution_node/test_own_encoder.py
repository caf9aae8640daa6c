"""Encoders of other kinds at an institution: what trains, and what is refused before it does."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from federation.model_archive import Model, pack, unpack
from federation.plan import EncoderTensor
from institution_node.errors import EncoderError
from institution_node.inference import NumpyModel
from institution_node.models import InstitutionModel
from institution_node.own_encoder import check_encoders, declare
from institution_node.private_training import PrivateGradients, PrivateTrainer
from institution_node.training import LocalTrainer
from security.privacy.randomness import SeededRandomness
from tests.federation.models import example_model
from tests.institution_node.cases import case
from tests.own_encoders import EXAMPLE, KIND, TENSORS, with_kind

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")


def _example() -> Any:
    spec = importlib.util.spec_from_file_location("gated_attention_here", EXAMPLE / "gated_attention" / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.GatedAttention


GATED = _example()


def own_case(modality: str = "image", **changes: Any) -> tuple[Any, Any]:
    """A case whose encoder of images is of another kind, and its layout."""
    from federation.layout import layout
    from tests.institution_node.cases import WIDTHS

    made = case("brca-1", **changes)
    plan = with_kind(made.plan, modality)
    parts = layout(plan, WIDTHS)
    weights = {name: parts.components[name].initial(plan.seed) for name in parts.owned("brca-1")}
    return plan, (parts, made.features, made.labels, weights)


def trainer(kind: type[LocalTrainer] = LocalTrainer, **changes: Any) -> tuple[LocalTrainer, Mapping[str, Any]]:
    plan, (parts, features, labels, weights) = own_case(**changes)
    rows = range(labels.size)
    return kind(plan, parts, "brca-1", features, labels, rows, (), "cpu", encoders={KIND: GATED}), weights


def test_it_begins_at_the_plans_weights_and_trains() -> None:
    made, weights = trainer(training={"local_steps": 30, "learning_rate": 0.01}, patients=60)
    before = made.evaluate(weights).losses["image"].training
    trajectory = made.train(weights, {}, 0.01, SeededRandomness(1, "test"))
    after = {name: weights[name] + update for name, update in trajectory.updates.items()}
    assert np.all(trajectory.updates["encoder/image"] != 0.0) or np.any(trajectory.updates["encoder/image"] != 0.0)
    assert made.evaluate(after).losses["image"].training < before
    again, _ = trainer(training={"local_steps": 30, "learning_rate": 0.01}, patients=60)
    repeated = again.train(weights, {}, 0.01, SeededRandomness(1, "test"))
    assert all(np.array_equal(u, repeated.updates[name]) for name, u in trajectory.updates.items())


def test_it_computes_what_its_module_computes_by_the_plans_tensors() -> None:
    plan, (parts, features, _, weights) = own_case()
    model = InstitutionModel(plan, parts, "brca-1", encoders={KIND: GATED})
    model.load(weights)
    assert all(np.array_equal(model.store()[name], vector) for name, vector in weights.items())
    module = GATED(4, 16, {"group": 2.0, "hidden": 4.0})
    start, flat = 0, torch.from_numpy(weights["encoder/image"])
    for tensor in parts.components["encoder/image"].tensors:
        module.get_parameter(tensor.name).data = flat[start : start + tensor.size].view(tensor.shape)
        start += tensor.size
    encoded = model.encode([torch.from_numpy(features[m]) for m in model.modalities], None)[1]
    torch.testing.assert_close(encoded, module(torch.from_numpy(features["image"])))


def test_dropout_of_its_encoding_is_the_plans() -> None:
    plan, (parts, _, _, _) = own_case(model={"dropout": 0.5})
    model = InstitutionModel(plan, parts, "brca-1", encoders={KIND: GATED})
    plain = InstitutionModel(case("brca-1").plan, case("brca-1").layout, "brca-1")
    assert model.dropped_units == plain.dropped_units - 8  # an encoding, and no hidden layer


def test_each_patients_gradient_is_clipped_under_privacy() -> None:
    changes: dict[str, Any] = {
        "training": {"class_weights": "none", "optimiser": "sgd"},
        "differential_privacy": {"enabled": True, "max_gradient_norm": 0.3},
        "model": {"dropout": 0.0},
        "patients": 8,
    }
    made, weights = trainer(PrivateTrainer, **changes)
    made.model.load(weights)
    source = PrivateGradients(made, SeededRandomness(0, "test"))
    with source:
        source.clipped_sum(np.arange(8))
    found = made.model.gradients_flat.numpy().copy()
    naive = np.zeros_like(found)
    for row in range(8):
        one, _ = trainer(**changes)
        one.model.load(weights)
        inputs, labels = one.batch(np.array([row]))
        logits = one.model(inputs)
        loss = torch.stack([functional.cross_entropy(each, labels) for each in logits.values()]).sum()
        one.model.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch ships no type for it
        gradient = one.model.gradients_flat.numpy()
        naive += gradient * min(1.0, 0.3 / np.linalg.norm(gradient))
    np.testing.assert_allclose(found, naive, atol=2e-6)


def test_a_finished_model_is_used_by_its_code_alone() -> None:
    plain = example_model()
    plan = with_kind(plain.plan)
    from federation.layout import layout

    parts = layout(plan, plain.schema.widths)
    weights = {name: parts.components[name].initial(7) for name in plain.components}
    model = Model(plan, plain.schema, weights, 1, plain.temperatures)
    model = unpack(pack(model))
    features = np.random.default_rng(0).normal(size=(5, plain.schema.width("image"))).astype(np.float32)
    there = InstitutionModel(plan, parts, "brca-1", encoders={KIND: GATED})
    there.load(model.components)
    wanted = there.stacks[there.components.index("encoder/image")](torch.from_numpy(features), None)
    found = NumpyModel(model, {KIND: GATED}).encode("image", features)
    np.testing.assert_allclose(found, wanted.detach().numpy(), atol=1e-6)
    with pytest.raises(EncoderError, match="whose code is not in the model") as told:
        NumpyModel(model).encode("image", features)
    assert "--policy" in told.value.remedy
    assert NumpyModel(model).encode("mrna", np.zeros((1, plain.schema.width("mrna")), np.float32)).shape == (1, 16)


def test_what_a_factory_makes_is_declared() -> None:
    assert declare(GATED, 7, 16, {"group": 2.0, "hidden": 4.0}) == TENSORS
    linear = declare(lambda inputs, width, options: nn.Linear(inputs, width), 7, 16, {})
    assert linear == (
        EncoderTensor(name="weight", shape=(16, 0)),
        EncoderTensor(name="bias", shape=(16,), init="zeros"),
    )
    with pytest.raises(EncoderError, match="neither of a fixed size"):
        declare(lambda inputs, width, options: nn.Linear(inputs + 1, width), 7, 16, {})


# -- what is refused -----------------------------------------------------------------------------------------------


class Linear(nn.Module):
    """One layer, to be spoilt."""

    def __init__(self, inputs: int, width: int, options: Mapping[str, float | str]) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, width)

    def made(self, features: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.layer(features)
        return made

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.made(features)


class Normalised(Linear):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.norm = nn.BatchNorm1d(16, affine=False)


class Dropping(Linear):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.drop = nn.Dropout(0.1)


class Double(Linear):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.double()


class Frozen(Linear):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.layer.bias.requires_grad = False


class Shared(Linear):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.second = self.layer


class Wide(Linear):
    def __init__(self, inputs: int, width: int, options: Mapping[str, float | str]) -> None:
        super().__init__(inputs, width + 1, options)


class Longer(Linear):
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.made(features)[:, :-1]


class Endless(Linear):
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.made(features) / 0.0


class Unused(Linear):
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return functional.linear(features, self.layer.weight)


class Random(Linear):
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return functional.dropout(self.made(features), 0.5, training=True)


class Evaluating(Linear):
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.made(features) * (1.0 if self.training else 2.0)


class Projecting(Linear):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.hidden_constant = [torch.randn(16)]

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.made(features) * self.hidden_constant[0]


class Mixing(Linear):
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        made = self.made(features)
        return made - made.mean(dim=0)


class Remembering(Linear):
    """Writes the first batch's mean into its parameters, as normalisations do that initialise themselves by data."""

    begun = False

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if not self.begun:
            self.begun = True
            with torch.no_grad():
                self.layer.bias.sub_(self.made(features).mean(dim=0))
        return self.made(features)


class Caching(Linear):
    """Keeps its first patients in a buffer, made where they are first seen."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if not hasattr(self, "seen"):
            self.register_buffer("seen", features.clone(), persistent=False)
        return self.made(features)


class Failing(Linear):
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError("in a package")


DECLARED = (EncoderTensor(name="layer.weight", shape=(16, 0)), EncoderTensor(name="layer.bias", shape=(16,)))

BAD: list[tuple[Callable[..., Any], str]] = [
    (lambda *_: "text", "returns a str"),
    (lambda *_: 1 / 0, "its code failed: ZeroDivisionError"),
    (Normalised, "keeps 'norm.running_mean'"),
    (Dropping, "dropout of its own"),
    (Remembering, "changes what it keeps"),
    (Caching, "changes what it keeps"),
    (Double, "torch.float64"),
    (Frozen, "not trained"),
    (Shared, "one and the same"),
    (Wide, r"\(17,\) here and \(16,\) in the plan"),
    (Longer, r"torch.float32\[5, 15\]"),
    (Endless, "NaN or infinite"),
    (Unused, "layer.bias has no finite gradient"),
    (Random, "draws at random"),
    (Evaluating, "otherwise in evaluation"),
    (Projecting, "built twice"),
    (Mixing, "depends on the others"),
    (Failing, "its code failed: ZeroDivisionError: in a package"),
]


@pytest.mark.parametrize(("factory", "message"), BAD, ids=[message for _, message in BAD])
def test_attack_or_mistake_in_an_encoder_is_refused_before_the_run(factory: Callable[..., Any], message: str) -> None:
    plan = with_kind(case("brca-1").plan, kind="spoilt", options=(), tensors=DECLARED)
    check_encoders(plan, "brca-1", {"spoilt": Linear})
    with pytest.raises(EncoderError, match=message) as told:
        check_encoders(plan, "brca-1", {"spoilt": factory})
    assert told.value.remedy
    assert told.value.place == "spoilt"


def test_building_it_moves_no_generator() -> None:
    plan = with_kind(case("brca-1").plan, kind="spoilt", options=(), tensors=DECLARED)
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    check_encoders(plan, "brca-1", {"spoilt": Linear})
    assert torch.equal(torch.rand(1), wanted)


def test_without_its_code_nothing_is_built() -> None:
    plan, (parts, _, _, _) = own_case()
    for step in (lambda: InstitutionModel(plan, parts, "brca-1"), lambda: check_encoders(plan, "brca-1", {})):
        with pytest.raises(EncoderError, match="whose code was not given"):
            step()
    check_encoders(plan, "brca-3", {})  # which holds no images


def test_layers_that_opacus_does_not_know_are_refused_under_privacy_alone() -> None:
    class Own(nn.Module):
        def __init__(self, inputs: int, width: int, options: Mapping[str, float | str]) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(inputs, width))

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return features @ self.scale

    tensors = (EncoderTensor(name="scale", shape=(0, 16)),)
    plain = with_kind(case("brca-1").plan, kind="own", options=(), tensors=tensors)
    check_encoders(plain, "brca-1", {"own": Own})
    private = case(
        "brca-1", training={"class_weights": "none"}, differential_privacy={"enabled": True, "epsilon": 1.0}
    ).plan
    with pytest.raises(EncoderError, match="Opacus does not know Own"):
        check_encoders(with_kind(private, kind="own", options=(), tensors=tensors), "brca-1", {"own": Own})
    check_encoders(with_kind(private), "brca-1", {KIND: GATED})
