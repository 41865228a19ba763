"""Replies of a model: in the terminal, and to files of prompts."""
