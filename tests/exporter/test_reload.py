"""Another configuration: what it names is watched from then on, what it leaves out is gone, the rest goes on."""

from collections.abc import Awaitable, Callable

import aiohttp
import pytest

from ops.kms_emulator.emulator import Emulator
from services.exporter.app import run_exporter
from shared.http.server import StartError, serve
from shared.kms.gcp.settings import GcpKeySettings
from shared.kms.port import KmsKey
from shared.kms.registry import connect_key
from shared.kms.settings import ProviderSettings
from tests.exporter.running_exporter import FREE, KEY, Scrape, configured, target

Until = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]


async def test_a_reload_watches_what_the_new_configuration_says(emulator: Emulator, until: Until) -> None:
    stays, goes, comes = (target(emulator, name) for name in ("stays", "goes", "comes"))
    async with (
        run_exporter(configured(targets=(stays, goes))) as app,
        serve(app, FREE) as address,
        aiohttp.ClientSession(f"http://{address}") as session,
    ):
        scrape = Scrape(address, session)

        async def probed(*names: str) -> bool:
            values = await scrape.values()
            return all(values.get(f"kms_probe_success backend {name}") == 1 for name in names)

        async def page(path: str) -> tuple[int, str]:
            async with session.get(path) as response:
                return response.status, await response.text()

        async def has_new_probe() -> bool:
            return (await scrape.values())["kms_probes_total backend stays"] > before

        await until(lambda: probed("stays", "goes"))
        before = (await scrape.values())["kms_probes_total backend stays"]

        await app.state.apply(configured(targets=(stays, comes)))
        await until(lambda: probed("stays", "comes"))
        await until(has_new_probe)
        text = await scrape.text()
        assert 'target="goes"' not in text
        _, board = await page("/")
        assert "comes" in board
        assert ">goes<" not in board
        assert (await page("/probe?target=comes"))[0] == 200
        assert (await page("/probe?target=goes"))[0] == 404
        assert (await page("/-/ready"))[0] == 200


async def test_after_a_reload_no_target_is_probed_by_two(emulator: Emulator, until: Until) -> None:
    settings = configured(targets=(target(emulator),))
    async with run_exporter(settings) as app, serve(app, FREE) as address, aiohttp.ClientSession() as session:
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


async def test_where_the_new_configuration_cannot_be_watched_the_old_one_is_again(
    emulator: Emulator, until: Until
) -> None:
    def connecting(key: ProviderSettings) -> KmsKey:
        if key.key != KEY:
            raise StartError("this key cannot be connected")
        return connect_key(key)

    settings = configured(targets=(target(emulator),))
    other = target(emulator, "other").model_copy(update={"kms": GcpKeySettings(key=f"{KEY}-other")})
    async with (
        run_exporter(settings, connect=connecting) as app,
        serve(app, FREE) as address,
        aiohttp.ClientSession() as session,
    ):
        scrape = Scrape(address, session)
        with pytest.raises(StartError):
            await app.state.apply(configured(targets=(other,)))
        before = (await scrape.values()).get("kms_probes_total backend ledger-kek", 0)

        async def goes_on() -> bool:
            return (await scrape.values())["kms_probes_total backend ledger-kek"] > before

        await until(goes_on)
        assert 'target="other"' not in await scrape.text()
