"""The only module that imports google-api-python-client: calls a method by its name, in bounded time.

The discovery documents are part of the package, so nothing is fetched. 429, 5xx and lost connections are retried with
backoff; a retry of a call that had succeeded gets 409, and the part is read again as after any conflict.
"""

import json
from collections.abc import Callable
from enum import Enum, auto
from typing import Any, Final

import google.auth
import google_auth_httplib2
import httplib2
from google.auth.credentials import AnonymousCredentials, Credentials
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
from googleapiclient.discovery import build
from googleapiclient.errors import HttpError

from shared import VERSION
from shared.check import HintedError
from shared.net.egress import Proxy, find_environment_proxy

_USAGE_ADMIN: Final = "roles/serviceusage.serviceUsageAdmin"
_DATA_OWNER: Final = "roles/bigquery.dataOwner"
_BUCKET_ADMIN: Final = "roles/storage.admin"
_OBJECT_VIEWER: Final = "roles/storage.objectViewer"
_LOG_VIEWER: Final = "roles/logging.privateLogViewer"
_LOG_CONFIG_WRITER: Final = "roles/logging.configWriter"

READ_LOGS_PERMISSION: Final = "logging.privateLogEntries.list"
"""Without it, a list of entries silently omits the Data Access logs."""

PERMISSIONS_BY_METHOD: Final = {
    "serviceusage.services.get": ("serviceusage.services.get", "roles/serviceusage.serviceUsageViewer"),
    "serviceusage.services.enable": ("serviceusage.services.enable", _USAGE_ADMIN),
    "serviceusage.operations.get": ("serviceusage.operations.get", _USAGE_ADMIN),
    "cloudresourcemanager.projects.getIamPolicy": (
        "resourcemanager.projects.getIamPolicy",
        "roles/iam.securityReviewer",
    ),
    "cloudresourcemanager.projects.setIamPolicy": (
        "resourcemanager.projects.setIamPolicy",
        "roles/resourcemanager.projectIamAdmin",
    ),
    "logging.projects.sinks.get": ("logging.sinks.get", _LOG_CONFIG_WRITER),
    "logging.projects.sinks.create": ("logging.sinks.create", _LOG_CONFIG_WRITER),
    "logging.projects.sinks.update": ("logging.sinks.update", _LOG_CONFIG_WRITER),
    "logging.entries.list": (READ_LOGS_PERMISSION, _LOG_VIEWER),
    "bigquery.datasets.get": ("bigquery.datasets.get", "roles/bigquery.metadataViewer"),
    "bigquery.datasets.insert": ("bigquery.datasets.create", _DATA_OWNER),
    "bigquery.datasets.patch": ("bigquery.datasets.update", _DATA_OWNER),
    "bigquery.jobs.query": (
        "bigquery.jobs.create and bigquery.tables.getData",
        "roles/bigquery.jobUser and roles/bigquery.dataViewer",
    ),
    "storage.buckets.get": ("storage.buckets.get", _BUCKET_ADMIN),
    "storage.buckets.insert": ("storage.buckets.create", _BUCKET_ADMIN),
    "storage.buckets.patch": ("storage.buckets.update", _BUCKET_ADMIN),
    "storage.buckets.getIamPolicy": ("storage.buckets.getIamPolicy", _BUCKET_ADMIN),
    "storage.buckets.setIamPolicy": ("storage.buckets.setIamPolicy", _BUCKET_ADMIN),
    "storage.objects.list": ("storage.objects.list", _OBJECT_VIEWER),
    "storage.objects.get_media": ("storage.objects.get", _OBJECT_VIEWER),
    "cloudkms.projects.locations.keyRings.list": ("cloudkms.keyRings.list", "roles/cloudkms.viewer"),
}
"""By API and method."""


def build_permission_hint(method: str) -> str:
    """Describe the permission to ask for; Google answers the same for a foreign name and for a missing one."""
    if method not in PERMISSIONS_BY_METHOD:  # it needs none
        return "check whether the names are right"
    permission, role = PERMISSIONS_BY_METHOD[method]
    return f"it needs {permission}: ask for {role} on the project, and check whether the names are right"


