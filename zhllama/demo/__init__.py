"""`zhllama demo`: the whole pipeline on weights and text that ship in Python packages."""
