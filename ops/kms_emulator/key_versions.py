"""`keypulse-emulator versions`: an administrator's changes to a key of the emulator, which gcloud cannot reach."""

import click
import grpc
from google.api_core.exceptions import GoogleAPICallError
from google.cloud.kms_v1 import CryptoKeyVersion, KeyManagementServiceClient
from google.cloud.kms_v1.services.key_management_service.transports import KeyManagementServiceGrpcTransport
from google.protobuf.field_mask_pb2 import FieldMask

from shared.kms.gcp.profile import check_key_name
from shared.process.command_line import ParsedOption

_CALL_TIMEOUT = 5.0
_EXAMPLES = """\b
Examples:
  keypulse-emulator versions create
  keypulse-emulator versions disable 1
"""


@click.command("versions", short_help="Change the versions of a key.", epilog=_EXAMPLES)
@click.argument("action", type=click.Choice(["list", "create", "disable", "enable", "destroy", "restore"]))
@click.argument("version", default="1")
@click.option(
    "--key",
    default="projects/demo/locations/global/keyRings/app/cryptoKeys/ledger",
    show_default=True,
    type=ParsedOption(check_key_name, "name"),
    help="That of the demo, if none is given.",
)
@click.option("--emulator", envvar="EMULATOR", default="127.0.0.1:9010", show_default=True, metavar="HOST:PORT")
def command(action: str, version: str, key: str, emulator: str) -> None:
    """Change a version of a key, and print all of them with their states.

    `create` makes a new version and the primary of it; `destroy` schedules the destruction.
    """
    with grpc.insecure_channel(emulator) as channel:
        kms = KeyManagementServiceClient(transport=KeyManagementServiceGrpcTransport(channel=channel))
        try:
            _change_version(kms, action, key, version)
            for one in kms.list_crypto_key_versions(parent=key, retry=None, timeout=_CALL_TIMEOUT):
                click.echo(f"{one.name.rpartition('/')[2]}  {one.state.name}")
        except GoogleAPICallError as error:
            message = error.message.rstrip(".")
            raise click.ClickException(f"{message}; does the emulator run, at {emulator}?") from None


def _change_version(kms: KeyManagementServiceClient, action: str, key: str, version: str) -> None:
    name = f"{key}/cryptoKeyVersions/{version}"
    if action == "create":
        created = kms.create_crypto_key_version(
            parent=key, crypto_key_version=CryptoKeyVersion(), retry=None, timeout=_CALL_TIMEOUT
        )
        number = created.name.rpartition("/")[2]
        kms.update_crypto_key_primary_version(name=key, crypto_key_version_id=number, retry=None, timeout=_CALL_TIMEOUT)
    elif action in {"disable", "enable"}:
        changed = CryptoKeyVersion(name=name, state=f"{action.upper()}D")
        mask = FieldMask(paths=["state"])
        kms.update_crypto_key_version(crypto_key_version=changed, update_mask=mask, retry=None, timeout=_CALL_TIMEOUT)
    elif action == "destroy":
        kms.destroy_crypto_key_version(name=name, retry=None, timeout=_CALL_TIMEOUT)
    elif action == "restore":
        kms.restore_crypto_key_version(name=name, retry=None, timeout=_CALL_TIMEOUT)