LOGIN_HINT: Final = (
    "log in with `gcloud auth application-default login`, or name a file in GOOGLE_APPLICATION_CREDENTIALS"
)
RETRY_HINT: Final = "run this again: it goes on where it stopped"


class ErrorKind(Enum):
    """The kind of a refusal, by what the caller can do."""

    MISSING = auto()
    CONFLICT = auto()
    """It has changed since it was read, or is there already."""
    INVALID = auto()
    FAILED = auto()


_KINDS: Final = {400: ErrorKind.INVALID, 404: ErrorKind.MISSING, 409: ErrorKind.CONFLICT, 412: ErrorKind.CONFLICT}


class GoogleError(HintedError):
    """Google refused a call."""

    def __init__(self, kind: ErrorKind, error: str, hint: str = "") -> None:
        super().__init__(error, hint)
        self.kind = kind


def is_transient(status: int, reasons: set[str]) -> bool:
    """Whether it may pass by itself; BigQuery and Cloud Storage have rate limits that answer 403."""
    return status == 429 or status >= 500 or "rateLimitExceeded" in reasons


def build_error(name: str, status: int, google_message: str, reasons: set[str]) -> GoogleError:
    """Classify an error response."""
    kind, api = _KINDS.get(status, ErrorKind.FAILED), name.partition(".")[0]
    if status == 401:
        return GoogleError(kind, "the credentials are not taken", LOGIN_HINT)
    if is_transient(status, reasons):
        return GoogleError(
            kind, f"{name} still fails with {status} ({google_message})", f"wait a minute and {RETRY_HINT}"
        )
    if "quota project" in google_message:  # a person's credentials need a project that pays for the calls
        hint = "say which with `gcloud auth application-default set-quota-project PROJECT`"
    elif reasons & {"SERVICE_DISABLED", "accessNotConfigured"}:
        hint = f"switch the API on with `gcloud services enable {api}.googleapis.com`, and wait a minute"
    elif status == 403:
        hint = build_permission_hint(name)
    else:
        hint = "check whether the names are right"
    return GoogleError(kind, f"{name} is refused with {status} ({google_message})", hint)


_APIS: Final = {
    "serviceusage": ("v1", ""),
    "cloudresourcemanager": ("v3", ""),
    "logging": ("v2", ""),
    "bigquery": ("v2", "bigquery/v2/"),
    "storage": ("v1", "storage/v1/"),
    "cloudkms": ("v1", ""),
}
"""Of each API the version, and the path that its methods are under."""
_SCOPE: Final = "https://www.googleapis.com/auth/cloud-platform"
_TIMEOUT_SECONDS: Final = 60.0
_MAX_ATTEMPTS: Final = 5
_MAX_PAUSE: Final = 32.0


