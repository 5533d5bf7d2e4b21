"""Small packages that much else is built of."""

from differential.programs import EVERYTHING, program


@program(group="small")
def yaml_documents():
    import yaml

    return [yaml.safe_load("a: [1, 2.5, no]\nb: {c: 2024-01-02}")["a"], yaml.safe_dump({"b": 1})]


@program(group="small")
def orjson_text():
    import orjson

    return orjson.dumps({"a": [1, 2.5, None, "ü"]}, option=orjson.OPT_SORT_KEYS).decode()


@program(group="small")
def msgspec_structures():
    import msgspec

    class Point(msgspec.Struct):
        x: int
        y: float = 0.5

    return [msgspec.json.encode(Point(1)).decode(), msgspec.json.decode(b'{"x":2}', type=Point).y]


@program(group="small")
def tqdm_progress():
    import io

    import tqdm

    out = io.StringIO()
    total = sum(tqdm.tqdm(range(10), file=out, ascii=True))
    return [total, "100%" in out.getvalue()]


@program(group="small")
def rich_table():
    import rich.console
    import rich.table

    table = rich.table.Table("a", "b")
    table.add_row("1", "two")
    console = rich.console.Console(width=30, color_system=None, force_terminal=False)
    console.print(table)
    return console.encoding


@program(group="small")
def rich_after_a_seed():
    """Its styles draw from the global generator when they are imported."""
    import random

    random.seed(11)
    import rich.console

    return [random.random(), rich.console.__name__]


@program(group="small")
def click_command():
    import click
    from click.testing import CliRunner

    @click.command()
    @click.option("--n", default=1)
    def command(n):
        click.echo(f"n is {n}")

    return CliRunner().invoke(command, ["--n", "3"]).output


@program(group="small")
def attrs_classes():
    import attrs

    @attrs.define
    class Point:
        x: int
        y: int = attrs.field(default=2, validator=attrs.validators.gt(1))

    return [str(Point(1)).rpartition(".")[2], attrs.asdict(Point(1, 5))]


@program(group="small")
def dill_functions():
    import dill

    base = 10
    return dill.loads(dill.dumps(lambda n: n + base))(5)


@program(group="small", fresh=("pid",))
def psutil_of_this_process():
    import os

    import psutil

    process = psutil.Process()
    return {"pid": process.pid, "ours": process.pid == os.getpid(), "files": process.open_files()}


@program(group="small")
def msgpack_bytes():
    import msgpack

    return msgpack.unpackb(msgpack.packb({"a": [1, b"x".hex(), None]}))


@program(group="small")
def lz4_frames():
    import lz4.frame

    packed = lz4.frame.compress(b"abc" * 1000)
    return [len(packed), lz4.frame.decompress(packed) == b"abc" * 1000]


@program(group="small")
def zstandard_frames():
    import zstandard

    packed = zstandard.compress(b"abc" * 1000)
    return [len(packed), zstandard.decompress(packed) == b"abc" * 1000]


@program(group="small")
def ujson_text():
    import ujson

    return [ujson.dumps({"a": 1.5}), ujson.loads("[1, 2]")]


@program(group="small")
def simplejson_text():
    import decimal

    import simplejson

    return simplejson.dumps({"a": decimal.Decimal("1.10")})


@program(group="small")
def tenacity_retries():
    import tenacity

    tries = []

    @tenacity.retry(stop=tenacity.stop_after_attempt(3), reraise=True)
    def flaky():
        tries.append(1)
        if len(tries) < 3:
            raise OSError("again")
        return len(tries)

    return flaky()


@program(group="small")
def cachetools_cache():
    import cachetools

    calls = []

    @cachetools.cached(cachetools.LRUCache(2))
    def double(number):
        calls.append(number)
        return number * 2

    return [double(1), double(1), double(2), calls]


@program(group="small")
def dateutil_rules():
    import datetime

    import dateutil.parser
    import dateutil.relativedelta
    import dateutil.tz

    moment = dateutil.parser.parse("2024-01-31 10:00 CET", tzinfos={"CET": 3600})
    later = moment + dateutil.relativedelta.relativedelta(months=1)
    local = datetime.datetime(2024, 7, 1, tzinfo=dateutil.tz.tzlocal()).utcoffset()
    return [str(later), local.total_seconds()]


@program(group="small", env={"TZ": "America/New_York"})
def dateutil_zone_of_the_request():
    import datetime

    import dateutil.tz

    return datetime.datetime(2024, 7, 1, tzinfo=dateutil.tz.tzlocal()).utcoffset().total_seconds()


@program(group="small")
def pytz_zones():
    import datetime

    import pytz

    return str(pytz.timezone("Asia/Kolkata").localize(datetime.datetime(2024, 1, 1)))


@program(group="small")
def marshmallow_schema():
    import marshmallow

    schema = marshmallow.Schema.from_dict({"n": marshmallow.fields.Int(required=True)})()
    return [schema.load({"n": "3"}), schema.validate({})]


@program(group="small")
def marshmallow_registry():
    """Classes of one name in one registry of the package: of this process alone."""
    import marshmallow
    import marshmallow.class_registry

    class OnlyHereSchema(marshmallow.Schema):
        n = marshmallow.fields.Int()

    found = marshmallow.class_registry.get_class("OnlyHereSchema")
    return [found is OnlyHereSchema, found.__name__]


@program(group="small")
def peewee_in_memory():
    import peewee

    memory = peewee.SqliteDatabase(":memory:")

    class Note(peewee.Model):
        text = peewee.TextField()

        class Meta:
            database = memory

    memory.create_tables([Note])
    Note.create(text="a")
    return [note.text for note in Note.select()]


@program(group="small")
def filelock_lock(scratch):
    import os

    import filelock

    path = os.path.join(scratch, "a.lock")
    with filelock.FileLock(path, timeout=2) as lock:
        held = lock.is_locked
    if os.path.exists(path):
        os.remove(path)
    return [held, lock.is_locked]


@program(group="small")
def trio_nursery():
    import trio

    found = []

    async def part(number):
        await trio.sleep(0.001)
        found.append(number)

    async def whole():
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(part, number)

    trio.run(whole)
    return sorted(found)


@program(group="small")
def sentry_sdk_left_alone():
    import sentry_sdk

    return [sentry_sdk.is_initialized(), sentry_sdk.capture_message("nobody hears")]


@program(group="small", fresh=(EVERYTHING,))
def sentry_sdk_identities():
    import sentry_sdk

    sent = []
    sentry_sdk.init(
        "http://key@127.0.0.1:9/1",
        before_send=lambda event, hint: sent.append(event["event_id"]),
        default_integrations=False,
    )
    sentry_sdk.capture_message("message")
    return sent[0]
