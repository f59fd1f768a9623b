"""`required_reviewers.py` against a stand-in for GitHub's API: it lets a rotation through only after an approval."""

import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from ops.github.required_reviewers import RefusedError, find_reviewers, find_warnings, read_environment
from tests.ops.github.stand_in import REPOSITORY, REVIEWED, TOKEN, Answer, StandIn, run_stand_in

SCRIPT = Path(__file__).parents[3] / "ops/github/required_reviewers.py"
NOW = 1_800_000_000.0


@pytest.fixture
def github() -> Iterator[StandIn]:
    with run_stand_in() as stand_in:
        yield stand_in


def run(github: StandIn, *arguments: str, **environment: str) -> tuple[int, str]:
    """The exit code, and what it printed."""
    given = {"GITHUB_API_URL": github.url, "GITHUB_REPOSITORY": REPOSITORY, "GITHUB_TOKEN": TOKEN, **environment}
    command = [sys.executable, "-I", str(SCRIPT), *arguments]
    done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr
    assert TOKEN not in done.stdout + done.stderr
    return done.returncode, done.stdout + done.stderr


def read(github: StandIn, *queue: Answer) -> tuple[dict[str, Any] | None, str, list[float]]:
    """The environment, or why not; and how long it waited between attempts."""
    github.queue = list(queue)
    waits: list[float] = []
    try:
        url = f"{github.url}/repos/{REPOSITORY}/environments/production"
        return read_environment(url, TOKEN, waits.append, lambda: NOW), "", waits
    except RefusedError as error:
        return None, str(error), waits


def test_an_environment_with_reviewers_lets_it_through_and_names_them(github: StandIn) -> None:
    assert run(github, "production") == (0, "environment production asks for an approval by alice, security\n")
    assert github.requests == [(f"/repos/{REPOSITORY}/environments/production", f"Bearer {TOKEN}")]


@pytest.mark.parametrize(
    "rules",
    [
        None,
        [],
        [{"type": "wait_timer", "wait_timer": 30}, {"type": "branch_policy"}],
        [{"type": "required_reviewers", "reviewers": []}],
        [{"type": "of_tomorrow", "reviewers": [{"reviewer": {"login": "alice"}}]}],
        [{"type": "required_reviewers", "reviewers": [{"type": "Team", "reviewer": None}]}],
    ],
)
def test_one_without_reviewers_refuses(github: StandIn, rules: Any) -> None:
    github.environments["staging"] = {"name": "staging", "protection_rules": rules}
    code, printed = run(github, "staging")
    assert code == 1
    assert printed.startswith("::error::environment staging has no required reviewers, so nothing is rotated: add them")


def test_one_that_does_not_exist_refuses(github: StandIn) -> None:
    code, printed = run(github, "prodution")
    assert code == 1
    assert "::error::environment prodution: there is no such environment, or the token may not read it" in printed


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [([], {}), ([""], {}), (["production"], {"GITHUB_TOKEN": ""}), (["production"], {"GITHUB_REPOSITORY": ""})],
)
def test_wrong_usage_exits_with_2(github: StandIn, arguments: list[str], environment: dict[str, str]) -> None:
    code, printed = run(github, *arguments, **environment)
    assert code == 2
    assert printed.startswith("::error::expected ")
    assert github.requests == []


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Answer(401, {}), "GitHub does not accept the token"),
        (Answer(403, {"message": "Resource not accessible by integration"}), "permissions: {actions: read}"),
        (Answer(404, {}), "there is no such environment"),
        (Answer(410, {}), "GitHub answers 410"),
        (Answer(200, b"<html>"), "is no JSON"),
        (Answer(200, b"[" * 100_000), "is no JSON"),
        (Answer(200, []), "is no environment"),
        (Answer(302, {}, {"Location": "http://127.0.0.2:1/x"}), "GitHub answers 302"),
    ],
)
def test_what_cannot_change_is_asked_once(github: StandIn, answer: Answer, error: str) -> None:
    found, refused, waits = read(github, answer)
    assert found is None
    assert error in refused
    assert len(refused.split()) <= 25
    assert waits == []
    assert len(github.requests) == 1


def test_what_does_not_pass_ends_after_three_attempts(github: StandIn) -> None:
    found, refused, waits = read(github, *[Answer(503, {})] * 3)
    assert (found, waits) == (None, [5.0, 10.0])
    assert refused == "GitHub cannot be asked, after 3 attempts: it answers 503: run the job again later"


def test_it_goes_through_the_proxy_of_the_environment_and_past_it(github: StandIn) -> None:
    elsewhere = {"GITHUB_API_URL": "http://api.github.example"}
    assert run(github, "production", **elsewhere, HTTP_PROXY=github.url, http_proxy=github.url)[0] == 0
    assert github.requests[0][0].startswith("http://api.github.example/repos/")
    assert run(github, "production", http_proxy="http://127.0.0.1:1", no_proxy="127.0.0.1")[0] == 0


def test_what_weakens_an_approval_is_a_warning(github: StandIn) -> None:
    weak: dict[str, Any] = deepcopy(REVIEWED) | {"can_admins_bypass": True}
    weak["protection_rules"][1]["prevent_self_review"] = False
    github.environments["weak"] = weak
    code, printed = run(github, "weak")
    assert code == 0
    assert printed.count("::warning::environment weak: ") == 2
    assert find_warnings(REVIEWED) == []
    assert find_reviewers(REVIEWED) == ["alice", "security"]
