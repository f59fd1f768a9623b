"""What `helm install` says at its end: what is missing until people are told."""

import re
import shlex
from typing import Any

import click
import pytest

from services.exporter.__main__ import main as exporter
from services.relay.__main__ import main as relay
from tests.ops.helm.matrix import MATRIX
from tests.ops.helm.rendering import render_notes


def test_the_text_says_that_a_default_installation_watches_nothing_and_alerts_nobody() -> None:
    rendered = render_notes()

    for sentence in (
        "NOTHING IS PROBED YET",
        "PROMETHEUS DOES NOT KNOW OF THIS YET",
        "NO ALERT REACHES A PERSON YET",
        "Nothing rotates",
    ):
        assert sentence in rendered
    assert "kubectl -n ops create secret generic keypulse-relay" in rendered
    assert "kubectl -n ops get configmap keypulse-alertmanager-snippet" in rendered


def test_what_is_done_is_not_asked_for_again() -> None:
    rendered = render_notes(MATRIX["the values to begin with"])

    assert not [line for line in rendered.splitlines() if "YET" in line]
    assert "port-forward svc/keypulse-exporter 9911" in rendered
    assert "port-forward svc/keypulse-relay 9912" in rendered
    assert "--from-file=pagerduty_key" in rendered
    assert "--from-file=slack_token" in rendered
    assert "--from-file=relay_token" not in rendered, "it is made"
    assert "--from-file=relay_viewer" not in rendered
    assert "create secret generic keypulse-alertmanager --from-literal=relay_token=" in rendered
    assert rendered.count("send-test --channel") == len(
        MATRIX["the values to begin with"]["relay"]["config"]["channels"]
    )
    assert "send-test --channel email-oncall" in rendered


@pytest.mark.parametrize(("server", "name"), [(exporter, "keypulse-exporter"), (relay, "keypulse-relay")])
def test_the_command_line_takes_every_command_that_is_run_in_a_pod(server: click.Group, name: str) -> None:
    commands = re.findall(rf"exec deploy/{name} -- {name} (.*)", render_notes(MATRIX["the values to begin with"]))
    assert any(command.startswith("doctor ") for command in commands)

    for command in commands:
        context = server.make_context(name, shlex.split(command))
        subcommand, found, arguments = server.resolve_command(context, [*context._protected_args, *context.args])
        assert found is not None, command
        assert found.make_context(subcommand, arguments, parent=context)


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX)
def test_the_text_fits_every_deployment_and_says_how_to_test_it(values: dict[str, Any]) -> None:
    rendered = render_notes(values)

    assert "<no value>" not in rendered
    assert "%!" not in rendered
    assert "helm -n ops test keypulse --logs" in rendered
