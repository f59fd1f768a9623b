"""`keypulse-smoke`: checks a deployment, one line for each check, with what to do if it failed."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any, Literal, get_args

import click

from ops.prometheus.build import list_alert_names
from ops.smoke.deployment import Deployment, Environment, check_deployment
from services.exporter.config import ExporterSettings
from shared import VERSION
from shared.check import CheckResult, format_line
from shared.config.secret_file import SecretFile
from shared.config.settings import parse_duration
from shared.process.command_line import URL_WITH_USER, ParsedOption, load_settings_or_exit, replace_unencodable_output
from shared.smoke.alerting import TEST_ALERT_TIMEOUT_SECONDS, Severity
from shared.smoke.backend import RecordsMode
from shared.smoke.http_client import CA_FILE
from shared.smoke.report import build_document, render_junit, render_markdown

_EXAMPLES = """\b
Examples:
  keypulse-smoke --base-url http://127.0.0.1:8000
  keypulse-smoke --base-url http://127.0.0.1:8000 --prometheus http://127.0.0.1:9090 --verbose
  keypulse-smoke --base-url http://127.0.0.1:8000 --alertmanager http://127.0.0.1:9093 \\
      --relay http://127.0.0.1:9912 --relay-token-file relay_viewer --test-alert
  keypulse-smoke --base-url http://127.0.0.1:8000 --json --junit smoke.xml
  keypulse-smoke --base-url http://127.0.0.1:8000 --records off
  keypulse-smoke --exporter-config exporter.yml --prometheus http://127.0.0.1:9090
  keypulse-smoke --prometheus http://127.0.0.1:9090 --relay http://127.0.0.1:9912
Each option is also read from the environment: --base-url from KEYPULSE_SMOKE_BASE_URL, and so on.
"""


def _parse_timeout(text: str) -> float:
    seconds = parse_duration(text)
    if seconds <= 0:
        raise ValueError("expected more than 0")
    return seconds


def _check_alert_name(name: str) -> str:
    if name not in list_alert_names():
        raise ValueError("expected the name of an alert of ops/prometheus/rules")
    return name


_FILE = click.Path(path_type=Path)


@click.command(epilog=_EXAMPLES, context_settings={"auto_envvar_prefix": "KEYPULSE_SMOKE"})
@click.option("--base-url", type=URL_WITH_USER, help="The backend; may be missing where only keys are watched.")
@click.option(
    "--exporter-config", type=_FILE, help="exporter.yml: check each of its `backends` as the exporter reads it."
)
@click.option("--token-file", type=_FILE, help="The token that the backend's /v1/records needs: of the role responder.")
@click.option(
    "--records",
    type=click.Choice(get_args(RecordsMode)),
    default="auto",
    help="Whether a record is written and read at /v1/records: auto (default) where the backend has it, on, or off.",
)
@click.option(
    "--environment",
    type=click.Choice(get_args(Environment)),
    default="production",
    help="Of the deployment: `env` of the test alert. In production, the default, a placeholder's runbook in the rules "
    "is an error.",
)
@click.option("--prometheus", type=URL_WITH_USER, help="Check its targets, rules and recordings.")
@click.option(
    "--without-alert",
    "without_alerts",
    metavar="NAME",
    multiple=True,
    type=ParsedOption(_check_alert_name),
    help="An alert that this deployment leaves out; repeatable.",
)
@click.option("--alertmanager", type=URL_WITH_USER, help="Check that it is ready.")
@click.option("--relay", type=URL_WITH_USER, help="Check that it is ready, and that its API answers.")
@click.option("--relay-token-file", type=_FILE, help="A token that may read the relay's API: of the role viewer.")
@click.option("--grafana", type=URL_WITH_USER, help="Check that it has the dashboard.")
@click.option("--grafana-token-file", type=_FILE, help="The token of a service account that may view it.")
@click.option(
    "--test-alert",
    type=click.Choice(get_args(Severity)),
    is_flag=False,
    flag_value="warning",
    help="Posts KMSTest to Alertmanager and follows it to a receipt on every channel; people get it. "
    "A warning, or `critical`, which pages.",
)
@click.option(
    "--timeout",
    type=ParsedOption(_parse_timeout, "duration"),
    default=f"{TEST_ALERT_TIMEOUT_SECONDS:g}s",
    help="Of the test alert, to its last receipt. Default 3m.",
)
@click.option("--ca-file", type=_FILE, help="Certificate authorities in PEM, trusted instead of the usual ones.")
@click.option("--junit", "junit_file", type=_FILE, help="Write JUnit XML to this file, too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of lines.")
@click.option("--verbose", is_flag=True, help="Print details and seconds of passed checks, too.")
@click.version_option(VERSION, prog_name="keypulse-smoke")
def main(**options: Any) -> None:
    """Check a deployment of keypulse: one line for each check, with what to do if it failed.

    Exit codes: 0 all checks passed, 1 one failed, 2 wrong usage.
    """
    others = ("exporter_config", "prometheus", "alertmanager", "relay", "grafana")
    if not any(options[name] for name in ("base_url", *others)):
        listed = ", ".join(f"--{name.replace('_', '-')}" for name in others)
        raise click.UsageError(f"Missing option '--base-url', or one of {listed}.")
    if options["test_alert"] and not (options["alertmanager"] and options["relay"]):
        raise click.UsageError(
            "--test-alert needs --alertmanager, which it is posted to, and --relay, which delivers it"
        )
    replace_unencodable_output()
    CA_FILE.set(options["ca_file"])
    where = Deployment(
        backend=options["base_url"],
        exporter=_load_exporter(options["exporter_config"]),
        environment=options["environment"],
        backend_token=_open_secret(options["token_file"]),
        records=options["records"],
        prometheus=options["prometheus"],
        without_alerts=options["without_alerts"],
        alertmanager=options["alertmanager"],
        relay=options["relay"],
        relay_token=_open_secret(options["relay_token_file"]),
        grafana=options["grafana"],
        grafana_token=_open_secret(options["grafana_token_file"]),
    )
    results = asyncio.run(_run_and_print(where, options))
    if options["as_json"]:
        click.echo(json.dumps(build_document(results), indent=2))
    if options["junit_file"]:
        _write_report("--junit", options["junit_file"], render_junit(results))
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        _write_report("GITHUB_STEP_SUMMARY", Path(summary), render_markdown(results).encode(), "ab")
    sys.exit(0 if all(result.is_ok for result in results) else 1)


async def _run_and_print(deployment: Deployment, options: dict[str, Any]) -> list[CheckResult]:
    results: list[CheckResult] = []
    async for part in check_deployment(deployment, options["test_alert"], options["timeout"]):
        results += part
        for result in part:
            if not options["as_json"]:
                click.echo(format_line(result, verbose=options["verbose"]))
    return results


def _load_exporter(file: Path | None) -> ExporterSettings | None:
    return load_settings_or_exit(ExporterSettings, file) if file else None


def _open_secret(file: Path | None) -> SecretFile | None:
    return SecretFile(file) if file else None


def _write_report(option: str, file: Path, content: bytes, mode: Literal["wb", "ab"] = "wb") -> None:
    try:
        with file.open(mode) as opened:
            opened.write(content)
    except OSError as error:
        click.echo(f"{option}: {file}: {error.strerror}; name a file that can be written", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main(prog_name="keypulse-smoke")
