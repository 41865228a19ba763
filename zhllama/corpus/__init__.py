"""Documents: reading what users bring, and cleaning it into a corpus."""
