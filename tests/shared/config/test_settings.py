from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
import yaml
from pydantic import Field

from shared.config.errors import ConfigurationError
from shared.config.server_settings import ServerSettings
from shared.config.settings import Address, Duration, FilePath, ListenAddress, Section, load_settings
from shared.config.yaml_file import find_cut_off_values


class Part(Section):
    name: str
    wait: Duration = 5.0


class Cat(Section):
    kind: Literal["cat"]
    lives: int = 9


class Dog(Section):
    kind: Literal["dog"]
    tricks: int = 0


class Settings(ServerSettings):
    service_name: ClassVar[str] = "sample"

    listen: ListenAddress = Address("127.0.0.1", 9000)
    part: Part
    parts: dict[str, Part] = Field(default_factory=dict)
    some: tuple[Part, ...] = ()
    pets: dict[str, Annotated[Cat | Dog, Field(discriminator="kind")]] = Field(default_factory=dict)
    secret_file: FilePath | None = None
    url: str = ""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "sample.yml"


def _write(file: Path, **document: Any) -> Path:
    file.write_text(yaml.safe_dump({"part": {"name": "p"}, **document}))
    return file


def _lines(file: Path | None) -> list[str]:
    with pytest.raises(ConfigurationError) as refused:
        load_settings(Settings, file)
    return refused.value.lines


def test_a_file_is_read_and_the_rest_are_defaults(file: Path) -> None:
    settings = load_settings(Settings, _write(file, part={"name": "p", "wait": "1h30m"}))
    assert (settings.part.name, settings.part.wait, settings.listen) == ("p", 5400.0, Address("127.0.0.1", 9000))


def test_every_error_has_one_line_with_file_key_and_what_was_expected(file: Path) -> None:
    _write(file, listen="everywhere", part={"nmae": "p", "wait": "soon"}, prat=1)
    assert _lines(file) == [
        f"{file}: listen: expected HOST:PORT, such as 127.0.0.1:9912, got 'everywhere'",
        f"{file}: part.name: missing; it has no default",
        f"{file}: part.wait: expected a duration such as 30s, 5m or 1h30m, got 'soon'",
        f"{file}: part.nmae: unknown key; did you mean name?",
        f"{file}: prat: unknown key; did you mean part?",
    ]


