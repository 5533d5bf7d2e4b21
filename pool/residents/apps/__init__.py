"""Workers that have a deployed app: `table` and `states` decide, the others carry it out."""
