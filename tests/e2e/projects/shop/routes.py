"""Routes of a load-balanced resource; built by the real client."""

from runpod_flash import Endpoint

api = Endpoint(name="shop", cpu="cpu3c-1-2", workers=(0, 1))


@api.get("/items/{item_id}")
def read_item(item_id: int, q: str = ""):
    return {"item": item_id, "q": q}


@api.post("/train")
async def train(steps: int = 1):
    return {"steps": steps}


@api.get("/slow/{rest:path}")
async def slow(rest: str):
    return {"rest": rest}
