from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from federation import names
from federation.model_archive import Model
from institution_node.inference import NumpyModel, log_softmax
from institution_node.models import InstitutionModel
from tests.federation.models import example_model


@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh"])
def test_numpy_gives_what_torch_gives(activation: str) -> None:
    model = example_model(model={"activation": activation, "classifier_hidden": (16, 5)})
    machine = NumpyModel(model)
    generator = np.random.default_rng(0)
    features = {m: generator.normal(size=(9, model.schema.width(m))).astype(np.float32) for m in machine.modalities}
    encodings = {m: machine.encode(m, x) for m, x in features.items()}
    for institution in model.plan.roster:
        there = InstitutionModel(model.plan, model.layout, institution)
        there.load(model.components)
        there.eval()
        with torch.inference_mode():
            expected = there([torch.from_numpy(features[m]) for m in there.modalities])
        for subset, logits in expected.items():
            found = machine.logits(subset, encodings)
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, logits.numpy(), atol=1e-6)
            temperature = model.temperatures[subset]
            calibrated = torch.log_softmax(logits.double() / temperature, dim=1).numpy()
            np.testing.assert_allclose(machine.log_probabilities(subset, encodings), calibrated, atol=1e-6)


def test_a_blend_is_the_normalised_mean_of_log_probabilities() -> None:
    model: Model = example_model()
    machine = NumpyModel(model)
    generator = np.random.default_rng(1)
    encodings = {
        m: machine.encode(m, generator.normal(size=(4, model.schema.width(m))).astype(np.float32))
        for m in machine.modalities
    }
    blended = np.exp(machine.blend(["mrna", "image"], encodings))
    np.testing.assert_allclose(blended.sum(axis=1), np.ones(4))
    one, other = (np.exp(machine.log_probabilities(m, encodings)) for m in ("mrna", "image"))
    product = one * other
    expected = np.sqrt(product) / np.sqrt(product).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(blended, expected)
    np.testing.assert_allclose(
        machine.blend(["mrna+image"], encodings), machine.log_probabilities("mrna+image", encodings)
    )
    assert set(machine.subsets) == {names.component_subset(c) for c in model.components if c.startswith("classifier/")}


def test_log_softmax_stands_huge_logits() -> None:
    np.testing.assert_allclose(log_softmax(np.array([[1e4, -1e4], [0.0, 0.0]])), [[0.0, -2e4], [np.log(0.5)] * 2])


def test_staging_needs_no_torch() -> None:
    code = "import sys; import institution_node.predict, institution_node.model_folder; print('torch' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "proto")])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "False"
