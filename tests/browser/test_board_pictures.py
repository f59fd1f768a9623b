"""The pictures of the README can be made anew, and are those that are kept."""

import asyncio
from pathlib import Path

from tests.browser.pictures import IMAGES, take


def test_the_pictures_can_be_created_again(tmp_path: Path) -> None:
    asyncio.run(take(tmp_path, every=False))
    made = {picture.name for picture in tmp_path.iterdir()}
    assert made == {"board-healthy.png", "board-failing.png", "board-degraded.png"}
    for name in made:
        for picture in (tmp_path / name, IMAGES / name):
            assert picture.read_bytes().startswith(b"\x89PNG")
            assert picture.stat().st_size < 200_000
