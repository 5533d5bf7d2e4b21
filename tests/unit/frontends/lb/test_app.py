import asyncio
import json

import pytest

from flashpool.envs import Spec
from flashpool.pool.calls import BASE_ENVIRONMENT, Outcome, Provision
from flashpool.pool.errors import (
    EnvironmentError,
    EnvironmentStartFailed,
    InvalidRequest,
    Overloaded,
    Timeout,
)
from flashpool.pool.stats import StoreStats
from flashpool.pool.supervisor.environment_leases import Report
from support.frontends.stand_in import NONE, Slow, StandInPool
from support.frontends.wire import BODY, at_end, post, read_reply, run, serving
from support.waiting import until

DONE = Outcome(body=NONE)


def test_a_call_is_run_and_answered() -> None:
    async def main() -> None:
        pool = StandInPool()
        async with serving(pool) as client:
            reply = await client.execute()
        assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
        assert reply.json()["result"] == NONE.decode()
        (call,) = pool.calls
        assert call.body == BODY
        assert call.label == "f"
        assert call.environment == BASE_ENVIRONMENT
        assert call.limits.result_bytes == 10 * 1024 * 1024
        assert pool.stopped

    run(main())


def test_options_of_a_request_reach_the_pool() -> None:
    async def main() -> None:
        pool = StandInPool()
        fields = {
            "timeout_s": 2,
            "memory_mb": 64,
            "env": {"A": "b"},
            "idempotent": True,
            "dependencies": ["msgspec", "not-needed; python_version < '3'"],
        }
        async with serving(pool) as client:
            await client.execute(json.dumps({**json.loads(BODY), **fields}).encode())
        (call,) = pool.calls
        assert (call.limits.run_s, call.limits.memory_mb) == (2, 64)
        assert (dict(call.env), call.idempotent) == ({"A": "b"}, True)

    run(main())


def test_malformed_bodies_are_refused() -> None:
    async def main() -> None:
        async with serving(StandInPool()) as client:
            for body in (b"", b"{", b"[]", BODY[:-1]):
                reply = await client.execute(body)
                assert (reply.status, reply.json()["error_type"]) == (422, "InvalidRequest")

    run(main())


def test_a_full_queue_and_a_drain_answer_503() -> None:
    async def main() -> None:
        pool = StandInPool(refusal=Overloaded("full", retry_after_s=3.0))
        async with serving(pool) as client:
            reply = await client.execute()
            assert (reply.status, reply.headers["retry-after"]) == (503, "3")
            pool.draining = True
            assert (await client.execute()).status == 503
            assert (await client.get("/ping")).status == 503

    run(main())


def test_probes_report_the_servers_state() -> None:
    async def main() -> None:
        pool = StandInPool(ready=False)
        async with serving(pool) as client:
            for path in ("/ping", "/health"):
                starting = await client.get(path)
                assert (starting.status, starting.body) == (204, b"")
                assert "content-length" not in starting.headers
            pool.ready = True
            for path in ("/ping", "/health"):
                reply = await client.get(path)
                assert (reply.status, reply.json()) == (200, {"status": "healthy"})
                assert (await client.get(path, "HEAD")).status == 200

    run(main())


def test_a_base_environment_that_does_not_start_is_unhealthy() -> None:
    async def main() -> None:
        pool = StandInPool(ready=False, start_error=EnvironmentStartFailed("no python"))
        async with serving(pool) as client:
            assert (await client.get("/ping")).status == 503
            pool.ready = True
            assert (await client.get("/ping")).status == 200
            # The base zygote is restarted after its loss; an earlier failure no longer counts.
            pool.ready = False
            assert (await client.get("/ping")).status == 204

    run(main())


