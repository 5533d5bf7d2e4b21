"""A handler that cannot be loaded."""

raise RuntimeError("no model here")
