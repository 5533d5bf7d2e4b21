"""Programs that run in an environment's own Python, without flashpool."""
