"""Sums under homomorphic encryption (CKKS, by TenSEAL): the other implementation behind the secure sum's machines.

An attempt whose plan encrypts a sum has one key pair, made fresh by one institution. Everybody encrypts its words, two
institutions each fold all signed ciphertexts and decrypt the fold once. docs/threat-model.md says what that protects
against, and what only masks do.
"""
