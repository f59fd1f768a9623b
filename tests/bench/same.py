"""`python -m tests.bench.same PORT FILE`: gives the same bytes at every request, compressed where that is asked for.

What a scrape of that size costs on this machine at the least.
"""

import asyncio
import gzip
import sys
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from shared.config.settings import Address
from shared.process.server import serve_until_stopped


def app(plain: bytes) -> Starlette:
    """At every path."""
    compressed = gzip.compress(plain, 1)

    async def give(request: Request) -> Response:
        if request.headers["accept-encoding"] == "gzip":
            return Response(compressed, headers={"content-encoding": "gzip"})
        return Response(plain)

    return Starlette(routes=[Route("/{path:path}", give)])


if __name__ == "__main__":
    asyncio.run(serve_until_stopped(app(Path(sys.argv[2]).read_bytes()), Address("127.0.0.1", int(sys.argv[1]))))
