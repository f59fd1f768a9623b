"""`python -m ops.demo.stand_ins`: options in, running stand-ins until SIGTERM or SIGINT."""

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import structlog

from ops.demo.stand_ins.app import StandIns, run_stand_ins
from shared import VERSION
from shared.config.secret_file import SecretFile, SecretUnreadableError
from shared.config.settings import Address, parse_address
from shared.process import logs
from shared.process.command_line import parse_option_or_exit, run_until_done_or_exit
from shared.process.shutdown import wait_for_stop_signal

log = structlog.get_logger(__name__)

_EPILOG = """\b
Examples:
  python -m ops.demo.stand_ins --slack-token-file slack_token --pagerduty-key-file pd_key
  python -m ops.demo.stand_ins --slack-token-file slack_token --pagerduty-key-file pd_key \\
      --emulator-faults http://127.0.0.1:9011 --docs docs
"""


@click.command(epilog=_EPILOG)
@click.option(
    "--http", default="127.0.0.1:9913", show_default=True, metavar="HOST:PORT", help="Page, Slack, PagerDuty."
)
@click.option("--smtp", default="127.0.0.1:1025", show_default=True, metavar="HOST:PORT", help="The mail server.")
@click.option("--slack-token-file", required=True, type=click.Path(path_type=Path), help="Bot tokens, one a line.")
@click.option("--pagerduty-key-file", required=True, type=click.Path(path_type=Path), help="Routing keys, one a line.")
@click.option("--emulator-faults", metavar="URL", help="The KMS emulator's faults API, for the page's buttons.")
@click.option("--prometheus", metavar="URL", help="Prometheus, for the graph at /graph.")
@click.option("--alertmanager", metavar="URL", help="Alertmanager, for the alerts at /alertmanager/.")
@click.option("--docs", type=click.Path(path_type=Path), help="The folder of the documents under /docs/.")
@click.option(
    "--allow-remote-insecure", is_flag=True, help="Lets them listen beyond loopback: between containers, for a test."
)
@click.version_option(VERSION, prog_name="keypulse")
def main(  # noqa: PLR0913, PLR0917  (one for each option)
    http: str,
    smtp: str,
    slack_token_file: Path,
    pagerduty_key_file: Path,
    emulator_faults: str | None,
    prometheus: str | None,
    alertmanager: str | None,
    docs: Path | None,
    allow_remote_insecure: bool,
) -> None:
    """A stand-in Slack, PagerDuty and mail server, and a page that shows what people on call would see.

    Everybody on this machine can read what arrives, so it only listens on loopback, unless it is allowed more.
    """
    parse = parse_address if allow_remote_insecure else _parse_loopback_address
    http_address = parse_option_or_exit("--http", parse, http)
    smtp_address = parse_option_or_exit("--smtp", parse, smtp)
    tokens = parse_option_or_exit("--slack-token-file", _read_secrets, slack_token_file)
    keys = parse_option_or_exit("--pagerduty-key-file", _read_secrets, pagerduty_key_file)
    given = {"emulator_faults": emulator_faults, "prometheus": prometheus, "alertmanager": alertmanager}
    urls: dict[str, Any] = {
        name: parse_option_or_exit(f"--{name.replace('_', '-')}", _check_url, url) for name, url in given.items() if url
    }
    folder = parse_option_or_exit("--docs", _check_folder, docs) if docs else None
    logs.configure("stand-ins")
    run_until_done_or_exit(
        _serve_until_stopped(
            run_stand_ins(
                http=http_address, smtp=smtp_address, slack_tokens=tokens, pagerduty_keys=keys, docs=folder, **urls
            )
        )
    )


async def _serve_until_stopped(started: AbstractAsyncContextManager[StandIns]) -> None:
    async with started as stand_ins:
        log.info("listening", http=str(stand_ins.http), smtp=str(stand_ins.smtp))
        await wait_for_stop_signal()
        log.info("stopping")


def _parse_loopback_address(text: str) -> Address:
    address = parse_address(text)
    if not address.is_loopback:
        raise ValueError(
            "expected a loopback address such as 127.0.0.1:9913, because nobody is asked for a password, or "
            "--allow-remote-insecure"
        )
    return address


def _read_secrets(file: Path) -> tuple[str, ...]:
    try:
        return SecretFile(file).read_values()
    except SecretUnreadableError as error:
        raise ValueError(f"{error}; write the demo's secret into it") from None


def _check_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme != "http" or not parts.netloc:
        raise ValueError("expected a URL such as http://127.0.0.1:9011")
    return text


def _check_folder(path: Path) -> Path:
    if not path.is_dir():
        raise ValueError("expected a folder")
    return path


if __name__ == "__main__":
    main()
