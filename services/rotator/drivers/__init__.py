"""Drivers, which reach a keyring through its service's admin API, through a command, or in its database."""

from typing import ClassVar

from shared.config.settings import Section
from shared.keyring.administration import RotationType


class BaseDriverSettings(Section):
    """The base of a driver's settings; a subclass has `kind`, `location` and `open`."""

    rotation_types: ClassVar[tuple[RotationType, ...]] = tuple(RotationType)
    has_own_keys: ClassVar[bool] = True
    """Whether only keypulse changes and removes the keys: then each is compared with its backup after a rotation."""
