import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.relay.channels.slack.message import Post, build_post
from services.relay.model import (
    ExcerptBlock,
    IncidentContext,
    Message,
    RelatedIncident,
    RunbookExcerpt,
    Status,
)
from tests.iterations import LONG
from tests.relay.channels.examples import (
    FIX_ANNOTATIONS,
    HUGE,
    INCIDENT,
    NASTY,
    RUNBOOK,
    SILENCE_URL,
    annotated,
    change,
    critical,
    detailed,
    message,
    messages,
    strange,
    with_text,
)
from tests.relay.channels.slack.slack_rules import find_texts, find_urls, find_violations

AT = datetime(2026, 11, 24, 22, 50, tzinfo=UTC)
FIRST = {"channel": "C1", "ts": "1.000001"}

contexts = st.builds(
    IncidentContext,
    started_at=st.none() | st.datetimes(timezones=st.just(UTC)),
    episodes_in_7_days=st.integers(0, 100),
    related=st.lists(st.builds(RelatedIncident, strange, strange, st.just(AT)), max_size=6).map(tuple),
    previous_at=st.none() | st.just(AT),
    previous_alerts=st.just({}) | st.just({"f": Status.FIRING}),
    acknowledged_by=st.just("") | strange,
    acknowledged_at=st.none() | st.just(AT),
    escalated_to=st.just(()) | st.tuples(strange),
    escalated_at=st.none() | st.just(AT),
)
excerpts = st.none() | st.builds(
    RunbookExcerpt,
    strange,
    st.lists(st.builds(ExcerptBlock, st.sampled_from(["paragraph", "step", "code"]), strange), max_size=12).map(tuple),
    st.booleans(),
)


def reply(payload: str | Message, before: dict[str, Status], **context: Any) -> Message:
    """A later message of an incident, whose previous one had these alerts, by the numbers of the payload's alerts."""
    built = message(payload) if isinstance(payload, str) else payload
    previous = {built.event.alerts[int(number)].fingerprint: status for number, status in before.items()}
    previous["of earlier"] = Status.RESOLVED
    incident_context = IncidentContext(previous_at=AT - timedelta(minutes=5), previous_alerts=previous, **context)
    return change(built, first_receipt=FIRST, context=incident_context, accepted_at=AT)


def lines(post: Post) -> list[str]:
    """What stands where, as a person reads it: the texts of all blocks."""
    return [
        text
        for block in post.blocks
        for element in (block.get("elements") or [block])
        for text in [*find_texts(element, "plain_text"), *find_texts(element, "mrkdwn")]
    ]


@given(messages(), contexts, excerpts, st.booleans(), st.booleans(), strange)
@settings(max_examples=300 if LONG else 60)
def test_no_message_passes_slacks_limits_or_slips_in_mark_up(
    any_message: Message, context: IncidentContext, excerpt: RunbookExcerpt | None, repeat: bool, edit: bool, title: str
) -> None:
    given = change(any_message, context=context, excerpt=excerpt, is_edit=edit, title=title)
    given = replace(given, buttons=("acknowledge", "silence"), current_values={"f": title}, incident_url=INCIDENT)
    for has_thread in (True, False):
        post = build_post(given, "channel", may_be_a_repeat=repeat, has_thread=has_thread)
        json.dumps(post.blocks, ensure_ascii=False).encode()
        assert list(find_violations(post)) == []
        assert list(find_violations(Post("-", list(post.excerpt)))) == []


@pytest.mark.parametrize("text", [*HUGE, "x"])
@pytest.mark.parametrize("alerts", [1, 2, 20, 150])
def test_of_any_number_of_alerts_some_are_shown_the_rest_is_counted_and_all_are_in_the_details(
    text: str, alerts: int
) -> None:
    resolved = with_text(text, alerts).event.alerts[-1:]
    remarked = critical(change(with_text(text, alerts), remark=text, buttons=("acknowledge", "silence")))
    over = tuple(replace(alert, status=Status.RESOLVED, fingerprint="over", ends_at=AT) for alert in resolved)
    remarked = replace(
        remarked,
        event=replace(remarked.event, alerts=remarked.event.alerts + over),
        links=remarked.links + remarked.links[:1],
    )
    post = build_post(remarked, "none", may_be_a_repeat=True)
    assert list(find_violations(post)) == []
    assert post.blocks[-1]["type"] == "context"
    displayed = " ".join(lines(post))
    assert "resolved" in displayed
    if "more firing" in displayed or text != "x":
        assert post.details
        assert len(post.details) < 600_000
    else:
        assert not post.details


