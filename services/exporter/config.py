"""The settings of the exporter: YAML → frozen settings, or one line for each error."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    Field,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, InitErrorDetails

from services.exporter.backends.settings import Backend, Name, ProbeSettings
from services.exporter.probes.canaries import DISK_TIMEOUT
from shared.config.server_settings import ServerSettings
from shared.config.settings import (
    Address,
    FilePath,
    HttpUrl,
    Interval,
    ListenAddress,
    PageLinks,
    Section,
    is_placeholder_url,
    parse_duration,
)
from shared.credentials import ReadValidity, read_certificate, read_first_to_end
from shared.kms.registry import KeySettings
from shared.kms.settings import ProviderSettings
from shared.process.concurrency import start_in_thread


def _refuse_fragment(url: str) -> str:
    if "#" in url:
        raise ValueError("expected a URL without #; the board adds the section")
    return url


def _refuse_placeholder(url: str, info: ValidationInfo) -> str:
    if is_placeholder_url(url) and info.data.get("environment") == "production":
        raise ValueError("a placeholder is not allowed in production; expected an address of your own")
    return url


class ProofSettings(Section):
    """When a proof of the path of alerts begins."""

    every: Interval = 900.0
    """Seconds from one proof to the next; 0 for none."""


def _check_proof(proof: ProofSettings, info: ValidationInfo) -> ProofSettings:
    """A proof takes minutes with intervals of production, and its rule shows whole seconds."""
    least = "10s" if info.data.get("environment") == "demo" else "5m"
    if proof.every and (proof.every < parse_duration(least) or proof.every % 1):
        raise ValueError(f"expected `every` in whole seconds, of {least} at least, or 0 for no proofs")
    return proof


class Target(Section):
    """A key that is probed. In the file, the settings of the key stand on the same level as the others."""

    name: Name
    service: Name = ""
    """The label `service`; the one at the top where it is not set."""
    canary_dir: FilePath | None = None
    """Where ciphertexts of older versions are kept, one file for each target; the folder has to exist."""
    kms: KeySettings

    @model_validator(mode="wrap")
    @classmethod
    def _nest_key_settings(cls, value: object, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(value, Mapping):
            return handler(value)
        own = {name: value[name] for name in _TARGET_FIELDS if name in value}
        of_the_key = {name: entry for name, entry in value.items() if name not in _TARGET_FIELDS}
        kms = of_the_key.get("kms")
        nested = kms if isinstance(kms, ProviderSettings) and len(of_the_key) == 1 else of_the_key
        try:
            return handler({**own, "kms": nested})
        except ValidationError as error:
            raise ValidationError.from_exception_data(
                error.title, [_flatten(each) for each in error.errors()]
            ) from None

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Each provider's properties beside those of the target."""
        own = handler.resolve_ref_schema(handler(schema))
        kms = own["properties"].pop("kms")
        required = [name for name in own["required"] if name != "kms"]
        if "oneOf" not in kms:
            return own | _merge_properties(own["properties"], required, handler.resolve_ref_schema(kms))
        members = [_merge_properties(own["properties"], required, handler.resolve_ref_schema(m)) for m in kms["oneOf"]]
        named = {"title": own["title"], "description": own["description"]}
        return {**named, "oneOf": members, "discriminator": {"propertyName": "provider"}}


_TARGET_FIELDS: Final = ("name", "service", "canary_dir")


def _flatten(error: Any) -> InitErrorDetails:
    """An error of the settings of a key, at the place where they stand in the file."""
    loc = error["loc"][1:] if error["loc"][:1] == ("kms",) else error["loc"]
    return InitErrorDetails(type=error["type"], loc=loc, input=error["input"], ctx=error.get("ctx", {}))


def _merge_properties(own: dict[str, Any], required: list[str], kms: dict[str, Any]) -> dict[str, Any]:
    return {
        "additionalProperties": False,
        "properties": {**own, **kms["properties"]},
        "required": [*required, *kms.get("required", [])],
        "type": "object",
    }


ServiceEntry = TypeVar("ServiceEntry", Target, Backend)


