"""An institution's side of round 0: the feature sums and its noised patients, once per run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from federation import statistics, subgroups
from federation.feature_sums import FEATURE_SUMS, sensitivity
from federation.rounds import WEIGHTS
from federation.setup import FeatureSums, feature_encoding, feature_sum, patient_encoding
from federation.tables import RawTable
from institution_node.noise import add_noise
from institution_node.run_context import RunContext
from security.privacy.mechanisms import count_event, noised_count
from security.secure_sum.spec import Part, Sum
from security.secure_sum.upload import ArrayWords, WordSource

Words = npt.NDArray[np.uint64]


class SetupWork:
    """Round 0 at one institution.

    Args:
        context: of the run.
        tables: modality to the raw table of the training patients who have it.
        patients: combination to its training patients; one of any name where there is one.
        sums: of the round.
        counted: attribute of the plan's subgroups to bool[groups], those that this institution counts by themselves.
    """

    def __init__(
        self,
        context: RunContext,
        tables: Mapping[str, RawTable],
        patients: Mapping[str, int],
        sums: tuple[Sum, ...],
        counted: Mapping[str, npt.NDArray[np.bool_]] | None = None,
    ) -> None:
        self._context, self._tables, self._patients, self._counted = context, tables, patients, counted or {}
        self._sums = {s.name: s for s in sums}
        self._features = FeatureSums(context.plan, self._sums)

    def sources(self, which: Sum, uploads: tuple[Part, ...]) -> dict[str, WordSource]:
        """The words of some parts of a sum."""
        if which.name == WEIGHTS:
            return self._weights(uploads)
        context, plan, name = self._context, self._context.plan, feature_sum(which.name)
        made: dict[str, WordSource] = {}
        for part in uploads:
            modality = part.name.removeprefix("features/")
            vector = self._features.vector(name, modality, self._tables[modality])
            if vector is None:
                # An earlier sum of it stayed shut (rule 9): nothing more is told; its features follow from the plan.
                vector = np.zeros(part.length)
            how = feature_encoding(plan, name, modality, len(part.contributors))
            words = statistics.encode(vector, how)
            moved = sensitivity(plan, name, modality) if context.private else 0.0
            if moved > 0:
                rng = context.randomness.child(f"noise/0/{name}/{part.name}")
                event = add_noise(words, how, moved, plan.differential_privacy.feature_noise, rng)
                context.charges.spend(f"{name}/{part.name}", 0, event)
            made[part.name] = ArrayWords(words)
        return made

    def take(self, which: Sum, words: Mapping[str, Words]) -> None:
        """Takes an opened feature sum, and remembers the schema once it is complete."""
        if which.name == FEATURE_SUMS[0]:  # nothing of what an earlier attempt was shown
            self._features = FeatureSums(self._context.plan, self._sums)
        self._features.take(feature_sum(which.name), words)
        if self._features.schema is not None:
            memory = self._context.recall()
            self._context.remember(replace(memory, schema=self._features.schema.digest))

    def _weights(self, uploads: tuple[Part, ...]) -> dict[str, WordSource]:
        self._count_patients()
        context = self._context
        made: dict[str, WordSource] = {}
        for p in uploads:
            if p.name.startswith(subgroups.PREFIX):
                vector = self._counted[p.name.removeprefix(subgroups.PREFIX)].astype(np.float64)
                made[p.name] = ArrayWords(statistics.encode(vector, subgroups.encoding(len(p.contributors))))
            else:
                patients = np.array([float(context.patients(context.cohorts.counted[p.name]))])
                made[p.name] = ArrayWords(statistics.encode(patients, patient_encoding(p.contributors)))
        return made

    def _count_patients(self) -> None:
        """ñ_i: drawn once per run and kept (METHOD.md, "Objects"); for each combination where there are several.

        Those of a component are the sum over the combinations that train it. One patient is in one combination, so the
        draws together are as private as one.
        """
        context = self._context
        memory = context.recall()
        if memory.noised_patients:
            return
        listed = context.plan.combinations(context.institution)
        scale = Fraction(context.plan.training.count_noise)
        if scale > 0:
            context.charges.spend("patients", 0, count_event(scale))
        if len(listed) == 1:
            n = self._noised(sum(self._patients.values()), scale, "patients", statistics.MAX_PATIENTS)
            context.remember(replace(memory, noised_patients=n))
            return
        most = statistics.MAX_PATIENTS // len(listed)
        found = {c: self._noised(self._patients.get(c, 0), scale, f"patients/{c}", most) for c in listed}
        context.remember(replace(memory, noised_patients=sum(found.values()), noised_by_combination=found))

    def _noised(self, n: int, scale: Fraction, name: str, most: int) -> int:
        drawn = noised_count(n, scale, self._context.randomness.child(name)) if scale > 0 else n
        return min(max(1, drawn), most)
