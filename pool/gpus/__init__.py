"""GPUs and MIG: which there are, who has one, and how a call gets to see its own."""
