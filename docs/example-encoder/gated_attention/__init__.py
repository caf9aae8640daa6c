"""Gated attention (Ilse et al. 2018, "Attention-based deep multiple instance learning") over groups of features.

A patient's features are cut into groups of `group` neighbours, `image` features region by region for instance. Each
group is embedded; the encoding is the mean of the embeddings, weighted by how much the gate makes of each.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional


class GatedAttention(nn.Module):
    """Turns patients × inputs into patients × width.

    Args:
        inputs: number of features; the last group is filled up with zeros.
        width: of the encoding.
        options: `group`, features in a group (15); `hidden`, width of the gate (8).
    """

    def __init__(self, inputs: int, width: int, options: Mapping[str, float | str]) -> None:
        super().__init__()
        self.group = int(options.get("group", 15))
        hidden = int(options.get("hidden", 8))
        self.embed = nn.Linear(self.group, width)
        self.norm = nn.LayerNorm(width)
        self.content = nn.Linear(width, hidden)
        self.gate = nn.Linear(width, hidden)
        # Without a bias: one number added to every group's score would change nothing.
        self.score = nn.Linear(hidden, 1, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Encodings of patients, each by itself."""
        missing = -features.shape[1] % self.group
        groups = functional.pad(features, (0, missing)).unflatten(1, (-1, self.group))
        embedded = torch.relu(self.norm(self.embed(groups)))
        score = self.score(torch.tanh(self.content(embedded)) * torch.sigmoid(self.gate(embedded)))
        return (torch.softmax(score, dim=1) * embedded).sum(dim=1)
