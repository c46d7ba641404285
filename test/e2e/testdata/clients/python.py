"""Each HTTP library of Python on one URL: prints a line for each, errors too."""
import asyncio, sys, urllib.request

import aiohttp, httpx, requests

url = sys.argv[1]


def attempt(name, f):
    try:
        print(name, f(), flush=True)
    except Exception as e:
        print(name, "error", " ".join(str(e).split()), flush=True)


def with_httpx():
    with httpx.Client(http2=True, timeout=20) as c:
        return c.get(url).text


async def with_aiohttp():
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(20)) as c:
        async with c.get(url) as r:
            return await r.text()


attempt("urllib", lambda: urllib.request.urlopen(url, timeout=20).read().decode())
attempt("requests", lambda: requests.get(url, timeout=20).text)
attempt("httpx", with_httpx)
attempt("aiohttp", lambda: asyncio.run(with_aiohttp()))
