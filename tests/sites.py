"""Web servers that stand for others: routes come in, an address on loopback goes out."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

MAX_BYTES = 64 * 1024 * 1024


@asynccontextmanager
async def serve_site(*routes: web.RouteDef) -> AsyncIterator[str]:
    """Serves while the body runs; yields `http://127.0.0.1:PORT`. Who hangs then is not waited for."""
    app = web.Application(client_max_size=MAX_BYTES)
    app.add_routes(routes)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)  # 0 would wait for ever
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
