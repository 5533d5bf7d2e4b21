"""The operators' side, on a port of its own: figures, probes, a page; what changes something.

    request --> gate (who asks, from where) --> routes --> handlers, over one `Served`

A new route goes into the table of `routes`, with who may use it.
"""

from .job_counts import JobCounts, JobsStats
from .listener import Admin, bind_admin, stats_url
from .program import AdminServer, serve
from .served import Served

__all__ = [
    "Admin",
    "AdminServer",
    "JobCounts",
    "JobsStats",
    "Served",
    "bind_admin",
    "serve",
    "stats_url",
]
