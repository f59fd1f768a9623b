"""What `helm install` says at its end: what is missing until people are told."""

from typing import Any

import pytest

from tests.ops.helm.matrix import MATRIX
from tests.ops.helm.rendering import notes


def test_what_comes_by_itself_is_reported_to_watch_nothing_and_to_tell_nobody() -> None:
    said = notes()

    for sentence in (
        "NOTHING IS PROBED YET",
        "PROMETHEUS DOES NOT KNOW OF THIS YET",
        "NOBODY IS TOLD YET",
        "Nothing rotates",
    ):
        assert sentence in said
    assert "kubectl -n ops create secret generic keypulse-relay" in said
    assert "kubectl -n ops get configmap keypulse-alertmanager-snippet" in said


def test_a_channel_to_which_no_alert_goes_tells_nobody() -> None:
    slack = {"kind": "slack", "channel": "#ops", "token_file": "/run/secrets/keypulse/slack_token"}
    channels = {"channels": {"slack": slack}}
    routes = {"routes": [{"receiver": "kms-critical", "channels": ["slack"]}]}

    assert "NOBODY IS TOLD YET" in notes({"relay": {"config": channels}})
    assert "NOBODY IS TOLD YET" not in notes({"relay": {"config": channels | routes}})


def test_an_alertmanager_config_is_reported_to_match_its_own_namespace_only() -> None:
    assert "An AlertmanagerConfig\n   would match alerts of its own namespace only" in notes()


def test_what_is_done_is_not_asked_for_again() -> None:
    said = notes(MATRIX["the values to begin with"])

    assert not [line for line in said.splitlines() if "YET" in line]
    assert "port-forward svc/keypulse-exporter 9911" in said
    assert "exec deploy/keypulse-relay -- keypulse-relay send-test" in said


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX)
def test_they_are_reported_for_every_deployment_and_end_with_how_to_test_it(values: dict[str, Any]) -> None:
    said = notes(values)

    assert "<no value>" not in said
    assert "%!" not in said
    assert "helm -n ops test keypulse" in said or "`helm test` looks whether all of this works" in said
