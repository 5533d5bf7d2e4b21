"""Deployed apps: artifacts, manifests, environments of apps, and limits of their routes."""
