"""Workers that serve a deployed app: `table` and `states` decide, the other modules act."""
