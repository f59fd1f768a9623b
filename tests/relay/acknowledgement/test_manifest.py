"""The Slack app's manifest in the documents: each scope in it is explained, and Socket Mode is on."""

import re
from pathlib import Path

import yaml

from ops.demo.stand_ins.app import StandIns

DOCUMENT = (Path(__file__).parents[3] / "docs/SLACK.md").read_text(encoding="utf-8")


async def test_the_manifest_has_the_scopes_that_are_explained_and_socket_mode(stand_ins: StandIns) -> None:
    (block,) = re.findall(r"```yaml\n(   display_information.*?)```", DOCUMENT, re.DOTALL)
    manifest = yaml.safe_load(block)
    scopes = manifest["oauth_config"]["scopes"]["bot"]
    explained = re.findall(r"`([a-z]+:[a-z.]+)`", "\n".join(re.findall(r"^\| (`[^|]*)\|", DOCUMENT, re.MULTILINE)))
    assert sorted([*scopes, "connections:write"]) == sorted(explained)
    assert set(scopes) - {"groups:history"} <= stand_ins.slack.scopes
    assert manifest["settings"]["socket_mode_enabled"] is True
    assert manifest["settings"]["interactivity"]["is_enabled"] is True
