"""URLs of the stand-in, and the variables that lead workers and clients to it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Urls:
    """All URLs of the stand-in."""

    #: http://127.0.0.1:port
    base: str
    #: RUNPOD_ENDPOINT_BASE_URL: the data plane, .../v2
    data: str
    #: RUNPOD_API_BASE_URL, which has /graphql.
    api: str
    rest: str
    hapi: str
    console: str

    @classmethod
    def at(cls, base: str) -> "Urls":
        return cls(
            base=base, data=f"{base}/v2", api=base, rest=f"{base}/v1", hapi=base, console=base
        )


def pod_env(
    urls: Urls, endpoint: str, worker: str, *, key: str, ping_interval_s: int
) -> dict[str, str]:
    """Return the variables that the platform sets in a worker's container."""
    at = f"{urls.data}/{endpoint}"
    return {
        "RUNPOD_ENDPOINT_ID": endpoint,
        "RUNPOD_POD_ID": worker,
        "RUNPOD_POD_HOSTNAME": f"{worker}-host",
        "RUNPOD_WEBHOOK_GET_JOB": f"{at}/job-take/$ID?gpu=none",
        "RUNPOD_WEBHOOK_POST_OUTPUT": f"{at}/job-done/$RUNPOD_POD_ID/$ID?gpu=none",
        "RUNPOD_WEBHOOK_POST_STREAM": f"{at}/job-stream/$RUNPOD_POD_ID/$ID?gpu=none",
        "RUNPOD_WEBHOOK_PING": f"{at}/ping/$RUNPOD_POD_ID?gpu=none",
        # Whole seconds: the SDK cuts the rest off.
        "RUNPOD_PING_INTERVAL": str(ping_interval_s * 1000),
        "RUNPOD_AI_API_KEY": key,
        # Stacked calls start here; the real platform needs no such variable.
        "RUNPOD_ENDPOINT_BASE_URL": urls.data,
        # The checks need the internet, and much free memory.
        "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
        "RUNPOD_SKIP_GPU_CHECK": "true",
    }


def client_env(urls: Urls, key: str) -> dict[str, str]:
    """Return the variables that lead the real client to the stand-in."""
    return {
        "RUNPOD_API_KEY": key,
        "RUNPOD_ENDPOINT_BASE_URL": urls.data,
        "RUNPOD_API_BASE_URL": urls.api,
        "RUNPOD_REST_API_URL": urls.rest,
        "RUNPOD_HAPI_URL": urls.hapi,
        "RUNPOD_CONSOLE_URL": urls.console,
        "RUNPOD_FLASH_SILENCE_DEPRECATION": "1",
    }
