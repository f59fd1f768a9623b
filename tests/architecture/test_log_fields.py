"""A log line has one field for each meaning, by the table below."""

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
Field = tuple[int, str | None, ast.expr]
"""Its line, its name (None of a `**`) and its value."""
PACKAGES = ("services", "shared", "ops")
LEVELS = {"debug", "info", "warning", "error", "exception", "critical", "bind"}
FORWARDING = {"describe_action", "wait_until_stopped"}
"""Functions of ours whose keywords become fields of a log line."""
FIELD_BUILDERS = {"describe_exception"}
"""Functions of ours that return fields, as a dict of literal keys."""
FORWARDED = {
    ("services/backend/admin_api.py", "audit_details"): "the fields of a request of the admin API, in `_LOGGED_FIELDS`",
    ("services/relay/channels/log.py", "fields"): "the alert, as docs/reference.md has it",
    ("shared/http/access.py", "about"): "what `describe_action` was called with",
    ("shared/http/access.py", "details"): "what `describe_action` was called with",
    ("shared/process/server.py", "addresses"): "what `wait_until_stopped` was called with",
}
"""A file and the `**` of a log call in it → where its fields come from. No other `**` is accepted."""
FIELDS = {
    "action": "what a person or a program did: `login`, `acknowledge`",
    "address": "that the service listens on",
    "announced": "the reason that Slack gives for the end of a connection",
    "attempt": "the number of this attempt, from 1",
    "changed": "whether an action changed anything",
    "calls_per_minute": "the pace that calls of KMS have now",
    "cause": "what is behind the reason, as KMS tells it",
    "channel": "the name of a channel in the configuration",
    "channels": "names of channels",
    "close_code": "with which a WebSocket was closed",
    "collector": "what gives metrics",
    "compare_delay": "seconds until the channels can be compared with the outbox",
    "connections": "the number of Socket Mode connections",
    "data_key": "the ID of a data key",
    "data_keys": "IDs of data keys",
    "database": "the URL of a database, without its password",
    "deliveries": "the number of deliveries",
    "delivery_id": "a delivery",
    "digest_id": "a digest",
    "dry_run": "whether an action only said what it would change",
    "endpoint": "what a refused request was for",
    "error": "what is wrong",
    "events": "the number of events",
    "exc_info": "structlog's: the exception whose trace is logged, as `trace`",
    "exit_code": "of a process",
    "expect_every": "seconds between two heartbeats of a watchdog",
    "faults": "the address of the emulator's endpoint of faults",
    "file": "the path of a file",
    "hint": "what to do",
    "hop": "where a proof of the path was lost: `alertmanager`",
    "http": "the address of the stand-ins for Slack and PagerDuty",
    "incident_id": "an incident",
    "is_stored": "of `describe_action` alone: whether the audit log has it already",
    "job": "a job of the exporter",
    "kek": "the name of a key encryption key",
    "kek_version": "a version of it",
    "key": "a key of the configuration: `channels.ops.kind`",
    "max_bytes": "the limit",
    "method": "the HTTP method of a request",
    "monitor": "a monitor of the relay",
    "names": "the names in a client certificate",
    "on": "what an action changed",
    "operation": "the call of KMS that failed: `encrypt`",
    "path": "the path of a request",
    "peer": "where a request or a press came from: an address, or `slack:` and the ID of a person",
    "quarantined": "the number of webhooks in quarantine",
    "reason": "a member of a closed set",
    "record": "the ID of a record",
    "records": "the number of records",
    "rejected_recipients": "of a mail",
    "replica": "a replica of a backend",
    "retry_in": "seconds until the next attempt; None if there is none",
    "row_id": "the ID of a row that cannot be read",
    "running_version": "the version of the running program",
    "silence_id": "a silence of Alertmanager",
    "smtp": "the address of the stand-in for a mail server",
    "source": "where a webhook came from",
    "status": "the HTTP status that a request was answered with",
    "suppressed": "the number of lines of the same kind that were not written",
    "target": "a target of the exporter",
    "template": "a template of a team",
    "timeout_seconds": "how long a stop may take",
    "trace": "the trace of an exception, in structlog's form",
    "up": "whether a backend can be read",
    "url": "the URL of an Alertmanager",
    "used_bytes": "of what `max_bytes` limits",
    "versions": "versions of a KMS key",
    "watchdog": "the name of a watchdog",
    "watched_service": "the service that a target or a backend belongs to",
    "who": "the name of the person or the program that did something",
}
"""Each field of a log line → its meaning. A new field is added here, unless one of these has its meaning."""
SYNONYMS = {
    "attempt": "attempt_number attempts retries try_number",
    "error": "answer causes complaint detail details doubt err errors explanation failure failures "
    "finding findings message mistake mistakes msg problem problems refused sentence text trouble warning what why",
    "hint": "action_needed advice do next next_step remedy solution suggestion to_do todo",
    "incident_id": "incident",
    "reason": "category code_name error_code error_kind error_type failure_reason kind_of_error reason_code",
    "retry_in": "backoff delay paused_seconds pause retry_after seconds wait",
    "silence_id": "silence",
    "status": "code http_status status_code",
    "trace": "backtrace exception stack stack_trace traceback",
    "who": "actor by caller person user user_id username",
}
"""The field → names that people give to the same meaning."""
FIELD_OF = {name: field for field, names in SYNONYMS.items() for name in names.split()}