def test_unknown_routes_and_methods_are_refused() -> None:
    async def main() -> None:
        async with serving(StandInPool()) as client:
            for path in ("/", "/docs", "/openapi.json", "/redoc", "/stats"):
                assert (await client.get(path)).status == 404
            for path in ("/execute", "/execute?x=1"):
                assert (await client.get(path)).status == 405
            refused = await client.get("/ping", "DELETE")
            assert refused.status == 405
            assert "GET" in refused.headers["allow"]
            assert "POST /execute" in refused.json()["detail"]
            assert "FLASHPOOL_ADMIN_PORT" in (await client.get("/stats")).json()["detail"]

    run(main())


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Basic s3cret"}, 401),
        ({"Authorization": "s3cret"}, 401),
        ({"Authorization": "Bearer s3cret"}, 200),
        ({"Authorization": "bearer  s3cret "}, 200),
        ({"Authorization": "Bearer s3cret", "Origin": "https://example.org"}, 200),
    ],
    ids=str,
)
def test_a_configured_token_is_required(headers: dict[str, str], status: int) -> None:
    async def main() -> None:
        pool = StandInPool()
        async with serving(pool, FLASHPOOL_TOKEN="s3cret") as client:
            answer = await client.execute(**headers)
            assert answer.status == status
            if status == 401:
                wrong = "token is wrong" in answer.json()["error"]
                assert wrong == bool(headers), "who sent none is not told that it is wrong"
            assert (await client.get("/ping")).status == 200
        assert len(pool.calls) == (status == 200)

    run(main())


def test_a_web_page_cannot_call_a_server_without_token() -> None:
    async def main() -> None:
        async with serving(StandInPool()) as client:
            assert (await client.execute(Origin="https://example.org")).status == 401

    run(main())


def test_an_oversized_body_is_refused_before_it_arrives() -> None:
    async def main() -> None:
        async with serving(StandInPool()) as client:
            async with client.connect() as (reader, writer):
                writer.write(post(b"", **{"Content-Length": str(64 << 30)}))
                reply = await read_reply(reader)
            assert reply.json()["error_type"] == "PayloadTooLarge"
            assert (reply.status, reply.headers["connection"]) == (413, "close")

    run(main())


def test_a_client_that_sends_too_much_still_reads_its_answer() -> None:
    async def main() -> None:
        async with (
            serving(StandInPool(), FLASHPOOL_MAX_BODY_MB="1") as client,
            client.connect() as (reader, writer),
        ):
            writer.write(post(b"x" * (8 << 20)))
            reply, _ = await asyncio.gather(read_reply(reader), writer.drain())
            assert reply.status == 413
            assert await at_end(reader) == b""

    run(main())


