"""Jobs of a deployed app: the queue in front of an app worker."""
