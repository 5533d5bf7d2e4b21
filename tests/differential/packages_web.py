"""Packages for services of others, and for what these speak; no service is there."""

from differential.programs import program


@program(group="web", fresh=("boundary",))
def urllib3_boundary():
    import urllib3

    body, kind = urllib3.encode_multipart_formdata({"a": "1"})
    return {"boundary": kind.rpartition("=")[2], "length": len(body)}


@program(group="web")
def pydantic_model():
    import pydantic

    class Model(pydantic.BaseModel):
        number: int
        names: list[str] = []

    try:
        Model(number="x")
    except pydantic.ValidationError as error:
        return [Model(number="3", names=["a"]).model_dump(), error.errors()[0]["type"]]
    return "no error"


@program(group="web")
def django_templates():
    import django
    from django.conf import settings
    from django.template import Context, Engine

    settings.configure(USE_TZ=True)
    django.setup()
    template = Engine().from_string("{% for n in ns %}{{ n|add:1 }} {% endfor %}")
    return [template.render(Context({"ns": [1, 2]})), settings.configured]


@program(group="web")
def sqlalchemy_in_memory():
    import sqlalchemy

    engine = sqlalchemy.create_engine("sqlite://")
    table = sqlalchemy.Table(
        "t", sqlalchemy.MetaData(), sqlalchemy.Column("a", sqlalchemy.Integer, primary_key=True)
    )
    with engine.begin() as connection:
        table.create(connection)
        connection.execute(table.insert(), [{"a": 1}, {"a": 5}])
        total = connection.execute(sqlalchemy.select(sqlalchemy.func.sum(table.c.a))).scalar()
    engine.dispose()
    return total


@program(group="web")
def psycopg2_without_a_server():
    import psycopg2
    import psycopg2.extensions

    try:
        psycopg2.connect("host=127.0.0.1 port=9 connect_timeout=1")
    except psycopg2.OperationalError as error:
        return ["refused" in str(error), str(psycopg2.extensions.adapt("it's"))]
    return "connected"


@program(group="web", fresh=("id",))
def pymongo_identities():
    import bson

    identity = bson.ObjectId()
    same = bson.decode(bson.encode({"a": identity, "b": [1, 2.5]}))
    # Of an identity, the middle is the process's own.
    return {"id": str(identity)[8:18], "same": same["a"] == identity, "b": same["b"]}


@program(group="web")
def redis_without_a_server():
    import redis

    try:
        redis.Redis(port=9, socket_connect_timeout=1).ping()
    except redis.ConnectionError:
        return redis.connection.parse_url("redis://host:1/2")["db"]
    return "connected"


@program(group="web")
def boto3_signature():
    import boto3

    session = boto3.Session("key", "secret", region_name="eu-west-1")
    url = session.client("s3").generate_presigned_url("get_object", {"Bucket": "b", "Key": "k"})
    return [url.partition("?")[0], session.region_name]


@program(group="web", fresh=("key",))
def cryptography_tokens():
    from cryptography.fernet import Fernet
    from cryptography.hazmat.primitives import hashes

    key = Fernet.generate_key()
    digest = hashes.Hash(hashes.SHA256())
    digest.update(b"text")
    return {
        "key": key.decode(),
        "text": Fernet(key).decrypt(Fernet(key).encrypt(b"hidden")).decode(),
        "digest": digest.finalize().hex(),
    }


@program(group="web", fresh=("key",))
def paramiko_keys():
    import paramiko

    key = paramiko.ECDSAKey.generate()
    return {"key": key.get_base64(), "name": key.get_name()}


@program(group="web")
def lxml_paths():
    import lxml.etree

    tree = lxml.etree.fromstring("<a><b n='1'/><b n='2'/></a>")
    return [tree.xpath("//b/@n"), lxml.etree.tostring(tree).decode()]


@program(group="web")
def beautifulsoup_links():
    import bs4

    soup = bs4.BeautifulSoup("<p><a href='/x'>X</a><a href='/y'>Y", "lxml")
    return [[link["href"] for link in soup.select("p > a")], soup.get_text()]


@program(group="web")
def jinja2_template():
    import jinja2

    return jinja2.Template("{% for n in ns if n > 1 %}{{ n }};{% endfor %}").render(ns=[1, 2, 3])


@program(group="web")
def protobuf_messages():
    from google.protobuf import json_format, struct_pb2

    message = struct_pb2.Struct()
    message.update({"a": 1, "b": ["x", True]})
    copy = struct_pb2.Struct.FromString(message.SerializeToString())
    return json_format.MessageToDict(copy)


@program(group="web")
def openai_client():
    import openai

    client = openai.OpenAI(api_key="none", base_url="http://127.0.0.1:9", max_retries=0, timeout=2)
    try:
        client.models.list()
    except openai.APIConnectionError as error:
        return [type(error).__name__, str(client.base_url)]
    return "connected"


@program(group="web")
def openai_key_by_variable():
    import os

    os.environ["OPENAI_API_KEY"] = "of the function"
    import openai

    return openai.OpenAI().api_key


@program(group="web")
def anthropic_client():
    import anthropic

    client = anthropic.Anthropic(api_key="none", base_url="http://127.0.0.1:9", max_retries=0)
    try:
        client.models.list(timeout=2)
    except anthropic.APIConnectionError as error:
        return type(error).__name__
    return "connected"


@program(group="web")
def structlog_lines():
    import structlog

    structlog.configure(processors=[structlog.processors.JSONRenderer(sort_keys=True)])
    structlog.get_logger().info("event", n=1)
    return structlog.is_configured()


@program(group="web")
def structlog_left_alone():
    import structlog

    return structlog.is_configured()


@program(group="web")
def loguru_lines():
    import sys

    from loguru import logger

    logger.remove()
    logger.add(sys.stderr, format="{level} {message}")
    logger.info("of the function")
    return "logged"


@program(group="web")
def loguru_left_alone():
    """Its lines begin with the time, so only their number and end count."""
    import contextlib
    import io

    from loguru import logger

    out = io.StringIO()
    logger.add(out, format="{message}")
    with contextlib.redirect_stderr(io.StringIO()):
        logger.remove(0)
        logger.warning("of the function")
    return out.getvalue()
