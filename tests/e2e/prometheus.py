"""A real Prometheus with the files of docs/operations, that scrapes one server."""

import contextlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import yaml
from e2e.server import until

from support import wants

OPERATIONS: Final = Path(__file__).resolve().parents[2] / "docs" / "operations"
_LISTENS: Final = re.compile(r'msg="Listening on" address=(127\.0\.0\.1:\d+)')
#: Seconds between scrapes and evaluations; the files have longer intervals, to save work.
_EVERY: Final = "1s"


class Prometheus:
    """A Prometheus process."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=30, trust_env=False)

    def close(self) -> None:
        self._http.close()

    def data(self, path: str, **query: str) -> Any:
        """Return the data of an answer of the API."""
        found = self._http.get(f"/api/v1/{path}", params=query).json()
        assert found["status"] == "success", found
        return found["data"]

    def targets(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.data("targets")["activeTargets"]
        return found

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in self.data("rules")["groups"] for rule in group["rules"]]

    def alerts(self, name: str) -> list[dict[str, Any]]:
        """Return the pending and firing alerts of a rule; resolved alerts are left out."""
        found = self.data("alerts")["alerts"]
        return [one for one in found if one["labels"]["alertname"] == name]

    def fires(self, name: str) -> list[dict[str, Any]]:
        return [one for one in self.alerts(name) if one["state"] == "firing"]

    def metric(self, query: str) -> list[float]:
        return [float(one["value"][1]) for one in self.data("query", query=query)["result"]]


@contextlib.contextmanager
def scraping(folder: Path, admin: str, token: str) -> Iterator[Prometheus]:
    """Start a Prometheus; wait until it has scraped ``admin`` and evaluated every rule."""
    program = wants.program("prometheus")
    folder.mkdir()
    config = yaml.safe_load((OPERATIONS / "prometheus.yml").read_text("utf-8"))
    config["global"] = dict.fromkeys(config["global"], _EVERY)
    config["rule_files"] = [str(OPERATIONS / name) for name in config["rule_files"]]
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [admin.removeprefix("http://")]
    (folder / "admin-token").write_text(token)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [
                program,
                "--config.file=prometheus.yml",
                "--storage.tsdb.path=data",
                "--web.listen-address=127.0.0.1:0",
            ],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
    try:

        def listens() -> Any:
            assert process.poll() is None, log.read_text()
            return _LISTENS.search(log.read_text())

        with contextlib.closing(Prometheus(f"http://{until(listens, 60)[1]}")) as found:
            until(lambda: [one["health"] for one in found.targets()] == ["up"], 60)
            until(lambda: {rule["health"] for rule in found.rules()} == {"ok"}, 60)
            yield found
    finally:
        process.terminate()
        process.wait(30)
