"""The page of the admin listener, in a real browser: Debian's Chromium, without a screen."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from flashpool.pool.recorder import Recorder
from support import wants
from support.stats_sample import document, ended

from .server import Server, request, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TOKEN = "the-operator-s"
#: Calls that fail in ways an operator looks for.
CRASH = "import os\ndef crash():\n    print('last words', flush=True)\n    os._exit(3)"
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
LIMIT_MS = 60_000
MODEL = {
    "execution_type": "class",
    "class_name": "Model",
    "class_code": "class Model:\n    def go(self): return 1",
    "method_name": "go",
    "instance_id": "model-a",
    "create_new_instance": False,
    "serialization_format": "json",
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = wants.program("chromium")
    with sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield one
        one.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("page")
    variables = {
        "FLASHPOOL_ADMIN_TOKEN": TOKEN,
        "FLASHPOOL_STATE_DIR": str(folder / "state"),
        "FLASHPOOL_SLOTS": "2",
    }
    with serving(folder, **variables) as one:
        for _ in range(3):
            one.execute("def f(): return 1")
        one.execute(CRASH)
        yield one


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    yield from opened(browser, server)


def opened(browser: Browser, server: Server, **context: Any) -> Iterator[Page]:
    with browser.new_context(**context) as one:
        page = one.new_page()
        page.set_default_timeout(LIMIT_MS)
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "request",
            lambda asked: (
                None
                if asked.url.startswith((server.admin, "data:"))
                else problems.append(asked.url)
            ),
        )
        page.goto(server.admin)
        expect(page.locator("#state")).to_have_text("Ready", timeout=LIMIT_MS)
        yield page
        assert problems == []


def sound(page: Page) -> None:
    """Check the page for serious accessibility problems."""
    found = [
        (one["id"], one["nodes"][0]["html"][:200])
        for one in Axe().run(page).response["violations"]
        if one["impact"] in ("serious", "critical")
    ]
    assert found == []


def test_the_page_shows_calls_and_updates_itself(page: Page, server: Server) -> None:
    expect(page.locator("#failures .tag")).to_have_text("WorkerCrashed", timeout=LIMIT_MS)
    calls = int(page.locator("#calls").inner_text())
    server.execute("def f(): return 1")
    expect(page.locator("#calls")).to_have_text(str(calls + 1), timeout=LIMIT_MS)
    sound(page)


@pytest.mark.parametrize(
    "context",
    [
        {"color_scheme": "dark"},
        {"color_scheme": "dark", "viewport": {"width": 390, "height": 844}, "has_touch": True},
        {"viewport": {"width": 390, "height": 844}, "has_touch": True},
    ],
)
def test_the_page_has_a_dark_mode_and_fits_a_phone(
    browser: Browser, server: Server, context: dict[str, Any], tmp_path: Path
) -> None:
    for page in opened(browser, server, **context):
        sound(page)
        wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert wide <= 0, "the page is wider than its window"


def test_signing_in_and_draining_work_by_keyboard(page: Page, server: Server) -> None:
    page.locator("#drain").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#confirmNo")).to_be_focused()
    sound(page)
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#token")).to_be_focused(timeout=LIMIT_MS)
    page.keyboard.type("not it")
    page.keyboard.press("Enter")
    expect(page.locator("#signError")).to_contain_text("not the admin token", timeout=LIMIT_MS)
    sound(page)
    page.locator("#token").fill(TOKEN)
    page.keyboard.press("Enter")
    expect(page.locator("#state")).to_have_text("Draining", timeout=LIMIT_MS)
    assert refused(server).status_code == 503
    page.locator("#drain").click()
    expect(page.locator("#state")).to_have_text("Ready", timeout=LIMIT_MS)
    (cookie,) = page.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    assert TOKEN not in page.evaluate("document.cookie") + page.url + str(cookie["value"])
    # The output of the crashed call is shown only after signing in.
    page.locator("#failures summary").click()
    expect(page.locator("#failures pre")).to_contain_text("last words", timeout=LIMIT_MS)


def test_a_running_call_is_shown_while_it_runs(page: Page, server: Server) -> None:
    code = "import time\ndef sleeper(): time.sleep(8)"
    calling = threading.Thread(target=posted, args=(server, code))
    calling.start()
    try:
        expect(page.locator("#running tbody tr")).to_contain_text("sleeper", timeout=LIMIT_MS)
        sound(page)
    finally:
        calling.join(60)
    expect(page.locator("#noRunning")).to_be_visible(timeout=LIMIT_MS)


def test_cancel_and_evict_ask_for_confirmation(page: Page, server: Server) -> None:
    page.locator("#sign").click()
    page.locator("#token").fill(TOKEN)
    page.keyboard.press("Enter")
    expect(page.locator("#sign")).to_have_text("Sign out", timeout=LIMIT_MS)
    code = "import time\ndef endless():\n    print('at work', flush=True)\n    time.sleep(600)"
    calling = threading.Thread(target=posted, args=(server, code))
    calling.start()
    try:
        row = page.locator("#running tbody tr", has_text="endless")
        row.get_by_role("button", name="Stacks").click()
        expect(page.locator("#lookText")).to_contain_text(
            'flash:endless", line 4', timeout=LIMIT_MS
        )
        page.locator("#look").get_by_role("button", name="Close").click()
        row.get_by_role("button", name="Output").click()
        expect(page.locator("#lookText")).to_contain_text("at work", timeout=LIMIT_MS)
        page.locator("#look").get_by_role("button", name="Close").click()
        # Declining the confirmation changes nothing.
        row.get_by_role("button", name="Cancel").click()
        page.locator("#confirmNo").click()
        expect(row).to_be_visible()
        row.get_by_role("button", name="Cancel").click()
        sound(page)
        page.locator("#confirmYes").click()
        expect(page.locator("#running tbody tr", has_text="endless")).to_have_count(
            0, timeout=LIMIT_MS
        )
    finally:
        calling.join(60)
    httpx.post(f"{server.url}/execute", json=MODEL, trust_env=False, timeout=60)
    row = page.locator("#instances tbody tr", has_text="model-a")
    row.get_by_role("button", name="Evict").click()
    page.locator("#confirmYes").click()
    expect(page.locator("#instances tbody tr", has_text="model-a")).to_have_count(
        0, timeout=LIMIT_MS
    )
    assert server.stats()["instances"] == []


def test_a_quarantined_gpu_is_shown_with_its_reason(browser: Browser, server: Server) -> None:
    event = b"event: stats\ndata: " + msgspec.json.encode(document(Recorder())) + b"\n\n"
    with browser.new_context() as context:
        page = context.new_page()
        page.set_default_timeout(LIMIT_MS)
        page.route(
            "**/events", lambda asked: asked.fulfill(body=event, content_type="text/event-stream")
        )
        page.goto(server.admin)
        card = page.locator("#gpus .gpu.bad")
        expect(card).to_contain_text("memory did not come back", timeout=LIMIT_MS)
        expect(card).to_contain_text("93 % busy, 71 °C")
        expect(card).to_contain_text(
            "ECC errors corrected: 6; not corrected: 1; Xid errors: 2, the latest 79"
        )
        sound(page)


@pytest.mark.parametrize("width", [1280, 390])
def test_environments_jobs_and_routes_have_their_sections(
    browser: Browser, server: Server, width: int
) -> None:
    recorder = Recorder()
    ended(recorder, 1)
    event = b"event: stats\ndata: " + msgspec.json.encode(document(recorder)) + b"\n\n"
    with browser.new_context(viewport={"width": width, "height": 900}) as context:
        page = context.new_page()
        page.set_default_timeout(LIMIT_MS)
        page.route(
            "**/events", lambda asked: asked.fulfill(body=event, content_type="text/event-stream")
        )
        page.goto(server.admin)
        expect(page.locator("#stores li")).to_have_text(
            "/volume: 3 kept, 1.5 MB; built here 4, failed 2, evicted 1", timeout=LIMIT_MS
        )
        expect(page.locator("#found")).to_have_text("Calls found theirs: memo 1")
        expect(page.locator("#jobs")).to_have_text(
            "2 running, 9 taken, 4 done, 3 failed; reports that the platform has not taken: 5"
        )
        cells = page.locator("#routes tbody td")
        expect(cells).to_have_text(["/items/{item_id}", "1", "2xx 1", "150 ms", "195 ms", "200 ms"])
        sound(page)
        wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert wide <= 0, "the page is wider than its window"


def test_the_page_says_when_it_is_stale(page: Page) -> None:
    page.context.set_offline(True)
    page.evaluate("source.close()")
    expect(page.locator("#state")).to_contain_text("Stale", timeout=LIMIT_MS)


def posted(server: Server, code: str) -> httpx.Response:
    """Return the answer to a call, on a new connection that is then closed."""
    url = f"{server.url}/execute"
    return httpx.post(url, json=request(code), trust_env=False, timeout=60)


def refused(server: Server) -> httpx.Response:
    """Return the answer to a call that arrives during a drain."""
    return posted(server, "def f(): return 1")
