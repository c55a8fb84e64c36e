"""Proofs for adapters of other VLMs: the conformance kit, and tiny twins to try it on."""

from abplib.testing.conformance import Finding, check_encoder, examine

__all__ = ["Finding", "check_encoder", "examine"]
