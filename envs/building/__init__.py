"""From a plan to a virtualenv on disk."""
