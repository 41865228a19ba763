"""Documents and conversations to fixed-size blocks of tokens."""
