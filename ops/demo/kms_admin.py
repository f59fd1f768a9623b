"""`python -m ops.demo.kms_admin destroy 1`: an administrator's changes to the demo's key, for drills without gcloud."""

import click
import grpc
from google.api_core.exceptions import GoogleAPICallError
from google.cloud.kms_v1 import CryptoKeyVersion, KeyManagementServiceClient
from google.cloud.kms_v1.services.key_management_service.transports import KeyManagementServiceGrpcTransport
from google.protobuf.field_mask_pb2 import FieldMask

from ops.demo.configuration import KEY

_CALL_TIMEOUT = 5.0


@click.command()
@click.argument("action", type=click.Choice(["list", "create", "disable", "enable", "destroy", "restore"]))
@click.argument("version", default="1")
@click.option("--emulator", envvar="EMULATOR", default="127.0.0.1:9010", show_default=True, metavar="HOST:PORT")
def main(action: str, version: str, emulator: str) -> None:
    """Changes a version of the demo's key, and prints all of them with their states.

    `create` makes a new version and the primary of it; `destroy` schedules the destruction.
    """
    with grpc.insecure_channel(emulator) as channel:
        kms = KeyManagementServiceClient(transport=KeyManagementServiceGrpcTransport(channel=channel))
        try:
            _change_version(kms, action, f"{KEY}/cryptoKeyVersions/{version}")
            for one in kms.list_crypto_key_versions(parent=KEY, retry=None, timeout=_CALL_TIMEOUT):
                click.echo(f"{one.name.rpartition('/')[2]}  {one.state.name}")
        except GoogleAPICallError as error:
            message = error.message.rstrip(".")
            raise click.ClickException(f"{message}; is the demo running, and {emulator} its emulator?") from None


def _change_version(kms: KeyManagementServiceClient, action: str, name: str) -> None:
    if action == "create":
        created = kms.create_crypto_key_version(
            parent=KEY, crypto_key_version=CryptoKeyVersion(), retry=None, timeout=_CALL_TIMEOUT
        )
        number = created.name.rpartition("/")[2]
        kms.update_crypto_key_primary_version(name=KEY, crypto_key_version_id=number, retry=None, timeout=_CALL_TIMEOUT)
    elif action in {"disable", "enable"}:
        version = CryptoKeyVersion(name=name, state=f"{action.upper()}D")
        mask = FieldMask(paths=["state"])
        kms.update_crypto_key_version(crypto_key_version=version, update_mask=mask, retry=None, timeout=_CALL_TIMEOUT)
    elif action == "destroy":
        kms.destroy_crypto_key_version(name=name, retry=None, timeout=_CALL_TIMEOUT)
    elif action == "restore":
        kms.restore_crypto_key_version(name=name, retry=None, timeout=_CALL_TIMEOUT)


if __name__ == "__main__":
    main(prog_name="python -m ops.demo.kms_admin")
