"""The admin port: statistics, probes, a page, and requests that change the server's state.

    request --> gate (credential, origin) --> routes.table --> handlers, over one `Served`

A new route goes into a module of `routes`, with the guard that says who may use the route.
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
