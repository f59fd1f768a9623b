"""The pictures of the README can be made anew, and are those that are kept."""

from pathlib import Path

import pytest
from playwright.async_api import Browser

from tests.browser.pictures import IMAGES, take


@pytest.mark.asyncio(loop_scope="session")  # with the browser
async def test_the_pictures_can_be_created_again(chromium: Browser, tmp_path: Path) -> None:
    await take(chromium, tmp_path, every=False)
    check_pictures(tmp_path)


def check_pictures(folder: Path) -> None:
    pictures = {picture.name for picture in folder.iterdir()}
    assert pictures == {"board-healthy.png", "board-failing.png", "board-degraded.png"}
    for name in pictures:
        for picture in (folder / name, IMAGES / name):
            assert picture.read_bytes().startswith(b"\x89PNG")
            assert picture.stat().st_size < 200_000
