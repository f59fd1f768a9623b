"""`keypulse-backend admin give-up`: the data keys that only a lost local key unwraps, listed, and given up by a person.

It asks the running backend. Without names it lists them, with how many records each takes along, and changes nothing.
With names it needs that number as well, so nobody gives up more than he knows of.
"""

import json
import sys
from pathlib import Path
from typing import Any

import click

from services.backend.admin_command import BackendClient, add_options, connect_to_backend


@click.command("give-up", short_help="Give up data keys whose local key is lost.")
@click.argument("data_keys", metavar="[DATA_KEY]...", nargs=-1)
@click.option("--records", type=click.IntRange(min=0), metavar="N", help="How many records are lost with them.")
@add_options
def abandon(data_keys: tuple[str, ...], records: int | None, config: Path | None, web_config: Path | None) -> None:
    """List the data keys that only a lost local key unwraps; give up those that are named, with their records."""
    if data_keys and records is None:
        click.echo(
            "--records: expected how many records are lost with them; without names this command lists it", err=True
        )
        sys.exit(2)
    backend = connect_to_backend(config, web_config)
    if not data_keys:
        _print_lost_keys(_call_backend(backend, "GET", "lost"))
        return
    done = _call_backend(backend, "POST", "give-up", {"data_keys": data_keys, "records": records})
    click.echo(f"{done['given_up']} data keys were given up, and {records} records with them")


def _print_lost_keys(lost_keys: list[dict[str, Any]]) -> None:
    if not lost_keys:
        click.echo("no data key is lost: there is nothing to give up")
        return
    for key in lost_keys:
        click.echo(f"{key['id']}  made {key['created_at']}  {key['records']} records  {key['why']}")
    names, records = " ".join(key["id"] for key in lost_keys), sum(key["records"] for key in lost_keys)
    click.echo(
        "Put the local key file back, from another instance or a backup, and all of them can be read again. Only where "
        f"it is lost for good, give them up:\n  keypulse-backend admin give-up {names} --records {records}"
    )


def _call_backend(backend: BackendClient, method: str, path: str, body: object = None) -> Any:
    """What the backend answers; exits with its sentence where it refuses."""
    line = {"method": method, "path": path, "caller": "keypulse-backend admin give-up", "body": body}
    answer = backend.send(json.dumps(line).encode())
    content: Any = answer["body"]
    if answer["status"] != 200:
        click.echo((content or {}).get("error", f"the backend answers with {answer['status']}"), err=True)
        sys.exit(1)
    return content
