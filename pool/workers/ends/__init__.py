"""How calls and workers end: exits, limits of time and memory, the outcome in words for the caller."""
