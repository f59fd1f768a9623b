"""A runbook's commands can be pasted: their variables are what labels and settings say, and never a command."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given

from services.relay.delivery.enrichment import build_excerpts, fill_excerpt, find_excerpt
from services.relay.model import ExcerptBlock, Message, RunbookExcerpt, Status
from tests.relay.channels.examples import FIX_ANNOTATIONS, HUGE, NASTY, annotated, message, strange

DOCS = Path(__file__).parents[3] / "docs"
ADDRESSES = {"EXPORTER": "http://127.0.0.1:9911", "RELAY": "https://relay.example.org"}


def fill(code: str, of: Message, addresses: dict[str, str] = ADDRESSES) -> str:
    excerpt = RunbookExcerpt("KMSProbeFailing", (ExcerptBlock("code", code),), is_truncated=False)
    return fill_excerpt(excerpt, of, addresses).blocks[0].text


def labelled(*labels: dict[str, str], status: Status = Status.FIRING) -> Message:
    """A message with an alert for each of these labels."""
    of = message()
    (alert,) = of.event.alerts
    alerts = tuple(replace(alert, status=status, labels=each) for each in labels)
    return replace(of, event=replace(of.event, alerts=alerts), links=of.links * len(alerts))


def test_the_first_steps_of_a_failing_probe_can_be_pasted() -> None:
    found = find_excerpt(build_excerpts((DOCS / "runbooks/KMSProbeFailing.md").read_text()), "KMSProbeFailing")
    assert found is not None
    of = annotated(labelled({"env": "production", "service": "ledger", "target": "ledger-kek"}), **FIX_ANNOTATIONS)
    code = [block.text for block in fill_excerpt(found, of, ADDRESSES).blocks if block.kind == "code"]
    assert code[0] == 'curl -sS -m 30 "http://127.0.0.1:9911/probe?target=ledger-kek&debug=true"'


def test_a_key_s_alert_has_no_command_of_another_provider() -> None:
    """Such as those that grant a role of Google's, which a key of Transit never needs."""
    of = annotated(labelled({"env": "production"}), kms_provider="transit", kms_key="transit:transit/ledger")
    code = 'promtool query instant "$PROMETHEUS"\ngcloud kms keys list \\\n  --key="$KEY"\nbao read "$MOUNT/keys/$KEY"'
    assert fill(code, of) == 'promtool query instant "$PROMETHEUS"\nbao read "transit/keys/ledger"'
    excerpt = RunbookExcerpt("KMSProbeFailing", (ExcerptBlock("code", "gcloud kms keys list"),), is_truncated=False)
    assert fill_excerpt(excerpt, of, {}).blocks == ()
    both = annotated(labelled({"target": "a"}, {"target": "b"}), **FIX_ANNOTATIONS)
    assert fill(code, both) == 'promtool query instant "$PROMETHEUS"\ngcloud kms keys list \\\n  --key="ledger"'
    assert fill(code, labelled({"env": "production"})) == code


def test_labels_annotations_and_settings_are_known_and_what_is_not_stays() -> None:
    of = annotated(labelled({"env": "production", "service": "ledger", "version": "3"}), **FIX_ANNOTATIONS)
    code = "$ENV ${SERVICE} $TARGET $VERSION $PROJECT/$LOCATION/$KEYRING/$KEY $RELAY $NAMESPACE $EXPORTER_ACCOUNT"
    assert fill(code, of) == (
        "production ledger ledger-kek 3 demo/global/app/ledger https://relay.example.org $NAMESPACE $EXPORTER_ACCOUNT"
    )
    of_account = annotated(of, kms_account="backend@demo.iam.gserviceaccount.com")
    assert fill("$EXPORTER_ACCOUNT", of_account) == "backend@demo.iam.gserviceaccount.com"
    assert fill("$ENV", labelled({"env": "production"}, status=Status.RESOLVED)) == "$ENV"
    assert fill("$EXPORTER", of, {}) == "$EXPORTER"


def test_a_value_that_differs_from_alert_to_alert_stays_a_variable() -> None:
    of = labelled({"env": "production", "target": "a"}, {"env": "production", "target": "b"})
    assert fill("$ENV $TARGET", of) == "production $TARGET"


@pytest.mark.parametrize(
    "code",
    [
        "for ENV in a b; do echo $ENV; done",
        "ENV=staging; echo $ENV",
        "read ENV; echo $ENV",
        "echo \\$ENV",
        "echo $ENVIRONMENT $env ${ENV:-x} ${ENV%-*} $$",
    ],
)
def test_what_a_command_sets_or_means_otherwise_stays(code: str) -> None:
    assert fill(code, labelled({"env": "production"})) == code


@pytest.mark.parametrize(
    "text", [*NASTY, *HUGE, "a b", "a;id", "$(id)", "`id`", "a'b", 'a"b', "-rf", "a\nb", "a|b", "../x"]
)
def test_a_label_is_never_a_piece_of_a_command(text: str) -> None:
    of = labelled(dict.fromkeys(("env", "service", "target", "version", "channel", "namespace"), text))
    of = annotated(of, **dict.fromkeys([*FIX_ANNOTATIONS, "kms_account", "kms_version"], text))
    code = "curl \"$ENV\" $SERVICE '$TARGET' $VERSION $CHANNEL $NAMESPACE $PROJECT $KEY $EXPORTER_ACCOUNT $EXPORTER"
    assert fill(code, of, {"EXPORTER": text}) == code


@given(strange)
def test_whatever_a_label_says_no_shell_reads_more_in_it(text: str) -> None:
    filled = fill("echo $SERVICE", labelled({"service": text}))
    assert filled == "echo $SERVICE" or re.fullmatch(r"echo [A-Za-z0-9][A-Za-z0-9._@-]*", filled)
