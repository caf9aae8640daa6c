"""An institution's side of sum B of one round: its losses at the published model, proximity, metrics, clip counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from federation import names, proximity
from federation.blending import advance
from federation.losses import LossSums
from federation.settings import blending_settings, proximity_settings
from institution_node.noise import add_noise
from institution_node.prepared import Prepared
from institution_node.statistics import (
    Divisors,
    Encoded,
    LossPair,
    encode_clipped,
    encode_losses,
    encode_metrics,
    encode_subgroups,
    rescaled,
)
from institution_node.trainer import Evaluation, Trainer
from institution_node.update_work import UpdateWork
from security.secure_sum.spec import Part
from security.secure_sum.upload import ArrayWords, WordSource


class StatisticsWork:
    """Sum B of one round at one institution.

    Args:
        prepared: of the run.
        number: of the round, from 1.
        updates: the round's sum A, as far as this institution followed it.

    Attributes:
        evaluation: of the published w(t+1); None: the trainer makes it when it is needed.
    """

    def __init__(self, prepared: Prepared, number: int, updates: UpdateWork) -> None:
        self._prepared, self._context = prepared, prepared.context
        self._number, self._updates = number, updates
        self._before = self._context.recall()
        self._last = self._losses_before()
        self.evaluation: Evaluation | None = None

    @property
    def trainer(self) -> Trainer:
        """On this institution's patients."""
        return self._prepared.trainer

    def weights(self) -> dict[str, npt.NDArray[np.float32]]:
        """Every component that the institution owns, at w(t+1) once sum A was followed."""
        return self._prepared.weights()

    def _losses_before(self) -> Mapping[str, tuple[float, float]]:
        """What the change of a round is counted from: the losses at the w(t) that its opening names to everybody.

        Losses at any other model count for nothing, whoever showed it last: Σp·(L − ΔL) would be over institutions at
        different models, and a coordinator that knows what the others' must be would have one's (rule 6). Who was away
        when w(t) was published evaluates it now, so that this sum is over everybody in the cohort too (rule 9).
        """
        prepared, memory = self._prepared, self._before
        if memory.last_model == prepared.model_digest:
            return memory.last_losses
        if self._number == 1 and self._context.plan.blending.horizon > 0:
            return {}
        found = self._divided(prepared.trainer.evaluate(prepared.weights()))
        return {
            s: self._capped(pair.training, pair.validation) for s, pair in found.items() if pair.validation is not None
        }

    def _capped(self, training: float, validation: float) -> tuple[float, float]:
        largest = self._context.plan.proximity.loss_max
        return min(training, largest), min(validation, largest)

    def _divisors(self, evaluation: Evaluation, subset: str) -> Divisors:
        """Of those who have the subset."""
        context, name = self._context, self._context.institution
        if context.private:
            pieces = context.cohorts.ownership.pieces(names.classifier(subset), (name,))
            return Divisors.of_noised(context.patients(pieces), context.plan.training.validation_fraction)
        trained = evaluation.trained(subset, self._prepared.trainer.patients)
        return Divisors(max(1, trained), max(1, evaluation.held(subset)))

    def _divided(self, evaluation: Evaluation) -> dict[str, LossPair]:
        found: dict[str, LossPair] = {}
        for subset, loss in evaluation.losses.items():
            trained = evaluation.trained(subset, self._prepared.trainer.patients)
            found[subset] = rescaled(loss, trained, evaluation.held(subset), self._divisors(evaluation, subset))
        return found

    def sources(self, uploads: tuple[Part, ...]) -> dict[str, WordSource]:
        """The words of some parts."""
        context, prepared = self._context, self._prepared
        plan = context.plan
        evaluation = self.evaluation or self.trainer.evaluate(self.weights())
        losses = self._divided(evaluation)
        encoded: dict[str, Encoded] = {}
        for part in uploads:
            kind, _, name = part.name.partition("/")
            n = len(part.contributors)
            if kind == "losses":
                p = self.proximity(name)
                context.recorder.near(name, p)
                logits, labels = evaluation.logits[name], evaluation.labels_of(name)
                last, divisors = self._last.get(name), self._divisors(evaluation, name)
                encoded[part.name] = encode_losses(plan, losses[name], logits, labels, p, last, divisors, n)
            elif kind == "metrics":
                rows = evaluation.rows_of(context.cohorts.row_combinations(name, context.institution))
                labels, chances = evaluation.labels[rows], evaluation.probabilities[rows]
                encoded[part.name] = encode_metrics(plan, labels, chances, n)
            elif kind == "subgroups":
                places = prepared.groups[name]
                encoded[part.name] = encode_subgroups(
                    plan, name, places, evaluation.labels, evaluation.probabilities, n
                )
            else:
                components = context.cohorts.clip_groups(prepared.setup)[name]
                encoded[part.name] = encode_clipped([self._updates.clipped.get(c, 0) for c in components], n)
        made: dict[str, WordSource] = {n: ArrayWords(self._with_noise(n, e)) for n, e in encoded.items()}
        self._keep(losses)
        return made

    def _with_noise(self, part: str, e: Encoded) -> npt.NDArray[np.uint64]:
        context = self._context
        if context.private and e.sensitivity > 0:
            multiplier = context.plan.differential_privacy.statistics_noise
            rng = context.randomness.child(f"noise/{self._number}/{part}")
            event = add_noise(e.words, e.encoding, e.sensitivity, multiplier, rng)
            context.charges.spend(part, self._number, event)
        spent = context.charges.spent()
        if spent is not None:
            context.recorder.spent(*spent)
        return e.words

    def proximity(self, subset: str) -> float:
        """p_i of a subset (METHOD.md, "PCW")."""
        context, updates = self._context, self._updates
        components = [names.encoder(m) for m in names.modalities_of(subset)] + [names.classifier(subset)]
        size = 0.0
        if context.plan.proximity.kind == "size":
            evaluators = self._prepared.layout.subsets[subset]
            cohort = context.cohorts.name_of(names.classifier(subset), evaluators)
            size = context.share(self._prepared.setup.patients, cohort) if cohort else 0.0
        return proximity.proximity(proximity_settings(context.plan), updates.dots, updates.shares, components, size)

    def _keep(self, by_subset: Mapping[str, LossPair]) -> None:
        """Remembers the losses for the next ΔL, and advances this institution's own blending: from how the round found
        them, so that another attempt of it does not advance them twice."""
        context, memory = self._context, self._before
        largest = context.plan.proximity.loss_max
        own: dict[str, LossSums] = {}
        kept = dict(self._last)
        for subset, losses in by_subset.items():
            context.recorder.evaluated(subset, losses.training, losses.validation)
            if losses.validation is None or not context.cohorts.moves(subset, self._number):
                continue  # where nothing moved, neither a change nor its absence says anything
            own[subset] = LossSums.contribution(1.0, losses.training, losses.validation, kept.get(subset), largest)
            kept[subset] = self._capped(losses.training, losses.validation)
        settings = replace(blending_settings(context.plan), weight_floor=0.0)
        blending, _ = advance(memory.blending, own, settings)
        at = self._prepared.model_digest
        context.note(replace(context.recall(), last_losses=kept, last_model=at, blending=blending))
