"""A function whose jobs run together, and a class; built by the real client."""

from runpod_flash import Endpoint


@Endpoint(name="qb-conc", cpu="cpu3c-1-2", max_concurrency=3)
def double(x: int):
    return 2 * x


@Endpoint(name="counter", cpu="cpu3c-1-2")
class Counter:
    def __init__(self):
        self.value = 0

    def increase(self, by: int = 1):
        self.value += by
        return self.value
