"""Makes a fork like a fresh process: random numbers of its own, and surroundings that its call
changed.
"""
