"""When a run has ended: this institution's own copy of the model, merged with the components that never left it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from consilium.v1 import round_pb2 as rounds_pb
from consilium.v1 import service_pb2 as pb

from federation import names
from federation.features import FeatureSchema, largest_schema
from federation.layout import layout
from federation.model_archive import Model, pack_files, with_private
from federation.rounds import ComponentDigests, Figures, read_round_start
from institution_node.global_model import fetch_into
from institution_node.model_files import ModelShelf
from institution_node.model_folder import write_model
from institution_node.node import Assignment
from security.errors import ConfigurationError, ProtocolError

FETCHING: Final = ".fetching"
"""In the folder of all models: large components on their way into a model."""


class FinalModelError(ProtocolError):
    """What the coordinator calls the final model does not fit the plan."""

    code = "final-model"


def final_model(assignment: Assignment, final: rounds_pb.RoundStart, shelf: ModelShelf) -> Model:
    """The run's model at this institution.

    Args:
        assignment: the run.
        final: opening of what would be the next round.
        shelf: where its components rest; the model reads them there.

    Returns:
        Every summed component, and this institution's private ones, which are not to be passed on.

    Raises:
        FinalModelError, ContentMismatchError: what came does not fit the plan or its digests.
        LinkError: it could not be fetched.
    """
    library = assignment.library
    schema = FeatureSchema.from_bytes(bytes(library.fetch(final.setup.schema, largest_schema(assignment.plan))))
    states = ComponentDigests.all_from(final.components)
    made = layout(assignment.plan, schema.widths)
    weights: dict[str, npt.NDArray[np.float32]] = {}
    for name, state in states.items():
        component = made.components.get(name)
        if component is None:
            raise FinalModelError(f"the final model's {name} is not the plan's.")
        vector = shelf.vector(name, component.size)
        fetch_into(vector, library, state.weights)
        weights[name] = vector.array()
    # Computed from opened sums; where there is none for a subset, its probabilities stay as trained.
    published = Figures.from_bytes(final.figures).temperatures
    subsets = [names.component_subset(n) for n in states if names.component_kind(n) == "classifier"]
    temperatures = {s: float(published.get(s, 1.0)) for s in subsets}
    shared = Model(assignment.plan, schema, weights, max(0, final.round - 1), temperatures)
    private = assignment.memory.load(assignment.run.hex()).private
    return with_private(shared, {n: v for n, v in private.items() if n in shared.layout.components}, {})


def keep_final_model(folder: Path, assignment: Assignment, ended: pb.RunEnded) -> Path:
    """Writes the model for `consilium-node predict`.

    Args:
        folder: of all models; the run's is named by its digest.
        assignment: the run.
        ended: what the coordinator said.

    Returns:
        The model's folder.

    Raises:
        FinalModelError, ContentMismatchError, LinkError: as `final_model`.
        ConfigurationError: the disk refused.
    """
    final = read_round_start(ended.final, assignment.run)
    if not final.HasField("setup"):
        raise FinalModelError("the run ended before there was a model.")
    target = folder / assignment.run.hex()
    shelf = ModelShelf(folder / FETCHING / assignment.run.hex())
    try:
        write_model(target, pack_files(final_model(assignment, final, shelf)))
    except OSError as error:
        raise ConfigurationError(
            f"the final model cannot be written: {error.strerror or type(error).__name__}.",
            remedy="Free or mend the disk; `consilium export` still has the shared model.",
            place=str(target),
        ) from error
    finally:
        shelf.remove()
    return target
