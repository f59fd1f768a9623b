"""The command `doctor`: its lines, its JSON and its exit code."""

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar

import click
import pytest
import structlog
from click.testing import CliRunner, Result

from shared.check import Check, CheckError
from shared.config.settings import CommandSettings, SecretPath
from shared.process.doctor import create_doctor_command


class Settings(CommandSettings):
    service_name: ClassVar[str] = "sample"

    secret_file: SecretPath
    works: bool = True


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()


opened: list[str] = []


@asynccontextmanager
async def open_checks(settings: Settings) -> AsyncIterator[Sequence[Check]]:
    async def check() -> str:
        if not settings.works:
            raise CheckError("it is broken", "repair it")
        return "it works"

    opened.append("open")
    yield [Check("thing", check), Check("other", check, "thing")]
    opened.append("closed")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "secret").touch(mode=0o600)
    (tmp_path / "secret").write_text("a secret")
    (tmp_path / "sample.yml").write_text("secret_file: secret\n")
    return tmp_path / "sample.yml"


def run(*arguments: str, before: Path | None = None) -> Result:
    command = create_doctor_command(Settings, open_checks, "keypulse-sample")

    @click.group()
    @click.pass_context
    def main(context: click.Context) -> None:
        context.obj = before

    main.add_command(command)
    return CliRunner().invoke(main, ["doctor", *arguments])


def test_a_line_each_and_zero_where_all_is_well(file: Path) -> None:
    opened.clear()
    result = run("--config", str(file))
    assert result.exit_code == 0
    secret, thing, other, end = result.output.splitlines()
    assert secret.startswith(f"✓ secret_file: {file.parent}/secret (")
    assert thing.startswith("✓ thing: it works (")
    assert other.startswith("✓ other: it works (")
    assert end == "all 3 checks passed"
    assert opened == ["open", "closed"]
    assert run(before=file).exit_code == 0, "the configuration may stand before the command"


def test_what_fails_is_counted_and_exits_with_1(file: Path) -> None:
    file.write_text("secret_file: missing\nworks: false\n")
    result = run("--config", str(file))
    assert result.exit_code == 1
    secret, thing, other, end = result.output.splitlines()
    assert secret.startswith(f"✗ secret_file: {file.parent}/missing: No such file or directory; expected a file with")
    assert thing.startswith("✗ thing: it is broken; repair it (")
    assert other == "- other: skipped: it depends on 'thing'"
    assert end == "3 of 3 checks failed"


def test_json_has_the_fields_that_programs_rely_on(file: Path) -> None:
    file.write_text("secret_file: secret\nworks: false\n")
    result = run("--config", str(file), "--json")
    assert result.exit_code == 1
    assert json.loads(result.output) == {
        "checks": [
            {"name": "secret_file", "ok": True, "detail": f"{file.parent}/secret", "hint": ""},
            {"name": "thing", "ok": False, "detail": "it is broken", "hint": "repair it"},
            {"name": "other", "ok": False, "detail": "skipped: it depends on 'thing'", "hint": ""},
        ],
        "ok": False,
    }


def test_an_error_in_the_configuration_is_the_line_of_every_command_and_2(file: Path) -> None:
    file.write_text("secret_fle: secret\n")
    result = run("--config", str(file), "--json")
    assert result.exit_code == 2
    assert f"{file}: secret_fle: unknown key; did you mean secret_file?" in result.stderr
    assert result.stdout == ""


def test_no_configuration_is_one_sentence_and_2() -> None:
    result = run()
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert result.stderr.startswith("no configuration; expected --config FILE; ")
