"""Redirect requests of the SDK 2.0 client to load-balanced endpoints to API_URL.

The client makes host names of these endpoints (https://<endpoint>.<host>), which lead nowhere here.
"""

import os
import urllib.parse

import aiohttp

_request = aiohttp.ClientSession._request


async def _redirected(self, method, url, **options):
    found = urllib.parse.urlsplit(str(url))
    if found.scheme == "https":
        url = os.environ["API_URL"] + found._replace(scheme="", netloc="").geturl()
    return await _request(self, method, url, **options)


aiohttp.ClientSession._request = _redirected
