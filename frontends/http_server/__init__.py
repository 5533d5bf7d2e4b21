"""uvicorn, with deadlines of ours: one connection, its requests, and what listens for more."""
