"""A served app: its requests to the pool, its answers to clients."""
