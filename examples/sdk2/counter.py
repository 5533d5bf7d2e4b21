"""An API whose object lives between requests: `rp flash dev examples/sdk2/counter.py`."""

import runpod
from runpod import App
from runpod.apps import get, init, post

app = App("counter")


@app.api(cpu="cpu3c-1-2")
class Counter:
    @init
    def setup(self) -> None:
        self.count = 100

    @post("/add")
    def add(self, body: dict[str, int]) -> dict[str, int]:
        self.count += body["by"]
        return {"count": self.count}

    @get("/count")
    async def current(self) -> int:
        return self.count


@runpod.local_entrypoint
async def main() -> None:
    print(await Counter.post.aio("/add", {"by": 5}))
    print("count:", await Counter.get.aio("/count"))
