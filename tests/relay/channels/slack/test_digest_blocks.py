import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ops.demo.stand_ins.slack.block_limits import find_block_errors
from services.relay.channels.slack.blocks import count_characters
from services.relay.channels.slack.message import MAX_DIGEST_CHARACTERS, MAX_INCIDENTS, build_digest_post
from services.relay.delivery.message import LinkRules
from services.relay.model import Status
from tests.iterations import LONG
from tests.relay.channels.digests import Named, digest_of
from tests.relay.channels.examples import strange

MARKS = ("🔴", "🟠", "🟢")
_texts = strange.map(lambda text: text.encode(errors="replace").decode())
"""As the outbox stores them."""
incidents = st.builds(
    Named,
    title=_texts,
    service=_texts | st.sampled_from(["ledger", "billing"]),
    severity=st.sampled_from(["critical", "warning", "info", "odd", ""]),
    status=st.sampled_from(Status),
    alerts=st.integers(1, 3),
    named_only=st.booleans(),
)


def read_lines(blocks: list[dict[str, Any]]) -> list[str]:
    """What a reader of the rich text sees, line by line."""
    sections = [section for block in blocks if block["type"] == "rich_text" for section in block["elements"]]
    return [line for section in sections for line in "".join(each["text"] for each in section["elements"]).split("\n")]


def read_links(blocks: list[dict[str, Any]]) -> dict[str, str]:
    """The address of each text that has one."""
    sections = [section for block in blocks if block["type"] == "rich_text" for section in block["elements"]]
    return {each["text"]: each["url"] for section in sections for each in section["elements"] if each["type"] == "link"}


@given(st.lists(incidents, min_size=1, max_size=5), st.integers(1, MAX_INCIDENTS), st.booleans())
@settings(max_examples=200 if LONG else 40, deadline=None)
def test_any_digest_names_every_incident_within_slacks_limits(some: list[Named], size: int, repeat: bool) -> None:
    entries = [each._replace(service=f"{each.service}{number % 7}") for number, each in enumerate((some * size)[:size])]
    message = digest_of(entries)
    post = build_digest_post(message, may_be_a_repeat=repeat)
    json.dumps(post.blocks, ensure_ascii=False).encode()
    assert list(find_block_errors(post.blocks)) == []
    assert count_characters(post.blocks) <= MAX_DIGEST_CHARACTERS
    assert 0 < len(post.text) <= 4_000
    assert sum(line.startswith(MARKS) for line in read_lines(post.blocks)) == size
    assert str(size) in post.blocks[0]["text"]["text"]
    assert "<" not in json.dumps([post.text, *read_lines(post.blocks)]), "nothing is mark-up or mentions anybody"


def test_a_hundred_services_with_long_names_and_titles_that_are_escaped_fit() -> None:
    message = digest_of(Named("& < > " * 100, f"service {number} " + "w" * 100) for number in range(MAX_INCIDENTS))
    post = build_digest_post(message, may_be_a_repeat=True)
    assert count_characters(post.blocks) <= MAX_DIGEST_CHARACTERS
    assert list(find_block_errors(post.blocks)) == []
    assert sum(line.startswith(MARKS) for line in read_lines(post.blocks)) == MAX_INCIDENTS
    assert list(read_links(post.blocks)) == ["All alerts in Alertmanager"]


def test_each_title_leads_to_its_alerts_and_in_a_full_digest_each_service_does() -> None:
    few = build_digest_post(digest_of(Named(f"cause {number}", f"service {number % 2}") for number in range(21)))
    links = read_links(few.blocks)
    assert len(links) == 21
    alerts = "https://alertmanager.example.org/#/alerts?receiver=kms-security&filter="
    assert all(url.startswith(alerts) for url in links.values())
    titles = [f"cause {number:03}: backend cannot encrypt with ledger-kek" for number in range(MAX_INCIDENTS)]
    full = build_digest_post(digest_of(Named(title, f"service {n % 2}") for n, title in enumerate(titles)))
    assert list(read_links(full.blocks)) == ["service 0 (production): 50", "service 1 (production): 50"]
    assert [line[2:] for line in read_lines(full.blocks) if line.startswith(MARKS)] == [*titles[::2], *titles[1::2]]


def test_each_title_leads_to_its_incident_and_in_fuller_digests_to_the_open_ones() -> None:
    rules, base = LinkRules(None, None, public_url="https://relay.example.org"), "https://relay.example.org/incidents"
    few = build_digest_post(digest_of([Named("one"), Named("two")], rules))
    assert list(read_links(few.blocks).values()) == [f"{base}/incident-0?episode=1", f"{base}/incident-1?episode=1"]
    long = "a cause of some length: backend cannot encrypt with ledger-kek"
    full = build_digest_post(digest_of((Named(f"{n:03} {long}", f"s&{n % 2}") for n in range(MAX_INCIDENTS)), rules))
    assert list(read_links(full.blocks).values()) == [f"{base}?state=open&service=s%26{n}" for n in range(2)]
    names = (Named(long, f"service {n}") for n in range(MAX_INCIDENTS))
    assert read_links(build_digest_post(digest_of(names, rules)).blocks) == {"All open incidents": f"{base}?state=open"}


def test_the_worst_service_comes_first_and_its_worst_incidents() -> None:
    message = digest_of(
        [
            Named("a disk is full", "aaa", "info"),
            Named("backend cannot encrypt", "billing", status=Status.RESOLVED, alerts=2),
            Named("backend cannot decrypt", "billing", "critical", named_only=True),
            Named("backend is slow", "billing", alerts=3),
            Named("no service", ""),
        ]
    )
    post = build_digest_post(message)
    assert [block["type"] for block in post.blocks] == ["header", "context", "rich_text"]
    assert post.blocks[0]["text"]["text"] == "🔴 5 incidents: 1 critical, 3 others firing, 1 resolved"
    assert post.blocks[1]["elements"][0]["text"] == (
        "More incidents wait than this channel takes messages. The critical one gets a message of its own as well."
    )
    assert read_lines(post.blocks) == [
        "billing (production): 3",
        "🔴 backend cannot decrypt",
        "🟠 backend is slow (3 firing)",
        "🟢 backend cannot encrypt (2 resolved)",
        "production: 1",
        "🟠 no service",
        "aaa (production): 1",
        "🟠 a disk is full",
    ]
    assert post.text.splitlines()[:2] == [post.blocks[0]["text"]["text"], "🔴 backend cannot decrypt"]
