"""FLASHPOOL_*: what can be set, read once; the rest of the server gets plain values."""
