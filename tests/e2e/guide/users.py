"""The user service of the client's guide; built by the real client."""

from pydantic import BaseModel
from runpod_flash import Endpoint

api = Endpoint(name="users-api", cpu="cpu3c-1-2", workers=(0, 1))
USERS: dict[int, dict] = {}


class User(BaseModel):
    name: str
    email: str


@api.get("/users")
async def list_users():
    return list(USERS.values())


@api.post("/users")
async def create_user(user: User):
    number = len(USERS) + 1
    USERS[number] = {"id": number, **user.model_dump()}
    return USERS[number]


@api.put("/users/{user_id}")
def update_user(user_id: int, name: str):
    USERS[user_id]["name"] = name
    return USERS[user_id]


@api.delete("/users/{user_id}")
async def delete_user(user_id: int):
    return {"deleted": USERS.pop(user_id)["id"]}


@api.post("/crash")
async def crash():
    import os

    os._exit(3)
