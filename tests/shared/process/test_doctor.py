"""The command `doctor`: its lines, its JSON and its exit code."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar

import click
import pytest
from click.testing import CliRunner, Result

from shared.check import Check, CheckAdvice, CheckError
from shared.config.settings import CommandSettings, SecretPath
from shared.process.doctor import create_doctor_command, run_checks_concurrently


class Settings(CommandSettings):
    service_name: ClassVar[str] = "sample"

    secret_file: SecretPath
    works: bool = True
    advises: bool = False


opened: list[str] = []


@asynccontextmanager
async def open_checks(settings: Settings) -> AsyncIterator[Sequence[Check]]:
    async def check() -> str:
        if not settings.works:
            raise CheckError("it is broken", "repair it")
        return "it works"

    async def advise() -> str:
        raise CheckAdvice("it could be quicker", "add memory")

    opened.append("open")
    yield [
        Check("thing", check),
        Check("other", check, "thing"),
        *([Check("speed", advise)] if settings.advises else []),
    ]
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
    @click.option("--config", type=click.Path(path_type=Path))
    def main(config: Path | None) -> None:
        assert config == before

    main.add_command(command)
    return CliRunner().invoke(main, [*(["--config", str(before)] if before else []), "doctor", *arguments])


def test_a_line_each_and_zero_where_all_is_healthy(file: Path) -> None:
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
    assert end == "2 of 3 checks failed, 1 skipped"


def test_what_depends_on_a_file_that_others_may_read_is_checked_all_the_same(file: Path) -> None:
    (file.parent / "secret").chmod(0o644)

    @asynccontextmanager
    async def open_dependent(_: Settings) -> AsyncIterator[Sequence[Check]]:
        yield [Check("answer", fine, "secret_file"), Check("further", fine, "answer")]

    command = create_doctor_command(Settings, open_dependent, "keypulse-sample")
    result = CliRunner().invoke(command, ["--config", str(file)])
    assert result.exit_code == 1
    secret, answer, further, end = result.output.splitlines()
    assert "others may read it (mode 0644); run: chmod o-rwx" in secret
    assert answer.startswith("✓ answer: fine")
    assert further.startswith("✓ further: fine")
    assert end == "1 of 3 checks failed"


def test_an_advice_is_counted_by_name_and_is_no_failure(file: Path) -> None:
    file.write_text("secret_file: secret\nadvises: true\n")
    result = run("--config", str(file))
    assert result.exit_code == 0
    *_, advice, end = result.output.splitlines()
    assert advice == "- speed: it could be quicker; add memory"
    assert end == "all 4 checks passed, 1 with advice: speed"
    rows = json.loads(run("--config", str(file), "--json").output)
    assert rows["ok"]
    assert rows["checks"][-1] == {"name": "speed", "ok": True, "detail": "it could be quicker", "hint": "add memory"}


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


async def fine() -> str:
    return "fine"


async def never() -> str:
    raise AssertionError


async def test_checks_run_at_once_and_their_results_keep_the_order() -> None:
    second_runs = asyncio.Event()

    async def wait_for_second() -> str:
        await second_runs.wait()
        return "first"

    async def second() -> str:
        second_runs.set()
        return "second"

    checks = [Check("first", wait_for_second), Check("second", second), Check("third", fine, depends_on="first")]
    results = await run_checks_concurrently(checks, timeout=10)
    assert [(result.name, result.detail) for result in results] == [
        ("first", "first"),
        ("second", "second"),
        ("third", "fine"),
    ]


async def test_no_more_checks_run_at_once_than_may() -> None:
    running = most = 0

    async def count() -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return ""

    await run_checks_concurrently([Check(str(n), count) for n in range(9)], timeout=10, max_concurrent=3)
    assert most == 3


@pytest.mark.looptime
async def test_a_check_that_hangs_or_breaks_stops_no_other_one() -> None:
    async def hang() -> str:
        await asyncio.sleep(3600)
        return ""

    checks = [Check("hangs", hang), Check("breaks", never), Check("needs it", never, "hangs"), Check("works", fine)]
    hanging, breaking, skipped, working = await run_checks_concurrently(checks, timeout=15)
    assert hanging.detail == "no answer within 15 s"
    assert breaking.detail == "a defect of keypulse: AssertionError"
    assert skipped.detail == "skipped: it depends on 'hangs'"
    assert [each.is_ok for each in (hanging, breaking, skipped, working)] == [False, False, False, True]
    assert all(each.hint for each in (hanging, breaking))
