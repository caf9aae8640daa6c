"""An institution's side of sum A of one round: local training, its words, and the model that the opened sum makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from consilium.v1 import round_pb2 as pb

from federation import names
from federation.blending import BlendingSettings, advance, step_weights
from federation.layout import subsets_of
from federation.proximity import ComponentDots
from federation.rounds import ComponentDigests, Figures
from federation.settings import blending_settings, model_encoding, thinning
from federation.thinning import Thinning
from institution_node.encoding import UpdateWords
from institution_node.prepared import Prepared
from institution_node.schedule import learning_rate
from institution_node.trainer import Trainer, Trajectory
from institution_node.updates import ClippedUpdate, ThinnedUpdate, Update, as_array
from security.privacy.positioned_bits import PositionedBits
from security.privacy.randomness import Randomness
from security.secure_sum.errors import TranscriptError
from security.secure_sum.messages import SurvivorList
from security.secure_sum.spec import Part, Sum
from security.secure_sum.upload import WordSource

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class LocalTraining:
    """The K local steps of one round, not yet taken: what studies take for many institutions at once.

    Attributes:
        trainer: on the institution's patients.
        weights: w(t) of every component that it owns.
        step_factors: κ·v by component (METHOD.md, "DGB").
        learning_rate: η of the round.
        rng: of batches and dropout.
        held: components that stay as they are.
    """

    trainer: Trainer
    weights: Mapping[str, Float32]
    step_factors: Mapping[str, float]
    learning_rate: float
    rng: Randomness
    held: frozenset[str]

    def run(self) -> Trajectory[Float32 | Update]:
        """Takes them."""
        return self.trainer.train(self.weights, self.step_factors, self.learning_rate, self.rng, self.held)


class UpdateWork:
    """Sum A of one round at one institution. Trains once; another attempt masks the same vectors anew.

    Args:
        prepared: of the run.
        number: of the round, from 1.
        figures: DGB's, published with the round.

    Attributes:
        updates: δ_i of each component that it owns and that is due in this round; empty before it trained.
        clipped: how many values of each summed component's trajectory were clipped.
        dots: δ_i and δ_G of each summed component; empty before its sum is open.
        shares: this institution's part of each opened sum, in [0, 1].
    """

    def __init__(self, prepared: Prepared, number: int, figures: Figures) -> None:
        self.updates: dict[str, Update] = {}
        self.clipped: dict[str, int] = {}
        self.dots: dict[str, ComponentDots] = {}
        self.shares: dict[str, float] = {}
        self._prepared, self._context = prepared, prepared.context
        self._number, self._figures = number, figures
        self._trained = False
        self._encoded: dict[str, ClippedUpdate] = {}
        self._private: Mapping[str, Float32] = {}

    def sources(self, uploads: tuple[Part, ...]) -> dict[str, WordSource]:
        """The words of some parts; trains first where that was not done yet."""
        training = self.training()
        if training is not None:
            self.take_trajectory(training, training.run())
        recorder, plan = self._context.recorder, self._context.plan
        made: dict[str, WordSource] = {}
        for part in uploads:
            delta = self._encoded.get(part.name)
            if delta is None:
                delta = self._encoded[part.name] = ClippedUpdate(self._sent(part.name), plan.secure_sum.clip)
                self.clipped[part.name] = delta.clipped
                recorder.updated(part.name, delta.norm, delta.clipped)
            alpha = self._prepared.alpha(part.name)
            recorder.weighed(part.name, alpha)
            encoding = model_encoding(plan, len(part.contributors))
            rounding = self._rounding(part.name) if encoding.bits == 16 else None
            made[part.name] = UpdateWords(delta, alpha, encoding, rounding)
        return made

    def take(self, which: Sum, opened: pb.OpenedSum, listed: SurvivorList) -> None:
        """Follows the opened sum to w(t+1).

        Raises:
            TranscriptError: the coordinator's w(t+1) is not what the opened sum gives.
        """
        context, prepared = self._context, self._prepared
        words = {p.part: p.words for p in opened.parts}
        states = ComponentDigests.all_from(opened.components)
        if set(words) != set(states):
            raise TranscriptError("the opened updates and the components made of them are not the same.")
        self.dots, self.shares = {}, {}  # nothing of what an earlier attempt was shown
        for name in sorted(prepared.shared & set(words)):
            encoding = model_encoding(context.plan, len(which.part(name).contributors))
            own = self._encoded.get(name) or (self._sent(name) if name in self.updates else None)
            total, dots = prepared.model.advance(name, words[name], encoding, states[name], own, self._thinning(name))
            if dots is not None:
                self.dots[name] = dots
                in_sum = context.institution in listed.alive
                self.shares[name] = min(1.0, prepared.alpha(name) / total) if in_sum else 0.0
        # Private components follow their own round, which stands once the others' is open.
        memory = context.recall()
        memory = replace(memory, known=prepared.model.digests(), known_round=self._number)
        if self._private:
            memory = replace(memory, private={**memory.private, **self._private})
        context.note(memory)

    def _thinning(self, component: str) -> Thinning:
        """What is sent of a component in this round."""
        context, size = self._context, self._prepared.layout.components[component].size
        return thinning(context.plan, context.run, self._number, component, size)

    def _sent(self, component: str) -> Update:
        """What is sent of a trajectory in this round. The rest is dropped: nothing is kept for a later round."""
        update, chosen = self.updates[component], self._thinning(component)
        return update if chosen.whole else ThinnedUpdate(update, chosen)

    def _rounding(self, component: str) -> PositionedBits:
        """What rounds the words of one component in this round, drawn by this institution alone."""
        return PositionedBits(self._context.randomness.child(f"rounding/{self._number}/{component}").bytes(32))

    def training(self) -> LocalTraining | None:
        """The round's training, charged for; None where its outcome was taken, or every component is held."""
        if self._trained:
            return None
        context, prepared = self._context, self._prepared
        plan, weights = context.plan, prepared.weights()
        held = frozenset(name for name in weights if not plan.component(name).due(self._number))
        if held == set(weights):
            self._trained = True
            return None  # nothing to train, and nothing of the patients to charge
        factors = self._step_factors()
        if context.private:
            from institution_node.private_training import planned_event

            context.charges.spend("updates", self._number, planned_event(plan, prepared.trainer.patients))
        eta = learning_rate(plan.training, self._number - 1, max(plan.rounds, self._number))
        rng = context.randomness.child(f"round/{self._number}")
        return LocalTraining(prepared.trainer, weights, factors, eta, rng, held)

    def take_trajectory(self, training: LocalTraining, trajectory: Trajectory[Float32 | Update]) -> None:
        """Takes what the round's training came to.

        Raises:
            WeightsError: it is of other components or sizes.
        """
        weights = training.weights
        self._context.recorder.trained(self._number, trajectory.mean_loss, training.step_factors)
        self.updates = {n: delta for n, delta in trajectory.checked(weights).items() if n not in training.held}
        self._private = {
            name: weights[name] + as_array(delta)
            for name, delta in self.updates.items()
            if name not in self._prepared.shared
        }
        self._trained = True

    def _step_factors(self) -> dict[str, float]:
        """κ·v of each component (METHOD.md, "DGB")."""
        context, layout, plan = self._context, self._prepared.layout, self._context.plan
        local = context.plan.blending.kind == "local"
        scores: dict[str, float | None] = {} if local else dict(self._figures.scores)
        subsets = layout.subsets_of(context.institution)
        settings = blending_settings(context.plan)
        # Under differential privacy the institution's own losses may not steer what it releases: a subset that the
        # federation has no score of stays uniform.
        if not context.private:
            median = None if local else self._figures.median_squared_overfitting
            _, figures = advance(context.recall().blending, {}, settings, median)
            own = figures.scores()
            for subset in subsets if plan.blending.among == "subsets" else ():
                if scores.get(subset) is None:
                    scores[subset] = own.get(subset)
        owned = layout.owned(context.institution)
        if plan.blending.among == "modalities":
            v = step_weights(scores, plan.modality_order, settings, self._number - 1)
            moved = {name: v[m] for m in plan.modality_order if (name := names.encoder(m)) in owned}
        else:
            held = layout.combinations[context.institution]
            moved = {name: _mean_factor(name, held, scores, settings, self._number - 1) for name in owned}
        return {name: plan.component(name).step * moved.get(name, 1.0) for name in owned}


def _mean_factor(
    component: str,
    held: Sequence[str],
    scores: Mapping[str, float | None],
    settings: BlendingSettings,
    round_index: int,
) -> float:
    """κ·v of a component, at an institution with these combinations: of a combination's classifier by that one alone,
    else the mean over the combinations with the modality.

    Not over patients, whose numbers are the institution's own.
    """
    subset = names.component_subset(component)
    if subset in held and names.component_kind(component) == "classifier":
        held = (subset,)
    by_combination = [step_weights(scores, subsets_of(c), settings, round_index) for c in held]
    factors = [v[subset] for v in by_combination if subset in v]
    return sum(factors) / len(factors) if factors else 1.0