class GoogleApi:
    """Google's APIs.

    Args:
        sleep: waits for some seconds.
        jitter: returns a random number from 0 to 1.
        endpoint: the base address of a stand-in for all APIs, which gets no credentials; None is Google.
    """

    def __init__(
        self, sleep: Callable[[float], None], jitter: Callable[[], float], endpoint: str | None = None
    ) -> None:
        self._sleep = sleep
        self._jitter = jitter
        self._endpoint = endpoint
        self._resources: dict[str, Any] = {}
        self._http: Any = None

    def close(self) -> None:
        if self._http is not None:
            self._http.close()

    def call(self, name: str, /, *, headers: dict[str, str] | None = None, **parameters: Any) -> Any:
        """Call a method; return its JSON, or bytes if its name ends in `_media`.

        Args:
            name: of API and method, such as `logging.projects.sinks.get`.
            headers: additional ones.
            parameters: of the method.

        Raises:
            GoogleError: the call was refused, or could not be sent.
        """
        request = self._build_request(name, parameters)
        request.headers.update({"user-agent": f"keypulse-audit/{VERSION}"} | (headers or {}))
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            pause = min(_MAX_PAUSE, 2.0**attempt) * (0.5 + self._jitter() / 2)
            try:
                return _execute(request, bytes if name.endswith("_media") else dict)
            except HttpError as error:
                reasons = _parse_reasons(error.content)
                if attempt == _MAX_ATTEMPTS or not is_transient(error.status_code, reasons):
                    message = " ".join(str(error.reason).split())
                    raise build_error(name, error.status_code, message, reasons) from None
                pause = max(pause, min(_MAX_PAUSE, _parse_retry_after(error)))
            except GoogleAuthError as error:
                what = f"the credentials cannot be used ({type(error).__name__})"
                raise GoogleError(ErrorKind.FAILED, what, LOGIN_HINT) from None
            except (OSError, httplib2.HttpLib2Error, ValueError, LookupError, TypeError) as error:
                if attempt == _MAX_ATTEMPTS:
                    what = f"{name} got no answer that can be read ({type(error).__name__})"
                    hint = f"check whether this machine reaches Google, and {RETRY_HINT}"
                    raise GoogleError(ErrorKind.FAILED, what, hint) from None
            self._sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def _build_request(self, name: str, parameters: dict[str, Any]) -> Any:
        path, _, method = name.rpartition(".")
        return getattr(self._get_resource(path), method)(**parameters)

    def _get_resource(self, path: str) -> Any:
        """An API, or a resource in it, which is kept: the client builds all methods whenever it is asked for one."""
        if path not in self._resources:
            parent, _, name = path.rpartition(".")
            self._resources[path] = getattr(self._get_resource(parent), name)() if parent else self._build_api(name)
        return self._resources[path]

    def _build_api(self, name: str) -> Any:
        if self._http is None:
            connection = httplib2.Http(timeout=_TIMEOUT_SECONDS, proxy_info=_EnvironmentProxy)
            self._http = google_auth_httplib2.AuthorizedHttp(self._load_credentials(), http=connection)
        version, path = _APIS[name]
        options = {"api_endpoint": f"{self._endpoint.rstrip('/')}/{name}/{path}"} if self._endpoint else None
        return build(
            name,
            version,
            http=self._http,
            client_options=options,
            static_discovery=True,
            cache_discovery=False,
        )

    def _load_credentials(self) -> Credentials:
        if self._endpoint:
            return AnonymousCredentials()  # type: ignore[no-untyped-call]
        try:
            credentials: Credentials = google.auth.default(scopes=[_SCOPE])[0]
        except DefaultCredentialsError:
            raise GoogleError(ErrorKind.FAILED, "there are no credentials for Google", LOGIN_HINT) from None
        return credentials


class _EnvironmentProxy(httplib2.ProxyInfo):  # type: ignore[misc]
    """The proxy that the environment names for a host; httplib2's own rules differ from those of the other programs."""

    def __init__(self, scheme: str) -> None:
        self._scheme = scheme
        self._proxy: Proxy | None = None

    def isgood(self) -> bool:
        """Whether to ask the next two."""
        return True

    def applies_to(self, hostname: str) -> bool:
        """Whether a proxy leads to a host. Raises EgressError."""
        self._proxy = find_environment_proxy(f"{self._scheme}://{hostname}")
        return self._proxy is not None

    def astuple(self) -> tuple[Any, ...]:
        """That proxy, as httplib2 wants it."""
        assert self._proxy  # noqa: S101  # by applies_to
        user, _, password = (self._proxy.login or "").partition(":")
        http_proxy, name_resolved_there = 3, True
        return http_proxy, *self._proxy.address, name_resolved_there, user or None, password or None, None


def _execute(request: Any, kind: type) -> Any:
    """Return the response; for one that is not Google's, such as a proxy's page, the SDK returns text, or fails."""
    answer = request.execute()
    if not isinstance(answer, kind):
        raise ValueError(f"expected {kind.__name__}, got {type(answer).__name__}")  # noqa: TRY004 - as the SDK's own
    return answer


def _parse_retry_after(error: HttpError) -> float:
    seconds = str(error.resp.get("retry-after", ""))
    return float(seconds) if seconds.isdecimal() else 0.0


def _parse_reasons(content: bytes) -> set[str]:
    """Return Google's error codes, in both forms: `errors[].reason`, and `details[].reason` of an ErrorInfo."""
    try:
        error = json.loads(content)["error"]
        return {str(each["reason"]) for key in ("errors", "details") for each in error.get(key, []) if "reason" in each}
    except (ValueError, KeyError, TypeError, AttributeError):
        return set()
