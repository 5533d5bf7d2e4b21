"""How calls and workers end: exits, limits of time and memory, and outcomes for the caller."""
