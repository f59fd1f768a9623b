from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from shared.kms.port import KmsKeyAdmin
from shared.kms.registry import validate_key_settings
from tests.bao import Bao, Transit

Connect = Callable[..., KmsKeyAdmin]


@pytest.fixture
def mounted(shared_bao: Bao) -> Transit:
    return shared_bao.mount()


@pytest.fixture
async def connect(tmp_path: Path) -> AsyncIterator[Connect]:
    """Connects keys of a mount, with other settings than the usual ones where some are given."""
    async with AsyncExitStack() as stack:

        def connect(mounted: Transit, token: str | None = None, **changes: Any) -> KmsKeyAdmin:
            key = validate_key_settings({**mounted.build_settings(tmp_path, token=token), **changes}).connect()
            stack.push_async_callback(key.close)
            return key

        yield connect