class ExporterSettings(ServerSettings):
    """The whole configuration; once it is valid, every target and backend has its `service`."""

    service_name: ClassVar[str] = "exporter"
    first_configuration: ClassVar[str] = "`keypulse-exporter init --target KEY > exporter.yml` writes one to begin with"

    listen: ListenAddress = Address("127.0.0.1", 9911)
    service: Name | None = None
    probe: ProbeSettings = ProbeSettings()
    targets: tuple[Target, ...] = ()
    backends: tuple[Backend, ...] = ()
    # Before what may be a placeholder everywhere but in production.
    environment: Literal["production", "staging", "demo"] = "production"
    proof: Annotated[ProofSettings, AfterValidator(_check_proof)] = ProofSettings()
    runbook_url: Annotated[HttpUrl, AfterValidator(_refuse_fragment), AfterValidator(_refuse_placeholder)] | None = None
    """The URL of docs/KMS_OPERATIONS.md inside the organisation; the board links to its sections."""
    page_links: PageLinks = Field(default_factory=dict)
    """In the head of every page, such as `{Console: "https://relay.example.org"}`."""

    @field_validator("targets", mode="after")
    @classmethod
    def _check_targets(cls, targets: tuple[Target, ...], info: ValidationInfo) -> tuple[Target, ...]:
        _refuse_duplicates("name", (target.name for target in targets))
        return _apply_default_service(targets, info)

    @field_validator("backends", mode="after")
    @classmethod
    def _check_backends(cls, backends: tuple[Backend, ...], info: ValidationInfo) -> tuple[Backend, ...]:
        backends = _apply_default_service(backends, info)
        # One entry is one process: two of one service would show their counters under the same labels.
        _refuse_duplicates("service", (backend.service for backend in backends))
        return backends

    @model_validator(mode="after")
    def _check_not_empty(self) -> Self:
        if not self.targets and not self.backends:
            raise ValueError("nothing to watch; expected at least one entry in `targets` or `backends`")
        return self

    def list_credentials(self) -> Mapping[str, ReadValidity]:
        """What reads the end of each credential that the exporter authenticates with, by what it is."""
        reads: dict[str, list[ReadValidity]] = {}
        for target in self.targets:
            for name, read in target.kms.list_credentials().items():
                reads.setdefault(name, []).append(read)
        found: dict[str, ReadValidity] = {name: partial(read_first_to_end, each) for name, each in reads.items()}
        for backend in self.backends:
            if file := backend.tls_config.cert_file:
                found[f"client certificate for the backend {backend.service}"] = partial(read_certificate, file)
        return found

    def find_warnings(self) -> Iterator[tuple[str, str]]:
        """A missing folder prevents no probe: it may be mounted later, and until then each inspection reports it."""
        is_usable = {
            folder: is_folder_usable(folder) for folder in {target.canary_dir for target in self.targets} if folder
        }
        for n, target in enumerate(self.targets):
            if target.canary_dir and not is_usable[target.canary_dir]:
                expected = f"expected a folder that this user may read and write, got {str(target.canary_dir)!r}"
                yield f"targets.{n}.canary_dir", f"{expected}; until it is there canaries are in memory only"


def is_folder_usable(folder: Path) -> bool:
    """Whether this user can read and write in the folder; False, too, where its disk does not answer. Blocks."""
    try:
        return start_in_thread("canary folder", lambda: _has_access(folder)).result(DISK_TIMEOUT)
    except TimeoutError:
        return False


def _has_access(folder: Path) -> bool:
    return os.path.isdir(folder) and os.access(folder, os.R_OK | os.W_OK | os.X_OK)  # noqa: PTH112  never raises


def _apply_default_service(entries: tuple[ServiceEntry, ...], info: ValidationInfo) -> tuple[ServiceEntry, ...]:
    default = info.data.get("service")
    if default is None and (without := [str(n) for n, entry in enumerate(entries) if not entry.service]):
        raise ValueError(f"entry {', '.join(without)} has no `service`, and there is none at the top; set either")
    return tuple(entry if entry.service else entry.model_copy(update={"service": default}) for entry in entries)


def _refuse_duplicates(key: str, values: Iterable[str]) -> None:
    repeated = [value for value, count in Counter(values).items() if count > 1]
    if repeated:
        raise ValueError(f"expected each `{key}` once; more than one entry has {', '.join(map(repr, repeated))}")
