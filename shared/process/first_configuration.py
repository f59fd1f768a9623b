"""The command `init` of a service with one KMS key: options and a template in, a valid configuration out."""

import json
from pathlib import Path
from string import Template

import click
from pydantic import BaseModel

from shared.config.settings import check_http_url
from shared.process.command_line import ParsedOption, print_configuration_or_exit


def create_init_command(model: type[BaseModel], template: Path, program: str) -> click.Command:
    """The command that prints the template with `$kms`, as the model accepts it; else a line for each error, exit 2."""

    @click.command(
        "init",
        short_help="Print a first configuration.",
        epilog=f"""\b
Examples:
  {program} init --key projects/P/locations/L/keyRings/R/cryptoKeys/K
  {program} init --transit https://HOST:8200 --key transit/ledger""",
    )
    @click.option("--key", required=True, metavar="KEY", help="The full name of the KMS key; of Transit MOUNT/KEY.")
    @click.option(
        "--transit",
        metavar="URL",
        type=ParsedOption(check_http_url, "url"),
        help="The address of OpenBao or Vault, whose key is of Transit.",
    )
    def command(key: str, transit: str | None) -> None:
        """Print a first configuration, with comments."""
        kms: dict[str, object] = {"key": key}
        if transit:
            mount, _, name = key.rpartition("/")
            auth = {"token_file": "bao_token"}
            kms = {"provider": "transit", "address": transit, "mount": mount or "transit", "key": name, "auth": auth}
        text = Template(template.read_text(encoding="utf-8")).substitute(kms=json.dumps(kms))  # JSON is YAML, too
        print_configuration_or_exit(model, text)

    return command
