"""`python -m ops.helm.publish oci://ghcr.io/acme/keypulse/charts`: the chart, packaged and pushed; prints its digest.

It uses Helm's engine from a wheel, locked by its hash in requirements/dev.lock, so no other helm packages a release.
The credentials are OCI_USER and OCI_PASSWORD; without them it pushes anonymously.
"""

import os
import re
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import click
import helm_python as helm
import yaml

from ops.helm import CHART


@click.command()
@click.argument("remote", metavar="oci://HOST/PATH")
def main(remote: str) -> None:
    """Package the chart, push it to REMOTE under its own name and version, and print its digest."""
    try:
        click.echo(publish_chart(remote, os.environ.get("OCI_USER"), os.environ.get("OCI_PASSWORD")))
    except helm.HelmError as error:
        raise click.ClickException(str(error)) from None


def publish_chart(
    remote: str, user: str | None = None, password: str | None = None, *, plain_http: bool = False
) -> str:
    """Push the chart, and return the manifest's digest. Raises helm.HelmError.

    Args:
        remote: `oci://HOST/PATH`; the chart's name is added.
        user: of the registry, or None.
        password: of the user.
        plain_http: for a registry on this machine.
    """
    with TemporaryDirectory() as folder:
        credentials = Path(folder) / "credentials.json"
        with helm.RegistryClient(plain_http=plain_http, credentials_file=credentials) as client:
            if user and password:
                client.login(urlsplit(remote).netloc, user, password, plain_http=plain_http)
            packed = helm.package(_copy_with_whole_links(Path(folder)), destination=folder)
            client.push(packed, remote, plain_http=plain_http)
            with helm.Chart.load(CHART) as chart:
                return str(client.resolve(f"{remote}/{chart.name}:{chart.version}")["digest"])


def _copy_with_whole_links(folder: Path) -> Path:
    """Copy the chart: Artifact Hub shows its README without the repository, in which relative links lead somewhere."""
    chart = Path(shutil.copytree(CHART, folder / CHART.name))
    about, readme = yaml.safe_load((chart / "Chart.yaml").read_text(encoding="utf-8")), chart / "README.md"

    def complete(link: re.Match[str]) -> str:
        path = (CHART / link[1]).resolve().relative_to(CHART.parents[2]).as_posix()
        return f"]({about['home']}/blob/v{about['version']}/{path}"

    readme.write_text(re.sub(r"\]\((\.\./[^)#]+)", complete, readme.read_text(encoding="utf-8")), encoding="utf-8")
    return chart


if __name__ == "__main__":
    main()
