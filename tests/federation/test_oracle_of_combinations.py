"""Whole rounds with patients of several combinations against docs/protocol.md, "Patients of several combinations",
worked out a second time: weights, steps, DGB's normalisation and losses, without any of the program's training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.nn import functional

from federation.blending import UNIFORM_ROUNDS
from tests.plans import with_combinations
from tests.small_federation import SmallFederation, finished, small_plan

FULL = "mrna+image+clinical"
ROUNDS, STEPS, ETA = UNIFORM_ROUNDS + 2, 2, 0.1
LISTS = (("mrna", "mrna+image", FULL), ("mrna", "mrna+image", FULL), ("mrna+image", FULL), ("mrna", "mrna+image", FULL))
Weights = Mapping[str, npt.NDArray[np.float64]]


@cache
def ran(heads: bool) -> SmallFederation:
    training = {"optimiser": "sgd", "class_weights": "none", "local_steps": STEPS, "batch_size": 1000,
                "weight_decay": 0.0, "proximal": 0.0, "gradient_clip": 0.0, "learning_rate": ETA,
                "count_noise": 0.0}  # fmt: skip
    plan = small_plan(
        7, rounds=ROUNDS, training=training, model={"dropout": 0.0, "heads": heads, "activation": "tanh"},
        blending={"clamp": False, "kappa": "subsets"}, proximity={"kind": "size"}, server_optimiser={"kind": "fedavg"},
        evaluation={"bins": 5, "patience": 0},
    )  # fmt: skip
    return finished(with_combinations(plan, dict(zip(plan.roster, LISTS, strict=False))))


class Patient:
    def __init__(self, own: str, features: Mapping[str, torch.Tensor], label: torch.Tensor) -> None:
        self.own, self.features, self.label = own, features, label
        self.held = own.split("+")

    def trains(self, component: str, heads: bool) -> bool:
        kind, _, subset = component.partition("/")
        inside = set(subset.split("+")) <= set(self.held)
        return inside if kind == "encoder" or heads else subset == self.own


def patients(federation: SmallFederation, name: str) -> tuple[list[Patient], list[Patient]]:
    """Training and validation patients, whose inputs are taken from the tables anew."""
    work, data = federation.works[name], federation.data[name]
    assert work._prepared is not None
    trainer: Any = work._prepared.trainer
    held = trainer.model.modalities
    groups = []
    for rows, values, labels in (
        (work._train_rows, trainer.train_features, trainer.train_labels),
        (work._validation_rows, trainer.validation_features, torch.from_numpy(trainer.validation_labels)),
    ):
        own = [data.combinations[k] if data.combinations else "mrna" for k in rows.tolist()]
        groups.append(
            [
                Patient(c, {m: values[held.index(m)][k].double() for m in c.split("+")}, labels[k])
                for k, c in enumerate(own)
            ]
        )
    return groups[0], groups[1]


def stack(flat: torch.Tensor, layers: list[tuple[int, int]], values: torch.Tensor, *, last: bool) -> torch.Tensor:
    """tanh layers; after the last of a classifier, nothing. `layers`: (outputs, inputs)."""
    at = 0
    for k, (out, inputs) in enumerate(layers):
        weight = flat[at : at + out * inputs].reshape(out, inputs)
        bias = flat[at + out * inputs : at + out * inputs + out]
        at += out * inputs + out
        values = weight @ values + bias
        if k < len(layers) - 1 or not last:
            values = torch.tanh(values)
    assert at == len(flat)
    return values


def losses_of(
    patient: Patient, w: Mapping[str, torch.Tensor], shapes: Mapping[str, list[tuple[int, int]]], heads: bool
) -> dict[str, torch.Tensor]:
    """By subset: its own classifier on its encodings, smaller ones on detached encodings."""
    codes = {m: stack(w[f"encoder/{m}"], shapes[f"encoder/{m}"], patient.features[m], last=False) for m in patient.held}
    found = {}
    for component in (c for c in w if c.startswith("classifier/") and patient.trains(c, heads)):
        subset = component.partition("/")[2]
        inputs = [codes[m] if subset == patient.own else codes[m].detach() for m in subset.split("+")]
        logits = stack(w[component], shapes[component], torch.cat(inputs), last=True)
        found[subset] = functional.cross_entropy(logits, patient.label)
    return found


def normalised(scores: Mapping[str, float | None], combination: str, number: int) -> dict[str, float]:
    """κ·v with κ = |S| over one combination, as if its patients were an institution of their own."""
    modalities = combination.split("+")
    subsets = modalities if len(modalities) == 1 else [*modalities, combination]
    known = {s: b for s in subsets if (b := scores.get(s)) is not None}
    if len(subsets) == 1 or number - 1 < UNIFORM_ROUNDS or not sum(known.values()):
        return dict.fromkeys(subsets, 1.0)
    return {s: len(known) * known[s] / sum(known.values()) if s in known else 1.0 for s in subsets}


@pytest.mark.parametrize("heads", [True, False])
def test_model_and_losses_are_what_the_protocol_says(heads: bool) -> None:
    federation = ran(heads)
    plan, run = federation.plan, federation.run
    records = {r["round"]: r for r in map(json.loads, run.records())}
    people = {name: patients(federation, name) for name in plan.roster}
    prepared = federation.works[plan.roster[0]]._prepared
    assert prepared is not None
    made = prepared.layout.components
    shapes: dict[str, list[tuple[int, int]]] = {
        n: [(int(t.shape[0]), int(t.shape[1])) for t in c.tensors if len(t.shape) == 2] for n, c in made.items()
    }
    listed = {name: set(plan.combinations(name)) for name in plan.roster}
    everything = {c for held in listed.values() for c in held}
    wanted = {f"classifier/{c}" for c in everything} | {f"encoder/{m}" for m in FULL.split("+")}
    wanted |= {f"classifier/{m}" for m in FULL.split("+")} if heads else set()
    assert set(made) == set(run.state.components) == wanted
    w = {name: component.initial(plan.seed).astype(np.float64) for name, component in made.items()}
    owned = {i: [n for n in made if any(p.trains(n, heads) for p in people[i][0])] for i in plan.roster}
    n = {(i, c): sum(p.trains(c, heads) for p in people[i][0]) for i in plan.roster for c in owned[i]}
    total = {c: sum(v for (_, each), v in n.items() if each == c) for c in made}
    scores: dict[str, float | None] = {}
    uneven = False
    for number in range(1, ROUNDS + 1):
        delta = {c: np.zeros_like(v) for c, v in w.items()}
        for i in plan.roster:
            factors = {}
            for c in owned[i]:
                kind, _, subset = c.partition("/")
                by = {k: normalised(scores, k, number) for k in listed[i]}
                if kind == "classifier":
                    factors[c] = by[subset][subset] if subset in listed[i] else 1.0
                else:
                    each = [v[subset] for v in by.values() if subset in v]
                    factors[c] = sum(each) / len(each)
            uneven |= any(abs(f - 1.0) > 1e-3 for f in factors.values())
            local = {c: torch.tensor(w[c]) for c in owned[i]}
            for _ in range(STEPS):
                leaves = {c: v.detach().requires_grad_() for c, v in local.items()}
                every = [loss for p in people[i][0] for loss in losses_of(p, leaves, shapes, heads).values()]
                torch.stack(every).sum().backward()  # type: ignore[no-untyped-call]  # torch ships no type
                for c, leaf in leaves.items():
                    assert leaf.grad is not None
                    local[c] = (leaf - ETA * factors[c] * leaf.grad / n[i, c]).detach()
            for c in owned[i]:
                delta[c] += n[i, c] / total[c] * (local[c].numpy() - w[c])
        w = {c: v + delta[c] for c, v in w.items()}
        blending = records[number]["blending"]
        leaves = {c: torch.tensor(v) for c, v in w.items()}
        found: dict[str, list[tuple[int, float, float]]] = {}
        for training, validation in people.values():
            means = [[losses_of(p, leaves, shapes, heads) for p in some] for some in (training, validation)]
            for subset in {s for p in means[0] for s in p}:
                one, other = (float(np.mean([p[subset].item() for p in some if subset in p])) for some in means)
                found.setdefault(subset, []).append((sum(subset in p for p in means[0]), one, other))
        assert {s for s in found if f"classifier/{s}" in made} == set(blending)
        for subset, rows in found.items():
            weight = np.array([r[0] for r in rows], float)
            for k, name in ((1, "training_loss"), (2, "validation_loss")):
                expected = float((weight * [r[k] for r in rows]).sum() / weight.sum())
                assert blending[subset][name] == pytest.approx(expected, abs=2e-5), (number, subset, name)
        scores |= {s: figures["score"] for s, figures in blending.items()}
    assert uneven  # DGB did something
    for name, vector in w.items():
        np.testing.assert_allclose(federation.weights(name), vector, rtol=1e-3, atol=2e-5, err_msg=name)
        assert np.abs(vector - made[name].initial(plan.seed)).max() > 1e-3
