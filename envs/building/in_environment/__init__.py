"""Programs that run in an environment's own Python, with nothing of flashpool beside them."""
