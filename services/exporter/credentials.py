"""The credentials that end: of the keys' providers, of the exporter at backends, and of the backends themselves."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from services.exporter.config import ExporterSettings
from shared.credentials import Credentials, Validity, read_presented_certificate


def list_own_credentials(settings: ExporterSettings) -> Mapping[str, Callable[[], Validity | None]]:
    """What reads the end of each credential that the exporter authenticates with, by what it is. They block."""
    return dict(_iterate_own_credentials(settings))


def _iterate_own_credentials(settings: ExporterSettings) -> Iterator[tuple[str, Callable[[], Validity | None]]]:
    for target in settings.targets:
        yield from target.kms.list_credentials().items()
    for backend in settings.backends:
        if file := backend.tls_config.cert_file:
            yield f"client certificate for the backend {backend.service}", partial(read_presented_certificate, file)


def read_credentials(settings: ExporterSettings, certificates: Mapping[str, Validity | None]) -> Credentials:
    """All of them as they are now; `certificates` are what the backend of each service presents. Blocks."""
    own = {credential: read() for credential, read in list_own_credentials(settings).items()}
    return own | {f"certificate of the backend {service}": each for service, each in certificates.items()}
