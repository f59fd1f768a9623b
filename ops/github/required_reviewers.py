"""Whether an environment of a repository asks for an approval: `python ops/github/required_reviewers.py ENVIRONMENT`.

Exit codes: 0 it has required reviewers; 1 it has none, or GitHub cannot be asked; 2 wrong usage. It runs by its path,
before anything is installed, and needs Python alone. Proxies come from the environment, and so do GITHUB_API_URL,
GITHUB_REPOSITORY and GITHUB_TOKEN, which needs the permission `actions: read`.

https://docs.github.com/en/rest/deployments/environments#get-an-environment
"""

import json
import os
import sys
import time
from collections.abc import Callable
from email.message import Message
from http import HTTPStatus
from typing import IO, Any, Final, NoReturn
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

_TIMEOUT: Final = 10.0
_ATTEMPTS: Final = 3
_MAX_WAIT: Final = 60.0
"""Seconds that one attempt may wait for GitHub's rate limit."""
_MAX_BYTES: Final = 1024 * 1024
_GUIDE: Final = "see docs/GITHUB.md"


class RefusedError(Exception):
    """Nothing may be rotated. The message is what is wrong, and what to do."""


class _SameHostRedirects(HTTPRedirectHandler):
    """Follows a renamed repository, and takes the token to no other host."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> Request | None:
        before, after = urlsplit(req.full_url), urlsplit(newurl)
        if (before.scheme, before.netloc) != (after.scheme, after.netloc):
            return None
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def read_environment(
    url: str, token: str, sleep: Callable[[float], None] = time.sleep, clock: Callable[[], float] = time.time
) -> dict[str, Any]:
    """What GitHub's API says of an environment.

    Raises:
        RefusedError: it does not exist, or cannot be read.
    """
    headers = {
        "Authorization": f"Bearer {token}",
        "Accept": "application/vnd.github+json",
        "X-GitHub-Api-Version": "2022-11-28",
        "User-Agent": "keypulse",
    }
    opener = build_opener(_SameHostRedirects)
    for attempt in range(1, _ATTEMPTS + 1):
        request = Request(url, headers=headers)  # noqa: S310  # of GitHub; a new one, since a proxy changes it
        try:
            with opener.open(request, timeout=_TIMEOUT) as response:
                document = json.loads(response.read(_MAX_BYTES))
        except HTTPError as error:
            with error:
                wait = _find_wait(error, attempt, clock)
                if wait is None:
                    raise RefusedError(_explain_status(error)) from None
                reason = f"it answers {error.code}"
        except (URLError, OSError) as error:
            wait, reason = 5.0 * attempt, f"{getattr(error, 'reason', error)}"
        except (ValueError, RecursionError):
            raise RefusedError(f"GitHub's answer is no JSON: check GITHUB_API_URL; {_GUIDE}") from None
        else:
            if isinstance(document, dict):
                return document
            raise RefusedError(f"GitHub's answer is no environment: check GITHUB_API_URL; {_GUIDE}")
        if wait > _MAX_WAIT:
            until = time.strftime("%H:%M UTC", time.gmtime(clock() + wait))
            raise RefusedError(f"GitHub limits the requests of this token: run the job again after {until}")
        if attempt < _ATTEMPTS:
            sleep(wait)
    raise RefusedError(f"GitHub cannot be asked, after {_ATTEMPTS} attempts: {reason}: run the job again later")


def find_reviewers(environment: dict[str, Any]) -> list[str]:
    """Who may approve: logins of users and slugs of teams."""
    names = []
    for rule in environment.get("protection_rules") or []:
        if rule.get("type") == "required_reviewers":
            for reviewer in rule.get("reviewers") or []:
                who = reviewer.get("reviewer") or {}
                if name := who.get("slug") or who.get("login"):
                    names.append(str(name))
    return names


def find_warnings(environment: dict[str, Any]) -> list[str]:
    rules = [rule for rule in environment.get("protection_rules") or [] if rule.get("type") == "required_reviewers"]
    warnings = []
    if not all(rule.get("prevent_self_review") for rule in rules):
        warnings.append("whoever starts a run may approve it: set `Prevent self-review`")
    if environment.get("can_admins_bypass"):
        warnings.append("administrators may bypass the approval: clear `Allow administrators to bypass`")
    return warnings


def _find_wait(error: HTTPError, attempt: int, clock: Callable[[], float]) -> float | None:
    """Seconds until the next attempt; None where another one would be answered alike."""
    if error.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return 5.0 * attempt
    if error.code not in {HTTPStatus.FORBIDDEN, HTTPStatus.TOO_MANY_REQUESTS}:
        return None
    after = _read_number(error.headers, "retry-after")
    if after is not None:
        return after
    if error.headers.get("x-ratelimit-remaining") == "0":
        return max((_read_number(error.headers, "x-ratelimit-reset") or clock() + 2 * _MAX_WAIT) - clock(), 1.0)
    return _MAX_WAIT if error.code == HTTPStatus.TOO_MANY_REQUESTS else None


def _read_number(headers: Message, name: str) -> float | None:
    value = headers.get(name, "")
    return float(value) if value.isdecimal() else None


def _explain_status(error: HTTPError) -> str:
    if error.code == HTTPStatus.NOT_FOUND:
        return (
            f"there is no such environment, or the token may not read it: create it with required reviewers; {_GUIDE}"
        )
    if error.code == HTTPStatus.FORBIDDEN:
        return f"the token may not read environments: give the job `permissions: {{actions: read}}`; {_GUIDE}"
    if error.code == HTTPStatus.UNAUTHORIZED:
        return f"GitHub does not accept the token: expected the job's own, `github.token`; {_GUIDE}"
    return f"GitHub answers {error.code}: check GITHUB_API_URL and GITHUB_REPOSITORY; {_GUIDE}"


def main() -> None:
    """Ask, and exit with 0 or 1."""
    if len(sys.argv) != 2 or not sys.argv[1]:
        _exit("expected the name of the environment that the job runs in", 2)
    (name,) = sys.argv[1:]
    api = os.environ.get("GITHUB_API_URL") or "https://api.github.com"
    repository, token = os.environ.get("GITHUB_REPOSITORY", ""), os.environ.get("GITHUB_TOKEN", "")
    if not repository or not token:
        _exit("expected GITHUB_REPOSITORY and GITHUB_TOKEN in the environment", 2)
    try:
        environment = read_environment(f"{api}/repos/{repository}/environments/{quote(name, safe='')}", token)
    except RefusedError as error:
        _exit(f"environment {name}: {error}", 1)
    reviewers = find_reviewers(environment)
    if not reviewers:
        _exit(f"environment {name} has no required reviewers, so nothing is rotated: add them; {_GUIDE}", 1)
    for warning in find_warnings(environment):
        _print(f"::warning::environment {_escape(name)}: {warning}")
    _print(f"environment {_escape(name)} asks for an approval by {', '.join(reviewers)}")


def _exit(error: str, code: int) -> NoReturn:
    _print(f"::error::{_escape(error)}")
    sys.exit(code)


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")


def _escape(text: str) -> str:
    """As a workflow command takes it: on one line."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


if __name__ == "__main__":
    main()
