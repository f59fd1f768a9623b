"""Addresses, durations and sizes as a person writes them."""

import pytest
from pydantic import TypeAdapter, ValidationError

from shared.config.settings import Size, parse_address, parse_duration


@pytest.mark.parametrize("text", ["", "9000", ":9000", "127.0.0.1", "127.0.0.1:", "127.0.0.1:-1", "127.0.0.1:65536"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected HOST:PORT"):
        parse_address(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("30s", 30), ("1.5m", 90), ("1h30m", 5400), ("2d", 172800), ("0", 0), (0, 0)]
)
def test_a_duration_is_seconds(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5 s", "s", "-5s", "5s!", "1h 30m", "5S", "5", "1h30", 30, 0.5, -3, True, None])
def test_what_is_no_duration_or_has_no_unit_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="expected a duration"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["127.0.0.1:0", "127.8.8.8:1", "[::1]:65535", "localhost:9000"])
def test_an_address_of_this_machine_is_known(text: str) -> None:
    assert parse_address(text).is_loopback


@pytest.mark.parametrize(
    ("value", "size"),
    [("16MiB", 16 * 2**20), ("1GiB", 2**30), ("512KiB", 2**19), ("1.5MiB", 3 * 2**19), (7, 7), ("7", 7)],
)
def test_a_size_is_bytes(value: object, size: int) -> None:
    assert TypeAdapter(Size).validate_python(value) == size


@pytest.mark.parametrize("value", ["16 apples", "", "-1MiB", 0, None, "MiB", []])
def test_what_is_no_size_is_refused_with_an_example(value: object) -> None:
    with pytest.raises(ValidationError, match=r"expected a size such as 512KiB, 16MiB or 1GiB|greater than 0"):
        TypeAdapter(Size).validate_python(value)
