"""Whole federations on an in-memory transport: comparisons, experiments and sweeps."""
