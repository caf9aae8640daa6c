"""Tests that need a CUDA device: run where there is one, skipped where there is none, and the reason is printed."""

from __future__ import annotations

import pytest
import torch

WHY_NOT = "torch finds no CUDA device on this machine"
NEEDS_CUDA = (pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason=WHY_NOT))
DEVICES = ("cpu", pytest.param("cuda", marks=NEEDS_CUDA))
"""Of parametrized tests."""
