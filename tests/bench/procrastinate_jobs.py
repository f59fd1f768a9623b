"""`.cache/bench/bin/python procrastinate_jobs.py DATABASE JOBS CLIENTS WORKERS`: prints the seconds of its jobs.

Each job does nothing and is deferred in a commit of its own, as a webhook is that has to be kept before it is answered.
The workers run from the beginning. It runs alone with what requirements/bench.lock has: it imports nothing of keypulse.
"""

import asyncio
import sys
import time
from itertools import repeat

from procrastinate import App, PsycopgConnector

CONCURRENCY = 32
"""Jobs at once in a worker; more make it no faster."""


async def _do_nothing() -> None:
    pass


def _open(database: str, connections: int) -> App:
    app = App(connector=PsycopgConnector(conninfo=database, min_size=connections, max_size=connections))
    app.task(name="nothing")(_do_nothing)
    return app


async def _work(database: str) -> None:
    async with _open(database, CONCURRENCY).open_async() as app:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await app.run_worker_async(concurrency=CONCURRENCY)


async def _measure(database: str, jobs: int, clients: int, workers: int) -> None:
    async with _open(database, clients).open_async() as app:
        if not await app.check_connection_async():
            await app.schema_manager.apply_schema_async()
        await app.connector.execute_query_async("TRUNCATE procrastinate_jobs CASCADE")
        command = (sys.executable, __file__, database)
        pipe = asyncio.subprocess.PIPE
        processes = [await asyncio.create_subprocess_exec(*command, stdout=pipe) for _ in range(workers)]
        try:
            for process in processes:
                assert process.stdout
                await process.stdout.readline()
            began = time.monotonic()
            left = iter(repeat(None, jobs))

            async def defer() -> None:
                for _ in left:
                    await app.configure_task("nothing").defer_async()

            await asyncio.gather(*(defer() for _ in range(clients)))
            count = "SELECT count(*) AS done FROM procrastinate_jobs WHERE status = 'succeeded'"
            while (await app.connector.execute_query_one_async(count))["done"] < jobs:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            sys.stdout.write(f"{time.monotonic() - began}\n")
        finally:
            for process in processes:
                process.terminate()
                await asyncio.wait_for(process.wait(), 30)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        asyncio.run(_work(sys.argv[1]))
    else:
        asyncio.run(_measure(sys.argv[1], *map(int, sys.argv[2:])))
