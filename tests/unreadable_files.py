"""Files that this user may not read, although tests in a container run as root, which may read all."""

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def as_nobody(folder: Path) -> Iterator[None]:
    """The body runs as a user who is not root, and to whom `folder` belongs; not below pytest's `tmp_path`."""
    if os.geteuid() != 0:
        yield
        return
    user = pwd.getpwnam("nobody")
    os.chown(folder, user.pw_uid, user.pw_gid)
    os.seteuid(user.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
