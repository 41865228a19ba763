"""Proof: bits per byte and scores, and what they cost."""