def test_endless_chunks_are_refused() -> None:
    async def main() -> None:
        async with (
            serving(StandInPool(), FLASHPOOL_MAX_BODY_MB="1") as client,
            client.connect() as (reader, writer),
        ):
            writer.write(b"POST /execute HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
            reply = asyncio.ensure_future(read_reply(reader))
            with_data = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
            try:
                while not writer.is_closing() and not reader.at_eof():
                    writer.write(with_data)
                    await writer.drain()
            except OSError:
                pass
            assert (await reply).status == 413

    run(main())


def test_a_body_may_arrive_in_pieces() -> None:
    async def main() -> None:
        pool = StandInPool()
        async with serving(pool) as client, client.connect() as (reader, writer):
            writer.write(post(BODY)[: -len(BODY)])
            for byte in BODY:
                writer.write(bytes((byte,)))
                await writer.drain()
            assert (await read_reply(reader)).status == 200
        assert pool.calls[0].body == BODY

    run(main())


def test_a_body_that_never_arrives_times_out() -> None:
    async def main() -> None:
        async with (
            serving(StandInPool(), FLASHPOOL_RECEIVE_TIMEOUT_S="0.2") as client,
            client.connect() as (reader, writer),
        ):
            writer.write(post(BODY)[:-3])
            reply = await read_reply(reader)
            assert (reply.status, reply.json()["details"]) == (408, {"phase": "receive"})
            assert await at_end(reader) == b""

    run(main())


def test_a_client_that_disconnects_cancels_its_call() -> None:
    async def main() -> None:
        pool = StandInPool(outcome=None)
        async with serving(pool) as client:
            async with client.connect() as (_reader, writer):
                writer.write(post(BODY))
                await until(lambda: pool.held)
            await until(lambda: pool.cancelled)
            assert pool.cancelled == ["the client went away"]

    run(main())


def test_a_client_that_disconnects_while_sending_calls_nothing() -> None:
    async def main() -> None:
        pool = StandInPool()
        async with serving(pool) as client:
            async with client.connect() as (_reader, writer):
                writer.write(post(BODY)[:-3])
                await writer.drain()
            assert (await client.execute()).status == 200
        assert len(pool.calls) == 1

    run(main())


def test_a_connection_stays_usable_after_slow_calls() -> None:
    async def main() -> None:
        pool = StandInPool(outcome=None)
        async with serving(pool) as client, client.connect() as (reader, writer):
            for call_id in (1, 2):
                writer.write(post(BODY))
                await until(lambda: pool.held)
                await asyncio.sleep(0.15)  # long enough for its client to be watched
                pool.finish(call_id, DONE)
                assert (await read_reply(reader)).status == 200
        assert pool.cancelled == []

    run(main())


def test_pipelined_requests_are_answered_in_order() -> None:
    async def main() -> None:
        pool = StandInPool(outcome=None)
        async with serving(pool) as client, client.connect() as (reader, writer):
            writer.write(post(BODY) + post(b"{"))
            await until(lambda: pool.held)
            pool.finish(1, DONE)
            assert (await read_reply(reader)).status == 200
            assert (await read_reply(reader)).status == 422

    run(main())


NEEDS = json.dumps({**json.loads(BODY), "dependencies": ["x"]}).encode()


def test_the_receive_timeout_does_not_cover_builds() -> None:
    async def main() -> None:
        pool = StandInPool(environments=Slow(0.5))
        async with serving(pool, FLASHPOOL_RECEIVE_TIMEOUT_S="0.1") as client:
            reply = await client.execute(NEEDS)
            assert (reply.status, reply.json()["stdout"]) == (200, "building\n")
        assert pool.calls[0].environment == "made"

    run(main())


def test_a_client_that_disconnects_during_a_build_cancels_its_call() -> None:
    async def main() -> None:
        environments = Slow()
        pool = StandInPool(environments=environments)
        async with serving(pool) as client:
            async with client.connect() as (_reader, writer):
                writer.write(post(NEEDS))
                await until(lambda: environments.asked)
            await until(lambda: environments.cancelled)
        assert pool.calls == []
        assert pool.recorder.outcomes == {"Cancelled": 1}

    run(main())


class Failing:
    """Environments that cannot be obtained."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def resolve(self, spec: Spec, report: Report) -> Provision:
        report("tried")
        raise self.error

    def stores(self) -> list[StoreStats]:
        return []

    async def published(self) -> None:
        pass

    async def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (EnvironmentError("uv said no", phase="resolve", retryable=False), 200, "EnvironmentError"),
        (Timeout("too slow", phase="build"), 200, "Timeout"),
        (InvalidRequest("a b c is no requirement"), 422, "InvalidRequest"),
        (Overloaded("full", retry_after_s=7), 503, "Overloaded"),
        (OSError("the volume is gone"), 200, "EnvironmentError"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_of_environments_are_answered(error: Exception, status: int, told: str) -> None:
    async def main() -> None:
        pool = StandInPool(environments=Failing(error))
        async with serving(pool) as client:
            reply = await client.execute(NEEDS)
        body = reply.json()
        assert (reply.status, body["error_type"], body["stdout"]) == (status, told, "tried\n")
        assert str(error) in body["error"]
        assert reply.headers.get("retry-after") == ("7" if status == 503 else None)
        if status == 200:
            assert (body["receipt"]["environment"], body["receipt"]["attempts"]) == (None, 0)
            assert body["receipt"]["environment_origin"] == "failed"
            assert body["receipt"]["environment_hit"] is False
        else:
            assert body["receipt"] is None
        assert pool.recorder.outcomes == ({told: 1} if status == 200 else {})

    run(main())


def test_a_refusal_after_the_build_is_answered_like_an_early_one() -> None:
    async def main() -> None:
        environments = Slow(0.1)
        pool = StandInPool(environments=environments)
        async with serving(pool) as client:
            asking = asyncio.ensure_future(client.execute(NEEDS))
            await until(lambda: environments.asked)
            pool.refusal = Overloaded("full", retry_after_s=3)
            reply = await asking
        assert (reply.status, reply.headers["retry-after"]) == (503, "3")
        assert reply.json()["receipt"] is None
        assert not pool.recorder.outcomes

    run(main())
