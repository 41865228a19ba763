"""Instruction files to token ids and a loss mask."""
