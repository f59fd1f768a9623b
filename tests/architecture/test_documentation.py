"""A setting, metric, endpoint or command that is not documented fails here."""

import importlib
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from services.exporter.config import Target
from services.exporter.metrics.targets import BackendMetrics, TargetMetrics
from services.exporter.model import TargetKey
from services.relay.channels.registry import AnyChannel
from shared.config.server_settings import ServerSettings
from shared.config.settings import CommandSettings, load_settings
from shared.kms.registry import providers
from shared.kms.settings import ProviderSettings
from tests.architecture.test_roles import TABLE

ROOT = Path(__file__).parents[2]
CONFIGURED = ("exporter", "relay", "backend", "rotator")
REFERENCE = (ROOT / "docs/reference.md").read_text(encoding="utf-8")
SOURCES = {
    file: file.read_text(encoding="utf-8")
    for package in ("services", "shared", "ops")
    for file in (ROOT / package).rglob("*.py")
}


def settings_of(server: str) -> type[CommandSettings]:
    module = importlib.import_module(f"services.{server}.config")
    return next(
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, CommandSettings) and "service_name" in vars(value)
    )


def models_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif isinstance(annotation, types.GenericAlias) or typing.get_origin(annotation) is not None:
        for argument in typing.get_args(annotation):
            yield from models_in(argument)


def keys_of(model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        if field.annotation is not ProviderSettings or model is not Target:  # those of a target stand beside its own
            yield field.alias or name
        for child in providers.values() if field.annotation is ProviderSettings else models_in(field.annotation):
            yield from keys_of(child)


def configuration_of(server: str) -> str:
    """What docs/configuration says of a server; the relay's channels have a page of their own."""
    pages = (server, "channels") if server == "relay" else (server,)
    return "".join((ROOT / f"docs/configuration/{page}.md").read_text(encoding="utf-8") for page in pages)


@pytest.mark.parametrize("server", CONFIGURED)
def test_every_setting_is_explained(server: str) -> None:
    rows = re.findall(r"^\| `([\w.]+)`", configuration_of(server), re.MULTILINE)
    explained = {row.rpartition(".")[2] for row in rows}
    assert set(keys_of(settings_of(server))) - explained == set()


@pytest.mark.parametrize("server", CONFIGURED)
def test_no_setting_is_explained_that_does_not_exist(server: str) -> None:
    rows = re.findall(r"^\| `([\w.]+)`", configuration_of(server), re.MULTILINE)
    assert {row.rpartition(".")[2] for row in rows} - set(keys_of(settings_of(server))) == set()


def test_every_kind_of_channel_is_explained() -> None:
    """Many have the same keys: each needs its own `kind`."""
    kinds = {kind for each in models_in(AnyChannel) for kind in typing.get_args(each.model_fields["kind"].annotation)}
    explained = re.findall(r"^\| `kind` \| required \| `(\w+)`", configuration_of("relay"), re.MULTILINE)
    assert kinds == {*explained}, "each kind has a section in docs/configuration/channels.md, with its row"


def test_what_every_kind_of_channel_proves_is_explained() -> None:
    kinds = {kind for each in models_in(AnyChannel) for kind in typing.get_args(each.model_fields["kind"].annotation)}
    section = configuration_of("relay").partition("\n## What a channel proves\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\w+)[^|]*\| `(\w+)`", section, re.MULTILINE)
    assert {(kind, "reachable") for kind in kinds} == {*rows}, "each kind has a row under What a channel proves"


@pytest.mark.parametrize("server", CONFIGURED)
def test_the_example_is_a_valid_configuration(server: str, tmp_path: Path) -> None:
    example = re.search(r"```yaml\n(.*?)```", configuration_of(server), re.DOTALL)
    assert example, "no example"
    file = tmp_path / f"{server}.yml"
    file.write_text(example[1], encoding="utf-8")
    settings = load_settings(settings_of(server), file)
    assert not isinstance(settings, ServerSettings) or settings.listen.is_loopback


def test_every_metric_is_explained() -> None:
    created = re.compile(
        r'\b(?:[Cc]ounter|[Gg]auge|Histogram|CounterMetricFamily|GaugeMetricFamily)\(\s*(?:"(\w+)"|([A-Z_]+))'
    )
    constants = dict(re.findall(r'^([A-Z_]+)(?:: Final)? = "([a-z_]+)"', "\n".join(SOURCES.values()), re.MULTILINE))
    names = {name or constants[constant] for text in SOURCES.values() for name, constant in created.findall(text)}
    exporter = TargetMetrics("", "", TargetKey()), BackendMetrics()
    names |= {family.name for part in exporter for family in part.collect()}
    assert names >= {"crypto_mode", "kms_probes", "relay_webhooks_total", "keypulse_build_info"}
    assert {name for name in names if f"`{name}" not in REFERENCE} == set()


def test_every_endpoint_is_explained() -> None:
    servers = (endpoints for server, endpoints in TABLE.items() if server != "stand-ins")
    paths = {endpoint.split()[1] for endpoints in servers for endpoint in endpoints}
    assert "/alerts" in paths
    assert {path for path in paths if f"{path}`" not in REFERENCE} == set()


@pytest.mark.parametrize("name", ["KMS_SETUP_CHECKLIST", "GITHUB"])
def test_a_document_sets_the_variables_and_writes_the_token_files_that_its_commands_use(name: str) -> None:
    text = (ROOT / f"docs/{name}.md").read_text(encoding="utf-8")
    commands = "".join(re.findall(r"^ *```(?:bash|sh)\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL))
    used = set(re.findall(r"\$\{?([A-Z][A-Z_]+)", commands)) - {"PATH", "PWD"}
    assert used - set(re.findall(r"\b([A-Z][A-Z_]+)=", commands)) == set()
    files = re.findall(r"--[\w-]*token-file (\S+)", commands)
    assert [file for file in files if f">{file}" not in commands.partition(f"token-file {file}")[0]] == []


def test_every_command_of_the_distribution_is_named_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    scripts = re.findall(r"^(keypulse-[a-z]+) = ", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert scripts
    assert [script for script in scripts if script not in readme] == []
