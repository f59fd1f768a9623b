"""The frame of every page: what is rendered once for all viewers has nothing of one of them; errors are prose."""

import sqlite3
from contextlib import closing
from pathlib import Path

from tests.relay.login.served_login import Relay, build_settings, open_relay, token


async def read(relay: Relay, name: str, path: str, **headers: str) -> str:
    async with relay.open_browser() as browser:
        answer = await browser.get(path, headers={"authorization": f"Bearer {token(name)}", **headers})
    return answer.text


async def test_a_whole_page_is_never_another_viewers(tmp_path: Path) -> None:
    target = {"hx-target": "delivery_list"}
    async with open_relay(build_settings(tmp_path), tmp_path, users=False) as relay:
        assert "dora" in await read(relay, "dora", "/deliveries", **target)  # htmx sends another header, too
        shared = await read(relay, "emil", "/deliveries", **target, **{"hx-request": "true"})
        assert 'id="delivery_list"' in shared
        assert "<html" not in shared


async def test_an_error_in_place_of_a_part_is_never_another_viewers(tmp_path: Path) -> None:
    part = {"hx-target": "delivery_list", "hx-request": "true"}
    async with open_relay(build_settings(tmp_path), tmp_path, users=False) as relay:
        with closing(sqlite3.connect(tmp_path / "relay.db")) as database:
            database.execute("ALTER TABLE deliveries RENAME TO lost")
        assert "dora" in await read(relay, "dora", "/deliveries", **part)
        other = await read(relay, "emil", "/deliveries", **part)
        assert "The store cannot be read now" in other
        assert "dora" not in other


async def test_the_name_of_a_setting_in_an_error_is_shown_as_code(tmp_path: Path) -> None:
    async with open_relay(build_settings(tmp_path), tmp_path, users=False) as relay:
        assert "older than <code>retention.max_age</code>." in await read(relay, "dora", "/incidents/none")
