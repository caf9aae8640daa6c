"""Differential privacy at one institution: randomness, exact noise, what is charged, and the ledger.

- `randomness`: the cryptographic source of batches, noise and keys (and the seeded one for tests, studies,
  the demo)
- `mechanisms`: exact discrete Laplace and discrete Gaussian noise, noised counts, Gaussian noise for DP-SGD
- `events`: what is charged; `accountant`: what it adds up to; `ledger`: the durable book that refuses to
  overspend

What epsilon means here is written for a privacy officer in `docs/privacy-accounting.md`.
"""