@pytest.mark.parametrize("text", NASTY)
@pytest.mark.parametrize("mention", ["channel", "none"])
def test_what_an_alert_says_stands_in_no_markup(text: str, mention: Any) -> None:
    context = IncidentContext(acknowledged_by=text, acknowledged_at=AT, related=(RelatedIncident("x", text, AT),))
    excerpt = RunbookExcerpt(text, (ExcerptBlock("code", text), ExcerptBlock("step", text)), is_truncated=True)
    for alerts in (1, 6):
        named = change(critical(with_text(text, alerts)), remark=text, excerpt=excerpt, title=text)
        acknowledged, repeated = change(named, context=context), reply(with_text(text, alerts), {"0": Status.FIRING})
        for variant in (named, acknowledged, repeated):
            post = build_post(annotated(variant, title=text, **dict.fromkeys(FIX_ANNOTATIONS, text)), mention)
            assert list(find_violations(post)) == []
            assert ("<!channel>" in str(post.blocks)) is (
                mention == "channel" and (variant is named or (not text and variant.task.first_receipt is None))
            )


def test_the_runbook_of_what_is_over_is_not_shown() -> None:
    over = change(detailed(message()), event=message("03-resolved-1").event)
    for has_thread in (True, False):
        post = build_post(over, "none", has_thread=has_thread)
        assert (post.excerpt, "First steps" in str(post.blocks)) == ((), False)


def test_a_long_cause_is_cut_in_the_header_and_whole_below_it() -> None:
    title = "timeout: " + "very " * 40 + "long"
    header, whole = lines(build_post(message(title=title), "none"))[:2]
    assert (len(header), whole) == (150, title)


def test_acknowledge_incident_and_runbook_stand_under_the_title_and_nowhere_else() -> None:
    def names(block: dict[str, Any]) -> list[str]:
        return [element["text"]["text"] for element in block["elements"]]

    given = message(buttons=("acknowledge", "silence"), incident_url=INCIDENT)
    post = build_post(given, "none")
    assert [block["type"] for block in post.blocks[:3]] == ["header", "section", "actions"]
    rows = [block for block in post.blocks if block["type"] == "actions"]
    assert list(map(names, rows)) == [
        ["Acknowledge", "Incident", "Runbook"],
        ["Dashboard", "Prometheus"],
        ["Silence", "Alertmanager"],
    ]
    assert find_urls(rows[:1]) == [INCIDENT, RUNBOOK]
    assert post.text.split("\n")[1] == f"Incident: {INCIDENT}"
    over = build_post(message("03-resolved-1", incident_url=INCIDENT), "none")
    assert names(over.blocks[2])[0] == "Incident"
    later = build_post(change(reply("01-firing-1", {}), incident_url=INCIDENT), "none")
    assert "Runbook" in names(next(block for block in later.blocks if block["type"] == "actions")), "of the new alert"


def test_what_can_be_pressed_is_there_while_it_fires_and_the_relay_hears_of_it() -> None:
    def pressed(of: Message) -> list[tuple[str, str]]:
        elements = [each for block in build_post(of, "none").blocks for each in block.get("elements", ())]
        return [(each["action_id"], each["value"]) for each in elements if "action_id" in each]

    buttons: Any = {"buttons": ("acknowledge", "silence")}
    assert pressed(message()) == []
    assert pressed(message(**buttons)) == [("acknowledge", "incident/1"), ("silence", "incident/1")]
    acknowledged = message(context=IncidentContext(acknowledged_by="ann"), **buttons)
    assert pressed(acknowledged) == [("unacknowledge", "incident/1"), ("silence", "incident/1")]
    assert pressed(message("03-resolved-1", **buttons)) == []
    assert pressed(change(reply("01-firing-1", {}), **buttons)) == []
    assert SILENCE_URL not in find_urls(build_post(message(**buttons), "none").blocks)


