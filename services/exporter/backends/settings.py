"""The settings of reads: how often, where a backend's documents are and in which words, and how a request is let in.

`authorization`, `basic_auth` and `tls_config` are as in Prometheus's http_config:
https://prometheus.io/docs/prometheus/latest/configuration/configuration/#http_config
"""

import re
import ssl
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from services.exporter.backends.health_documents import OWN_NAMES, HealthSetting
from shared.config.file_checks import FileCheck, FileCheckError, check_readable
from shared.config.settings import Duration, FilePath, HttpUrl, PasswordPath, SecretPath, Section
from shared.net.egress import DIRECT, EgressSettings, load_client_certificate

Name = Annotated[str, Field(min_length=1)]
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # https://www.rfc-editor.org/rfc/rfc9110#name-tokens
_RESERVED_HEADERS: Final = {
    **dict.fromkeys(("accept", "accept-encoding", "connection", "content-length", "host", "transfer-encoding")),
    "authorization": "`authorization` or `basic_auth`",
    "proxy-authorization": "`proxy`",
}
"""What the exporter sets itself, with the setting that sets it."""


def _check_header_value(value: str) -> str:
    if not value.isprintable():  # a line break would end the header
        raise ValueError("expected text without line breaks and control characters")
    return value


def _check_username(name: str) -> str:
    if not name or ":" in name or not name.isprintable():
        raise ValueError("expected a name without a colon and control characters")
    return name


def _check_header_names(headers: "dict[str, Header]") -> "dict[str, Header]":
    for name in headers:
        if not _TOKEN.fullmatch(name):
            raise ValueError(f"expected names of headers, such as X-Tenant; {name!r} is none")
        if name.lower() in _RESERVED_HEADERS:
            instead = _RESERVED_HEADERS[name.lower()]
            hint = f"use {instead}" if instead else "remove it"
            raise ValueError(f"the exporter sets {name} itself; {hint}")
    return headers


def _wrap_value(value: object) -> object:
    return {"value": value} if isinstance(value, str) else value


def _check_own_names(names: dict[str, str]) -> dict[str, str]:
    if unknown := sorted(names.keys() - OWN_NAMES.keys()):
        raise ValueError(f"expected keys among {', '.join(OWN_NAMES)}; {unknown[0]!r} is none")
    repeated = [name for name, count in Counter({**OWN_NAMES, **names}.values()).items() if count > 1]
    if repeated:
        raise ValueError(f"expected each of the backend's names once; {repeated[0]!r} stands for two")
    return names


HeaderValue = Annotated[str, AfterValidator(_check_header_value)]
MetricName = Annotated[str, Field(pattern=r"^[a-zA-Z_:][a-zA-Z0-9_:]*$")]


class Header(Section):
    """A header of each request. In the file it may be its value alone."""

    value: HeaderValue | None = None
    file: SecretPath | None = None
    """Contains the value instead, where that is a secret."""

    @model_validator(mode="after")
    def _check_one_value(self) -> Self:
        if (self.value is None) is (self.file is None):
            raise ValueError("expected either `value` or `file`")
        return self


HeaderSetting = Annotated[Header, BeforeValidator(_wrap_value, json_schema_input_type=str | Header)]


class Authorization(Section):
    """The header `Authorization` with a token."""

    type: Annotated[str, Field(pattern=f"^{_TOKEN.pattern}$")] = "Bearer"
    credentials_file: SecretPath


class BasicAuth(Section):
    """A user and its password."""

    username: Annotated[str, AfterValidator(_check_username)]
    password_file: PasswordPath


class TlsConfig(Section):
    """How a backend is recognised, and how the exporter shows who it is."""

    ca_file: FilePath | None = None
    """The authorities that count; without it those of the system."""
    cert_file: FilePath | None = None
    key_file: FilePath | None = None
    server_name: Name | None = None
    """The name in the backend's certificate, where the URL has another."""

    @model_validator(mode="after")
    def _check_pair(self) -> Self:
        if (self.cert_file is None) is not (self.key_file is None):
            raise ValueError("expected both cert_file and key_file, or neither of them")
        return self

    @property
    def files(self) -> list[Path]:
        return [file for file in (self.ca_file, self.cert_file, self.key_file) if file]


