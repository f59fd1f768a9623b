"""Settings of a server that does nothing, for the tests of what every server has."""

from typing import ClassVar

from shared.config.server_settings import ServerSettings
from shared.config.settings import Address, ListenAddress


class Settings(ServerSettings):
    service_name: ClassVar[str] = "sample"

    listen: ListenAddress = Address("127.0.0.1", 0)
    text: str = "one"
    count: int = 1


SETTINGS = Settings()
