import pytest

from flashpool.frontends.admin.gate import Credential, Gate, Guard
from flashpool.frontends.admin.sessions import COOKIE, LIFE_S, MOST, Sessions

TOKEN = "secret-of-the-operator"
HERE = {"host": "127.0.0.1:8001"}
BEARER = {"authorization": f"Bearer {TOKEN}"}


def gate(*, loopback: bool = True, is_open: bool = False) -> Gate:
    return Gate(TOKEN, Sessions(), loopback=loopback, is_open=is_open)


def cookie_of(set_cookie: str) -> str:
    return set_cookie.partition(";")[0]


def may(one: Gate, guard: Guard, headers: dict[str, str], method: str = "GET") -> bool:
    return one.refusal(method, headers) is None and one.guarded(guard, headers) is None


def test_on_loopback_reading_is_open_and_other_routes_need_the_token() -> None:
    one = gate()
    assert may(one, Guard.PROBE, HERE)
    assert may(one, Guard.READ, HERE)
    assert not may(one, Guard.TOKEN, HERE)
    assert may(one, Guard.TOKEN, HERE | BEARER)


def test_beyond_loopback_only_probes_need_no_token() -> None:
    one, pod = gate(loopback=False), {"host": "10.1.2.3:8001"}
    assert may(one, Guard.PROBE, pod)
    assert not may(one, Guard.READ, pod)
    assert may(one, Guard.READ, pod | BEARER)
    assert may(gate(loopback=False, is_open=True), Guard.READ, pod)
    assert not may(gate(loopback=False, is_open=True), Guard.TOKEN, pod)


@pytest.mark.parametrize("given", ["Bearer no", "Basic abc", "", "Bearer", f"Basic {TOKEN}"])
def test_a_wrong_token_is_refused_even_where_none_is_needed(given: str) -> None:
    one, headers = gate(), HERE | {"authorization": given}
    assert one.credential(headers) is Credential.WRONG
    refusal = one.refusal("GET", headers)
    assert refusal is not None
    assert refusal.status == 401


@pytest.mark.parametrize("guard", list(Guard))
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize(
    "page",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"host": "evil.example:8001", "origin": "http://evil.example:8001"},
        {"host": "evil.example:8001"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
        {"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors"},
    ],
)
def test_pages_of_other_origins_get_no_data(
    page: dict[str, str], method: str, guard: Guard
) -> None:
    one = gate()
    assert not may(one, guard, HERE | {"cookie": cookie_of(one.sessions.open())} | page, method)


def test_same_origin_pages_and_links_from_other_sites_are_served() -> None:
    one = gate()
    page = {"origin": "http://127.0.0.1:8001", "sec-fetch-site": "same-origin"}
    signed_in = HERE | {"cookie": cookie_of(one.sessions.open())}
    assert may(one, Guard.READ, HERE | page)
    assert may(one, Guard.TOKEN, signed_in | page, "POST")
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert may(one, Guard.READ, HERE | link)


def test_a_cookie_without_an_origin_header_authorises_no_change() -> None:
    """A form on another page of this site sends the cookie too; browsers then send Origin."""
    one = gate()
    assert not may(one, Guard.TOKEN, HERE | {"cookie": cookie_of(one.sessions.open())}, "POST")


def test_with_the_token_any_host_header_is_accepted() -> None:
    assert may(gate(), Guard.TOKEN, {"host": "pod.example"} | BEARER)
    assert may(gate(loopback=False), Guard.PROBE, {"host": "10.0.0.7:8001"})


def test_sessions_expire_and_can_be_closed() -> None:
    clock = [0.0]
    sessions = Sessions(lambda: clock[0])
    cookie = cookie_of(sessions.open())
    assert sessions.knows(f"other=1; {cookie}")
    assert not sessions.knows(f"{COOKIE}=guessed")
    assert not sessions.knows("")
    assert not sessions.knows(f"{COOKIE}")
    clock[0] = LIFE_S
    assert not sessions.knows(cookie)
    cookie = cookie_of(sessions.open())
    assert "Max-Age=0" in sessions.close(cookie)
    assert not sessions.knows(cookie)


def test_the_number_of_sessions_is_bounded() -> None:
    sessions = Sessions()
    cookies = [cookie_of(sessions.open()) for _ in range(MOST + 1)]
    assert not sessions.knows(cookies[0])
    assert all(sessions.knows(one) for one in cookies[1:])


def test_the_cookie_is_http_only_and_same_site() -> None:
    given = Sessions().open()
    assert "HttpOnly" in given
    assert "SameSite=Strict" in given
    assert TOKEN not in given
