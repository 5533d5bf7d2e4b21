"""Makes a fork like a fresh process: gives it its own random numbers, and records which
surroundings its call changed.
"""
