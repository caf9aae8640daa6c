"""What `preset = "…"` in a plan stands for (METHOD.md: the defaults, `paper`, and `paper-code`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from federation.plan import Blending, Model, Proximity, Training

Fields = Mapping[str, Mapping[str, Any]]

_DEFAULT: Final[Fields] = {
    "blending": dict(Blending()),
    "proximity": dict(Proximity()),
    "model": {"heads": Model().heads},
    "training": {"count_noise": Training().count_noise},
}

_PAPER: Final[Fields] = {  # the reading of the paper's text
    "blending": {
        **_DEFAULT["blending"],
        "kappa": "one",
        "smoothing": 0.0,
        "window": 1,
        "clamp": False,
        "generalisation": "absolute",
        "overfitting": "weighted-means",
        "losses_from": "combination",
    },
    "proximity": {**_DEFAULT["proximity"], "kind": "inner"},
    "model": {"heads": False},
    "training": {"count_noise": 0.0, "class_weights": "none"},
}

_PAPER_CODE: Final[Fields] = {  # what the authors' program does beyond the text
    **_PAPER,
    "blending": {**_PAPER["blending"], "encoder_times_combination": True},
    "training": {
        **_PAPER["training"],
        "optimiser": "adam",
        "learning_rate": 1e-4,
        "batch_size": 5,
        "local_steps": 10,
    },
}

PRESETS: Final[Mapping[str, Fields]] = {
    "default": _DEFAULT,
    "paper": _PAPER,
    "paper-code": _PAPER_CODE,
    "custom": _DEFAULT,
}
"""Preset to section to field to value. `custom` starts from the defaults and promises nothing."""
