"""What can go wrong while an institution trains or stages patients."""

from __future__ import annotations

from security.errors import ConfigurationError, ConsiliumError


class NonFiniteTrainingError(ConsiliumError):
    """A loss, a weight or an update is NaN or infinite: nothing of this round may leave the institution."""

    code = "non-finite-training"


class TrainingDataError(ConfigurationError):
    """The institution's patients cannot be trained on as they stand."""

    code = "training-data"


class WeightsError(ConsiliumError):
    """The weights to train from do not fit the layout."""

    code = "weights"


class StagingError(ConfigurationError):
    """The tables to stage do not fit the model, or no patient in them can be staged."""

    code = "staging"


class EncoderError(ConfigurationError):
    """An encoder of another kind is not here, not allowed, or not what the plan declares."""

    code = "encoder"