def find_fields(source: str) -> Iterator[Field]:
    """Each field of a log call, a `bind` or a function of ours with its line and value; a `**` has no name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and logs_its_keywords(node.func):
            yield from ((node.lineno, field.arg, field.value) for field in node.keywords)
        elif isinstance(node, ast.FunctionDef) and node.name in FIELD_BUILDERS:
            yield from find_returned_fields(node)


def logs_its_keywords(function: ast.expr) -> bool:
    if isinstance(function, ast.Name):
        return function.id in FORWARDING
    return isinstance(function, ast.Attribute) and function.attr in LEVELS


def find_returned_fields(function: ast.FunctionDef) -> Iterator[Field]:
    """Each key of the dicts that a function returns."""
    for node in ast.walk(function):
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Dict):
            for key, value in zip(node.value.keys, node.value.values, strict=True):
                yield node.lineno, str(key.value) if isinstance(key, ast.Constant) else None, value


def find_wrong_fields(fields: Iterable[Field], file: str = "") -> Iterator[str]:
    """Each field that the table has not, or whose value is of another meaning."""
    for line, name, value in fields:
        if name is None:
            if not is_forwarded(value, file):
                yield f"{line}: **{ast.unparse(value)} is none of FORWARDED"
        elif name not in FIELDS:
            yield f"{line}: {name} is {FIELD_OF.get(name, 'none of FIELDS')}"
        elif name == "reason" and not is_member(value):
            yield f"{line}: reason is a member of a closed set; a text is error"


def is_forwarded(value: ast.expr, file: str) -> bool:
    """Whether the fields of this `**` are checked where they are built."""
    if isinstance(value, ast.Call):
        return isinstance(value.func, ast.Name) and value.func.id in FIELD_BUILDERS
    return (file, ast.unparse(value)) in FORWARDED


def is_member(value: ast.expr) -> bool:
    """Whether it is the reason of something, or the value of an enumeration: `error.reason`, `reason.value`."""
    if isinstance(value, ast.IfExp):
        return is_member(value.body) and (isinstance(value.orelse, ast.Constant) or is_member(value.orelse))
    return isinstance(value, ast.Attribute) and value.attr in {"reason", "value"}


@cache
def list_fields() -> dict[str, list[Field]]:
    """The fields of each module of the product, by its path."""
    files = sorted(file for package in PACKAGES for file in (REPOSITORY / package).rglob("*.py"))
    return {str(file.relative_to(REPOSITORY)): list(find_fields(file.read_text(encoding="utf-8"))) for file in files}


def test_every_log_call_names_its_fields_as_all_others_do() -> None:
    assert {file.partition("/")[0] for file, found in list_fields().items() if found} == set(PACKAGES)
    wrong = [f"{file}:{each}" for file, found in list_fields().items() for each in find_wrong_fields(found, file)]
    assert wrong == []


def test_each_field_of_the_table_is_logged() -> None:
    logged = {name for found in list_fields().values() for _, name, _ in found}
    assert FIELDS.keys() - logged == set()
    assert FIELDS.keys() & FIELD_OF.keys() == set()


def test_each_forwarded_field_is_still_forwarded() -> None:
    found = {
        (file, ast.unparse(value))
        for file in {file for file, _ in FORWARDED}
        for _, name, value in list_fields()[file]
        if name is None
    }
    assert FORWARDED.keys() - found == set()
