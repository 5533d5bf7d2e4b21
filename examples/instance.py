"""Keep an object alive between calls: load a model once, then ask it many times.

    .venv/bin/python examples/instance.py

The object has a process of its own, which exits when the `with` block ends.
"""

import asyncio

from flashpool.pool import Pool


class Model:
    """Stands for anything that is slow to load."""

    def __init__(self, scale: int) -> None:
        self.scale = scale
        self.asked = 0

    def predict(self, value: int) -> int:
        """Plain methods run one at a time, in the order of the calls."""
        self.asked += 1
        return self.scale * value

    async def fetch(self, name: str) -> str:
        """Async methods run together, on one event loop."""
        await asyncio.sleep(0.01)
        return f"{name} fetched"


with Pool() as pool, pool.instance(Model, 10) as model:
    print("predictions:", [model.predict(value).result() for value in range(3)])
    fetches = [model.fetch(name) for name in ("a", "b")]
    print("fetches:", [future.result() for future in fetches])
