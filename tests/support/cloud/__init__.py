"""A stand-in for RunPod's cloud on loopback: `Platform`, its faults and its records.

It is not called "platform": scripts in tests/support are run with that folder on sys.path,
where such a name would hide the standard library's module.
"""

from support.cloud.addresses import Urls
from support.cloud.faults import Fault
from support.cloud.pods import Worker
from support.cloud.records import (
    FINAL,
    Chunk,
    Delivery,
    Done,
    Exchange,
    JobRecord,
    Ping,
    Progress,
    Status,
)
from support.cloud.stand_in import ENDPOINT, Platform

__all__ = [
    "ENDPOINT",
    "FINAL",
    "Chunk",
    "Delivery",
    "Done",
    "Exchange",
    "Fault",
    "JobRecord",
    "Ping",
    "Platform",
    "Progress",
    "Status",
    "Urls",
    "Worker",
]
