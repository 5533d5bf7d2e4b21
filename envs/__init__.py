"""Environments: from a list of requirements to a leased virtualenv."""