def test_the_environment_wins_over_the_file_key_by_key(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYPULSE_SAMPLE__PART__WAIT", "7s")
    monkeypatch.setenv("KEYPULSE_SAMPLE__LISTEN", "127.0.0.1:9001")
    settings = load_settings(Settings, _write(file, part={"name": "p", "wait": "1s"}))
    assert (settings.part.name, settings.part.wait, settings.listen.port) == ("p", 7.0, 9001)


def test_the_environment_alone_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYPULSE_SAMPLE__PART__NAME", "p")
    assert load_settings(Settings, None).part.name == "p"


def test_an_error_in_a_variable_is_named_by_the_variable(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYPULSE_SAMPLE__PART__WAIT", "soon")
    assert _lines(_write(file)) == [
        "KEYPULSE_SAMPLE__PART__WAIT: part.wait: expected a duration such as 30s, 5m or 1h30m, got 'soon'"
    ]


def test_a_variable_that_is_not_json_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYPULSE_SAMPLE__PART", "p")
    assert _lines(_write(file)) == ["KEYPULSE_SAMPLE__PART: expected JSON for a list or a mapping"]


@pytest.mark.parametrize("name", ["KEYPULSE_SAMPLE__PRAT", "KEYPULSE_SAMPLE__PRAT__NAME", "keypulse_sample__prat"])
def test_an_unknown_variable_is_refused(name: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "x")
    assert _lines(_write(file)) == [f"{name}: unknown key; did you mean part?"]


def test_a_missing_file_and_one_that_is_no_mapping_are_one_line(file: Path) -> None:
    assert _lines(file) == [f"{file}: cannot be read: No such file or directory"]
    file.write_text("- a\n- b\n")
    assert _lines(file) == [f"{file}: expected a mapping of keys to values"]
    file.write_text("1: a\n")
    assert _lines(file) == [f"{file}: expected a mapping of keys to values"]


@pytest.mark.parametrize(
    "content",
    [b"a: [", b"\xff\xfe\xfa", b"a: !!python/object:os.system x", b"a: 2026-99-99", b"a: !!int x"],
)
def test_what_is_not_yaml_is_one_line(content: bytes, file: Path) -> None:
    file.write_bytes(content)
    (line,) = _lines(file)
    assert line.startswith(f"{file}: is not usable YAML: ")
    assert "\n" not in line


def test_a_relative_path_starts_at_the_files_folder_and_an_absolute_one_stays(file: Path) -> None:
    assert load_settings(Settings, _write(file, secret_file="a/token")).secret_file == file.parent / "a" / "token"
    assert load_settings(Settings, _write(file, secret_file="/run/token")).secret_file == Path("/run/token")


def test_a_url_with_a_password_is_not_repeated(file: Path) -> None:
    class Strict(Settings):
        url: ListenAddress = Address("127.0.0.1", 1)  # type: ignore[assignment]  # any field that refuses a URL

    _write(file, url="postgresql://me:hunter2@db.example.org")
    with pytest.raises(ConfigurationError) as refused:
        load_settings(Strict, file)
    assert refused.value.lines == [f"{file}: url: expected HOST:PORT, such as 127.0.0.1:9912"]


@pytest.mark.parametrize("wait", [0, -1, "0s", float("inf"), float("nan")])
def test_a_wait_without_a_bound_is_refused(wait: object, file: Path) -> None:
    (line,) = _lines(_write(file, part={"name": "p", "wait": wait}))
    assert line.startswith(f"{file}: part.wait: ")


def test_a_key_that_stands_twice_is_an_error_with_its_line(file: Path) -> None:
    file.write_text("part: {name: p}\nparts:\n  a: {name: one}\n  a: {name: two}\n")
    (line,) = _lines(file)
    assert "the key 'a' is there twice" in line
    assert "line 4" in line


def test_an_error_inside_a_kind_is_named_as_it_is_written(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(file, pets={"cat": {"kind": "cat", "tricks": 3}, "rex": {"kind": "dog", "tricks": "none"}})
    assert _lines(file) == [
        f"{file}: pets.cat.tricks: unknown key; see --print-schema for those that exist",
        f"{file}: pets.rex.tricks: expected a whole number, got 'none'",
    ]
    _write(file, pets={"rex": {"kind": "dog"}})
    monkeypatch.setenv("KEYPULSE_SAMPLE__PETS__REX__TRICKS", "x")
    (line,) = _lines(file)
    assert line.startswith("KEYPULSE_SAMPLE__PETS__REX__TRICKS: pets.rex.tricks: ")


def test_a_number_without_a_unit_is_no_duration_wherever_it_comes_from(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (line,) = _lines(_write(file, part={"name": "p", "wait": 7}))
    assert line == f"{file}: part.wait: expected a duration with its unit, such as 30s, 5m or 1h30m, got 7"
    _write(file, part={"name": "p", "wait": "7s"})
    monkeypatch.setenv("KEYPULSE_SAMPLE__PART__WAIT", "8")
    (line,) = _lines(file)
    assert line.endswith("part.wait: expected a duration with its unit, such as 30s, 5m or 1h30m, got '8'")


def test_a_path_with_a_nul_and_endless_nesting_are_one_line_each(file: Path) -> None:
    (line,) = _lines(_write(file, secret_file="a\0b"))
    assert line.startswith(f"{file}: secret_file: expected a path; a NUL character")
    file.write_text("[" * 3000)
    assert _lines(file) == [f"{file}: is nested too deeply"]


def test_a_kind_that_is_missing_or_unknown_is_named(file: Path) -> None:
    assert _lines(_write(file, pets={"rex": {}})) == [f"{file}: pets.rex.kind: missing; it has no default"]
    (line,) = _lines(_write(file, pets={"rex": {"kind": "fish"}}))
    assert line == f"{file}: pets.rex.kind: expected one of 'cat', 'dog'"
    (line,) = _lines(_write(file, pets={"rex": {"kind": "dogg"}}))
    assert line == f"{file}: pets.rex.kind: expected one of 'cat', 'dog'; did you mean dog?"


def test_the_keys_of_a_kind_are_proposed_for_that_kind(file: Path) -> None:
    _write(file, pets={"rex": {"kind": "dog", "trick": 3}})
    assert _lines(file) == [f"{file}: pets.rex.trick: unknown key; did you mean tricks?"]


@pytest.mark.parametrize("value", ["{value}: #none", "{value}:  #none # and a comment", "{value}: 12 #none"])
def test_a_value_that_a_hash_cuts_off_is_recognised(value: str, file: Path) -> None:
    file.write_text(f"part: {{name: p}}\n{value.format(value='listen')}\n")
    expected = f"{file}: listen: YAML takes # and what follows it for a comment; expected the value in quotes"
    assert _lines(file) == [expected]


def test_a_bracket_that_a_hash_keeps_open_is_recognised(file: Path) -> None:
    file.write_text("part: {name: #ops, wait: 1s}\nlisten: 127.0.0.1:1\n")
    (line,) = _lines(file)
    assert line.endswith("; line 1: YAML takes # and what follows it for a comment; put the value in quotes")


def test_a_value_that_is_cut_off_is_found_once_however_many_aliases_lead_to_it(file: Path) -> None:
    aliases = "".join(f"- &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 5))
    file.write_text(f"- &a0\n  - x #1\n{aliases}")
    assert find_cut_off_values(file) == {(0, 0)}


def test_without_any_configuration_one_sentence_says_where_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError) as refused:
        load_settings(Settings, None)
    expected = "no configuration; expected --config FILE; docs/configuration/sample.md has one to begin with"
    assert refused.value.lines == [expected]
    monkeypatch.setenv("KEYPULSE_SAMPLE__LISTEN", "127.0.0.1:1")
    with pytest.raises(ConfigurationError) as refused:
        load_settings(Settings, None)
    assert refused.value.lines == ["environment: part: missing; it has no default"]
