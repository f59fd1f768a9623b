"""The pictures of the README can be made anew, and are those that are kept."""

from pathlib import Path

import pytest

from tests.browser.pictures import IMAGES, take

pytestmark = pytest.mark.asyncio(loop_scope="session")  # with the browser


async def test_the_pictures_can_be_made_anew(tmp_path: Path) -> None:
    await take(tmp_path, every=False)
    made = {picture.name for picture in tmp_path.iterdir()}
    assert made == {"board-well.png", "board-failing.png", "board-attention.png"}
    for name in made:
        for picture in (tmp_path / name, IMAGES / name):
            assert picture.read_bytes().startswith(b"\x89PNG")
            assert picture.stat().st_size < 200_000
