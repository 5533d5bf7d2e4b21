"""Deployed apps: their artifacts, manifests, what they need and the limits of their routes."""
