"""Draws from the global generator when it is imported, as rich and httpx do."""

import random

IDENTITY = random.randint(0, 10**12)
