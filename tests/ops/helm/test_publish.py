"""The chart in a registry: pushed by Helm's own engine, under the digest that is then attested."""

import asyncio
import hashlib
import io
import json
import re
import tarfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from aiohttp import web

from ops.helm.publish import publish_chart
from tests.sites import serve_site


@dataclass
class Registry:
    """As much of https://github.com/opencontainers/distribution-spec as a push needs."""

    address: str = ""
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)
    """By digest and by tag."""

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.read()
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        what = request.path.rpartition("/")[2]
        match request.method, request.path.split("/")[-2]:
            case "GET", "v2":
                return web.Response()
            case "POST", "uploads":
                return web.Response(status=202, headers={"Location": f"{request.path}one"})
            case "PUT", "uploads":
                assert request.query["digest"] == digest
                self.blobs[digest] = body
                return web.Response(status=201, headers={"Docker-Content-Digest": digest})
            case "PUT", "manifests":
                self.manifests[what] = self.manifests[digest] = body
                return web.Response(status=201, headers={"Docker-Content-Digest": digest})
            case _, "manifests" if what in self.manifests:
                kind = json.loads(self.manifests[what]).get("mediaType", "application/vnd.oci.image.manifest.v1+json")
                manifest = self.manifests[what]
                headers = {"Docker-Content-Digest": f"sha256:{hashlib.sha256(manifest).hexdigest()}"}
                return web.Response(body=manifest, content_type=kind, headers=headers)
        return web.Response(status=404)


@pytest.fixture
async def registry() -> AsyncIterator[Registry]:
    found = Registry()
    async with serve_site(web.route("*", "/{path:.*}", found.answer)) as url:
        found.address = url.removeprefix("http://")
        yield found


async def test_the_digest_that_is_reported_is_that_of_the_charts_version(registry: Registry) -> None:
    remote = f"oci://{registry.address}/acme/keypulse/charts"
    digest = await asyncio.to_thread(publish_chart, remote, "somebody", "a-password", plain_http=True)

    manifest = json.loads(registry.manifests[digest])
    assert registry.manifests["0.1.0"] == registry.manifests[digest]
    config = json.loads(registry.blobs[manifest["config"]["digest"]])
    assert (config["name"], config["version"]) == ("keypulse", "0.1.0")
    (layer,) = manifest["layers"]
    with tarfile.open(fileobj=io.BytesIO(registry.blobs[layer["digest"]])) as packed:
        (readme,) = [packed.extractfile(each) for each in packed.getmembers() if each.name == "keypulse/README.md"]
        assert readme
        links = re.findall(r"\]\(([^)]+)\)", readme.read().decode())
    assert "https://github.com/acme/keypulse/blob/v0.1.0/ops/helm/examples/production/values.yaml" in links
    assert [link for link in links if not link.startswith("https://")] == [], "there is no repository around a package"
