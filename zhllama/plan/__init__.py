"""What a run needs, before anything loads."""
