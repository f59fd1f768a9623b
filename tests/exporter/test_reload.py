"""Another configuration: what it names is watched from then on, what it leaves out is gone, the rest goes on."""

from collections.abc import Awaitable, Callable

import aiohttp

from ops.kms_emulator.emulator import Emulator
from services.exporter.app import running
from shared.server import serving
from tests.exporter.scraped import FREE, Scrape, configured, target

Until = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]


async def test_a_reload_watches_what_the_new_configuration_says(emulator: Emulator, until: Until) -> None:
    stays, goes, comes = (target(emulator, name) for name in ("stays", "goes", "comes"))
    async with (
        running(configured(targets=(stays, goes))) as app,
        serving(app, FREE) as address,
        aiohttp.ClientSession(f"http://{address}") as session,
    ):
        scrape = Scrape(address, session)

        async def probed(*names: str) -> bool:
            values = await scrape.values()
            return all(values.get(f"kms_probe_success backend {name}") == 1 for name in names)

        async def page(path: str) -> tuple[int, str]:
            async with session.get(path) as response:
                return response.status, await response.text()

        await until(lambda: probed("stays", "goes"))
        before = (await scrape.values())["kms_probes_total backend stays"]

        await app.state.apply(configured(targets=(stays, comes)))
        await until(lambda: probed("stays", "comes"))
        text = await scrape.text()
        assert 'target="goes"' not in text
        assert (await scrape.values())["kms_probes_total backend stays"] > before
        _, board = await page("/")
        assert "comes" in board
        assert ">goes<" not in board
        assert (await page("/probe?target=comes"))[0] == 200
        assert (await page("/probe?target=goes"))[0] == 404
        assert (await page("/-/ready"))[0] == 200


async def test_after_a_reload_no_target_is_probed_by_two(emulator: Emulator, until: Until) -> None:
    settings = configured(targets=(target(emulator),))
    async with running(settings) as app, serving(app, FREE) as address, aiohttp.ClientSession() as session:
        scrape = Scrape(address, session)
        for _ in range(5):
            await app.state.apply(settings)

        async def probes() -> float:
            return (await scrape.values())["kms_probes_total backend ledger-kek"]

        async def encryptions() -> float:
            return (await Scrape(emulator.faults_address, session).values())["emulator_requests_total OK Encrypt"]

        first = await probes()

        async def some() -> bool:
            return await probes() >= first + 1

        async def three_more() -> bool:
            return await probes() >= first + 4

        await until(some)  # by then each look at the key has made its canary
        before, encrypted = await probes(), await encryptions()
        await until(three_more)
        assert await encryptions() - encrypted <= await probes() - before + 1