def load_tls_context(settings: TlsConfig) -> ssl.SSLContext | None:
    """The context of the files as they are; None where there are none. Raises FileCheckError."""
    if not settings.files:
        return None
    for file in settings.files:
        check_readable(file)
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
    except OSError:  # ssl.SSLError, too
        raise FileCheckError(f"ca_file {settings.ca_file}: expected certificates in PEM") from None
    if settings.cert_file:
        load_client_certificate(context, settings.cert_file, settings.key_file)
    return context


def _check_tls_files(settings: TlsConfig) -> Iterable[Path]:
    load_tls_context(settings)
    return [settings.key_file] if settings.key_file else []


class ProbeSettings(Section):
    """Interval and limits, of probes and of backend reads alike."""

    interval: Duration = 30.0
    timeout: Duration = 5.0
    """Of each call. While an endpoint stalls, a cycle takes its targets * timeout / concurrency, if over `interval`."""
    concurrency: int = Field(16, ge=1)
    """How many probes of one endpoint run at once; its key inspections and the backend reads may have as many."""
    min_interval: Duration = 5.0
    """`GET /probe` that comes sooner after the last probe of its target is answered with that one."""

    @model_validator(mode="after")
    def _check_timeout(self) -> Self:
        if self.timeout > self.interval:
            raise ValueError(f"expected a timeout ({self.timeout:g}s) of at most the interval ({self.interval:g}s)")
        return self

    @property
    def success_max_age(self) -> float:
        """Seconds after which a round trip no longer counts as a success: two intervals.

        Longer where a punctual round trip may take longer: the interval with its jitter, and two calls.
        """
        return max(2 * self.interval, 1.1 * self.interval + 2 * self.timeout)


class Backend(EgressSettings):
    """A process whose crypto state is read."""

    service: Name = ""
    """The label `service`; the one at the top where it is not set."""
    health_url: HttpUrl
    metrics_url: HttpUrl | None = None
    """Without it, the time of initialisation and the decryption errors are not exported."""
    resolve: Literal["all"] | None = None
    """`all`: each address behind the URLs' name is read by itself, with the label `replica`."""
    health: HealthSetting | None = None
    """Where another document says it than that of docs/reference.md."""
    metrics: Annotated[dict[str, MetricName], AfterValidator(_check_own_names)] = Field(default_factory=dict)
    """The backend's name of a metric, by ours."""
    headers: Annotated[dict[str, HeaderSetting], AfterValidator(_check_header_names)] = Field(default_factory=dict)
    """Sent with each request."""
    authorization: Authorization | None = None
    basic_auth: BasicAuth | None = None
    tls_config: Annotated[TlsConfig, FileCheck(_check_tls_files)] = TlsConfig()

    @model_validator(mode="after")
    def _check_single_host(self) -> Self:
        urls = [url for url in (self.health_url, self.metrics_url) if url]
        if self.resolve and len({urlsplit(url).hostname for url in urls}) > 1:
            raise ValueError("expected `health_url` and `metrics_url` with the same host, where `resolve` is set")
        return self

    @model_validator(mode="after")
    def _check_egress(self) -> Self:
        if self.ca_file and self.tls_config.ca_file:
            raise ValueError("expected `ca_file` or `tls_config.ca_file`, not both")
        if self.resolve and (self.proxy_url_file or self.proxy not in {None, DIRECT}):
            raise ValueError("expected no proxy, where `resolve` is set: the addresses are reached directly")
        return self

    @property
    def unread_metrics(self) -> bool | None:
        """`metrics_up` of a state whose metrics were not read."""
        return False if self.metrics_url else None

    @property
    def effective_tls_config(self) -> TlsConfig:
        """`tls_config`, with `ca_file` of either place."""
        return self.tls_config.model_copy(update={"ca_file": self.ca_file or self.tls_config.ca_file})

    @model_validator(mode="after")
    def _check_one_identity(self) -> Self:
        urls = [url for url in (self.health_url, self.metrics_url) if url]
        identities = (self.authorization, self.basic_auth, any(urlsplit(url).username is not None for url in urls))
        if sum(map(bool, identities)) > 1:
            raise ValueError("expected one of `authorization`, `basic_auth` and a user in the URLs")
        return self