def test_twenty_alerts_of_one_rule_are_a_table_that_shows_the_resolved_ones_too() -> None:
    one = with_text("KMSHighLatency").event.alerts[0]
    large = with_text("KMSHighLatency", 20)
    alerts = tuple(
        replace(
            one,
            fingerprint=str(n),
            status=Status.RESOLVED if n >= 17 else Status.FIRING,
            ends_at=AT if n >= 17 else None,
            labels={**one.labels, "instance": f"back`end-{n}"},
        )
        for n in range(20)
    )
    post = build_post(replace(large, event=replace(large.event, alerts=alerts)), "none")
    (table,) = [text for text in find_texts(post.blocks, "mrkdwn") if text.startswith("```")]
    rows = table.split("\n")[2:-1]
    assert len(rows) == 20
    assert [row.split("  ")[0] for row in rows] == [f"back'end-{n}" for n in range(20)]
    assert sum("resolved after 3 min 50 s" in row for row in rows) == 3
    assert post.details == ""


@pytest.mark.parametrize(
    ("given", "worse"),
    [
        (message(), True),
        (message("03-resolved-1"), False),
        (message(context=IncidentContext(acknowledged_by="ann")), False),
        (change(reply("01-firing-1", {}), is_edit=True), False),
        (reply("01-firing-1", {"0": Status.FIRING}), False),
        (reply("01-firing-1", {}), True),
        (reply("01-firing-1", {}, acknowledged_by="ann"), False),
        (reply("05-firing-3", {"0": Status.FIRING, "1": Status.FIRING}), False),
        (change(message(), first_receipt=FIRST), False),
    ],
    ids=["first", "over", "acknowledged", "edit", "repeat", "new", "new and acknowledged", "warning", "unknown"],
)
def test_only_what_gets_worse_mentions_anybody(given: Message, worse: bool) -> None:
    assert ("<!channel>" in str(build_post(given, "channel").blocks)) is worse
    assert "<!" not in str(build_post(given, "none").blocks).replace("<!date", "")


def test_a_new_alert_that_is_more_severe_mentions_and_one_that_is_less_does_not() -> None:
    three = message("05-firing-3")
    first, *others = three.event.alerts
    for severity, is_worse in (("error", True), ("warning", False), ("info", False)):
        raised = replace(first, labels={**first.labels, "severity": severity})
        event = replace(three.event, alerts=(raised, *others))
        given = reply(replace(three, event=event), {"1": Status.FIRING, "2": Status.FIRING})
        assert ("<!here>" in str(build_post(given, "here").blocks)) is is_worse


def test_a_reply_says_what_changed_and_shows_only_that() -> None:
    three = message("05-firing-3")
    post = build_post(reply(three, {"0": Status.FIRING, "1": Status.FIRING}), "none")
    assert post.blocks[0]["type"] == "section"
    displayed = lines(post)
    assert displayed[0] == "🟠 Firing: KMSHighCryptoErrorRate · production / backend"
    assert displayed[2].startswith("Last message: 5 min ago; since then 1 new (")
    assert [three.event.alerts[n].labels["instance"] in str(post.blocks[3:]) for n in range(3)] == [False, False, True]
    assert (post.details, "more" in str(post.blocks)) == ("", False)
    repeat = build_post(reply("05-firing-3", dict.fromkeys("012", Status.FIRING)), "none")
    assert "nothing has changed" in str(repeat.blocks)


def test_a_repeat_and_what_the_relay_has_to_say_stand_above_the_alerts_and_in_the_text() -> None:
    remarked = message("03-resolved-1", remark="Slack was down.", firing_undelivered=True)
    post = build_post(remarked, "none", may_be_a_repeat=True)
    assert [block["type"] for block in post.blocks[:5]] == ["header", "section", "actions", "context", "context"]
    title, repeat, remark = post.text.split("\n")[:3]
    assert title.startswith("🟢 Fired and resolved within 8 s: ")
    assert [find_texts(block, "plain_text") for block in post.blocks[3:5]] == [[repeat], [remark]]
    assert ("may be a repeat" in repeat, remark) == (True, "Slack was down.")
    assert "repeat" not in str(build_post(remarked, "none"))
