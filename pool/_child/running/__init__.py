"""Runs a call in its worker, or the calls of an instance or app in theirs."""
