"""The application that the rows of deployed apps ask, and that their reference serves."""

from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()


class Order(BaseModel):
    name: str
    items: list[int]


@app.get("/noop")
async def noop() -> dict[str, bool]:
    return {"success": True}


@app.post("/order")
async def order(order: Order) -> dict[str, object]:
    return {"success": True, "name": order.name, "sum": sum(order.items)}
