"""`python -m ops.demo.stand_ins`: runs the stand-ins until SIGTERM or SIGINT."""

import gc

gc.disable()  # to look for garbage among what is imported is a third of the start

from contextlib import AbstractAsyncContextManager
from pathlib import Path

import click

from ops.demo.openbao import OpenBao
from ops.demo.stand_ins.app import StandIns, run_stand_ins
from shared import VERSION
from shared.config.secret_file import SecretFile, SecretUnreadableError
from shared.config.settings import check_base_url
from shared.process import logs
from shared.process.command_line import ParsedOption, parse_listen_option_or_exit, run_until_done_or_exit
from shared.process.server import wait_until_stopped

gc.freeze()
gc.enable()

_EPILOG = """\b
Examples:
  python -m ops.demo.stand_ins --slack-token-file slack_token --pagerduty-key-file pd_key
  python -m ops.demo.stand_ins --slack-token-file slack_token --pagerduty-key-file pd_key \\
      --emulator-faults http://127.0.0.1:9011 --docs docs
"""


def _read_secrets(file: str) -> tuple[str, ...]:
    try:
        return SecretFile(Path(file)).read_values()
    except SecretUnreadableError as error:
        raise ValueError(f"{error}; write the demo's secret into it") from None


def _check_folder(path: str) -> Path:
    if not Path(path).is_dir():
        raise ValueError("expected a folder")
    return Path(path)


_SECRETS, _URL = ParsedOption(_read_secrets, "path"), ParsedOption(check_base_url, "url")


@click.command(epilog=_EPILOG)
@click.option(
    "--http", default="127.0.0.1:9913", show_default=True, metavar="HOST:PORT", help="Page, Slack, PagerDuty."
)
@click.option("--smtp", default="127.0.0.1:1025", show_default=True, metavar="HOST:PORT", help="The mail server.")
@click.option("--slack-token-file", "slack_tokens", required=True, type=_SECRETS, help="Bot tokens, one a line.")
@click.option("--slack-app-token-file", "slack_app_tokens", type=_SECRETS, help="App-level tokens, for Socket Mode.")
@click.option(
    "--sockets", default="127.0.0.1:9916", show_default=True, metavar="HOST:PORT", help="Slack's Socket Mode."
)
@click.option("--slack-rates", is_flag=True, help="Enforce Slack's documented rate limits.")
@click.option("--pagerduty-key-file", "pagerduty_keys", required=True, type=_SECRETS, help="Routing keys, one a line.")
@click.option("--emulator-faults", type=_URL, help="The KMS emulator's faults API, for the page's buttons.")
@click.option("--openbao", type=_URL, help="OpenBao, for the page's buttons.")
@click.option(
    "--openbao-secrets",
    type=ParsedOption(_check_folder, "path"),
    help="The folder with its root token and its unseal key.",
)
@click.option("--prometheus", type=_URL, help="Prometheus, for the graph at /graph.")
@click.option("--alertmanager", type=_URL, help="Alertmanager, for the alerts at /alertmanager/.")
@click.option("--board", type=_URL, help="The exporter's board, for a link.")
@click.option("--console", type=_URL, help="The relay's console, for a link.")
@click.option("--docs", type=ParsedOption(_check_folder, "path"), help="The folder of the documents under /docs/.")
@click.option(
    "--allow-remote-insecure", is_flag=True, help="Allow addresses other than loopback: between containers, for tests."
)
@click.version_option(VERSION, prog_name="keypulse")
def main(  # noqa: PLR0913, PLR0917  (one for each option)
    http: str,
    smtp: str,
    slack_tokens: tuple[str, ...],
    slack_app_tokens: tuple[str, ...] | None,
    sockets: str,
    slack_rates: bool,
    pagerduty_keys: tuple[str, ...],
    emulator_faults: str | None,
    openbao: str | None,
    openbao_secrets: Path | None,
    prometheus: str | None,
    alertmanager: str | None,
    board: str | None,
    console: str | None,
    docs: Path | None,
    allow_remote_insecure: bool,
) -> None:
    """Run a stand-in Slack, PagerDuty and mail server, and a page with the messages that people on call would get.

    Everybody on this machine can read them, so the stand-ins listen on loopback only, unless --allow-remote-insecure is
    given.
    """
    http_address = parse_listen_option_or_exit("--http", http, allow_remote_insecure=allow_remote_insecure)
    smtp_address = parse_listen_option_or_exit("--smtp", smtp, allow_remote_insecure=allow_remote_insecure)
    sockets_address = parse_listen_option_or_exit("--sockets", sockets, allow_remote_insecure=allow_remote_insecure)
    logs.configure("stand-ins")
    run_until_done_or_exit(
        _serve_until_stopped(
            run_stand_ins(
                http=http_address,
                smtp=smtp_address,
                sockets=sockets_address,
                slack_tokens=slack_tokens,
                slack_app_tokens=slack_app_tokens or (),
                slack_rates=slack_rates,
                pagerduty_keys=pagerduty_keys,
                emulator_faults=emulator_faults,
                openbao=OpenBao(openbao, openbao_secrets) if openbao and openbao_secrets else None,
                prometheus=prometheus,
                alertmanager=alertmanager,
                docs=docs,
                page_links={text: url for text, url in (("Board", board), ("Console", console)) if url},
            )
        )
    )


async def _serve_until_stopped(started: AbstractAsyncContextManager[StandIns]) -> None:
    async with started as stand_ins:
        await wait_until_stopped(http=str(stand_ins.http), smtp=str(stand_ins.smtp))


if __name__ == "__main__":
    main()
