"""A class that cannot be made."""

from runpod_flash import Endpoint


@Endpoint(name="broken", cpu="cpu3c-1-2")
class Broken:
    def __init__(self):
        raise RuntimeError("no model here")

    def go(self):
        return 1
