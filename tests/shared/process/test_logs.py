"""What a line of the log may hold, whatever is logged."""

import json
import logging
import re
from collections.abc import Iterator

import pytest
import structlog

from shared.process import logs
from shared.process.logs import Format, Level

INVISIBLE = "\x00\x1b\x7f\x85\xa0\xad\u061c\u200b\u200e\u2028\u2029\u202e\u2066\ufeff\ufff9\U000e0001\ud800"


@pytest.fixture(autouse=True)
def _configuration() -> Iterator[None]:
    root, of_structlog = logging.getLogger(), structlog.get_config()
    handlers, levels = root.handlers[:], {logger: logger.level for logger in _list_loggers()}
    yield
    root.handlers[:] = handlers
    for logger in _list_loggers():
        logger.setLevel(levels.get(logger, logging.NOTSET))
    logging.captureWarnings(capture=False)
    structlog.configure(**of_structlog)


def _list_loggers() -> list[logging.Logger]:
    found = logging.root.manager.loggerDict.values()
    return [logging.getLogger(), *(each for each in found if isinstance(each, logging.Logger))]


@pytest.mark.parametrize("form", ["json", "logfmt"])
def test_no_line_contains_what_ends_lines_reverses_text_or_cannot_be_seen(
    form: Format, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure("relay", line_format=form)
    logging.getLogger("library").warning("a%sb", INVISIBLE)
    structlog.get_logger("own").warning("own", text=f"ü漢😀{INVISIBLE}", nested={"key": [INVISIBLE]})
    lines = capsys.readouterr().err.removesuffix("\n").split("\n")
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines), [ascii(line) for line in lines]


def test_what_is_escaped_can_be_read_again(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("relay")
    structlog.get_logger("own").warning("own", text=f"ü漢😀{INVISIBLE}")
    assert json.loads(capsys.readouterr().err)["text"] == f"ü漢😀{INVISIBLE}"
    logs.configure("relay", line_format="logfmt")
    structlog.get_logger("own").warning("own", text=f"ü漢😀{INVISIBLE}", plain="ü")
    line = capsys.readouterr().err
    escaped = json.dumps(INVISIBLE)[1:-1].replace("\x7f", "\\u007f")
    assert f" text=ü漢😀{escaped} " in line
    assert "plain=ü" in line


@pytest.mark.parametrize("level", ["error", "warn", "info", "debug"])
def test_the_log_contains_what_its_level_says_and_of_libraries_no_debug(
    level: Level, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure("relay", level)
    own = structlog.get_logger("shared.sample")
    for log in (own.error, own.warning, own.info, own.debug):
        log("own")
    logging.getLogger("library").debug("secret of a library")
    written = [json.loads(line)["level"] for line in capsys.readouterr().err.splitlines()]
    levels = ["error", "warning", "info", "debug"]
    assert written == levels[: ["error", "warn", "info", "debug"].index(level) + 1]


def test_a_line_of_logfmt_has_in_quotes_what_could_be_misread(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("relay", line_format="logfmt")
    structlog.get_logger("own").warning("own warning", text='a"b', empty="", number=1)
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert 'text="a\\"b" empty= number=1' in line
    assert 'event="own warning"' in line
    assert re.search(r" level=warning timestamp=\S+Z", line)


def test_a_trace_has_one_form_in_each_format(capsys: pytest.CaptureFixture[str]) -> None:
    def log_failure() -> str:
        try:
            1 / 0  # noqa: B018
        except ZeroDivisionError as error:
            structlog.get_logger("own").error("failed", **logs.describe_exception(error))
        return capsys.readouterr().err

    logs.configure("relay")
    (trace,) = json.loads(log_failure())["trace"]
    assert (trace["exc_type"], trace["frames"][0]["name"]) == ("ZeroDivisionError", "log_failure")
    logs.configure("relay", line_format="logfmt")
    line = log_failure()
    assert re.search(rf'trace="{re.escape(__file__)}:[0-9]+ in log_failure"', line), line
