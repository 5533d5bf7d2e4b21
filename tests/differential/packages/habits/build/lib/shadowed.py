"""What other modules of this name stand in front of."""

ORIGIN = "installed"
