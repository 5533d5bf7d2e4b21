"""How calls finish and workers exit: limits of time and memory, and outcomes for the caller."""
