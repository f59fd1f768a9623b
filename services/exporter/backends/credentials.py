"""What lets a request in at a backend: its settings and their files in, headers and a TLS context out.

A file is read again when it changes. An error names the file, never what it holds.
"""

import ssl
from base64 import b64encode

from services.exporter.backends.settings import Backend, TlsConfig, load_tls_context
from shared.config.file_checks import FileCheckError
from shared.config.secret_file import FileStamp, PasswordFile, SecretFile, SecretUnreadableError


class UnusableCredentialsError(Exception):
    """The message completes the sentence `health check: …`."""


class BackendCredentials:
    """The headers, and the TLS context, of each request to one backend."""

    def __init__(self, backend: Backend) -> None:
        self._plain = {name: header.value for name, header in backend.headers.items() if header.value is not None}
        self._secret = {name: SecretFile(header.file) for name, header in backend.headers.items() if header.file}
        self._authorization, self._basic_auth = backend.authorization, backend.basic_auth
        self._token = SecretFile(backend.authorization.credentials_file) if backend.authorization else None
        self._password = PasswordFile(backend.basic_auth.password_file) if backend.basic_auth else None
        self._tls = _ClientTls(backend.effective_tls_config)
        self.server_name = backend.tls_config.server_name
        """The name in the backend's certificate; None where it is that of the URL."""

    def build_headers(self) -> dict[str, str]:
        """The headers as the files have them now. Raises UnusableCredentialsError."""
        try:
            headers = self._plain | {name: _read(file) for name, file in self._secret.items()}
            if self._authorization and self._token:
                headers["Authorization"] = f"{self._authorization.type} {_read(self._token)}"
            if self._basic_auth and self._password:
                login = f"{self._basic_auth.username}:{self._password.read_value()}"
                headers["Authorization"] = f"Basic {b64encode(login.encode()).decode()}"
        except SecretUnreadableError as error:
            raise UnusableCredentialsError(f"its credentials cannot be read: {error}") from None
        return headers

    def get_tls_context(self) -> ssl.SSLContext | None:
        """The context as the files have it now; None where none is configured. Raises UnusableCredentialsError."""
        try:
            return self._tls.load()
        except FileCheckError as error:
            raise UnusableCredentialsError(f"tls_config: {error}") from None


def _read(file: SecretFile) -> str:
    """What a header may hold. Raises SecretUnreadableError."""
    value = file.read_value()
    if not value.isprintable():  # a client would refuse it, with an error that has no sentence
        raise SecretUnreadableError(f"{file.path}: expected text without control characters")
    return value


class _ClientTls:
    """The context of `tls_config`, made anew when one of its files has changed."""

    def __init__(self, settings: TlsConfig) -> None:
        self._settings = settings
        self._loaded: tuple[list[FileStamp | None], ssl.SSLContext | None] | None = None

    def load(self) -> ssl.SSLContext | None:
        """Raises FileCheckError."""
        stamps = [SecretFile(file).read_stamp() for file in self._settings.files]
        if self._loaded is None or self._loaded[0] != stamps or None in stamps:
            self._loaded = stamps, load_tls_context(self._settings)
        return self._loaded[1]
