"""What the tests of the rules' tests share: a rule is spoilt, and its promtool tests are asked whether they notice."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ops.prometheus.build import EXPORTER_SELECTOR, select_exporter_job
from tests.ops.rules import ALERTS, RECORDINGS, TESTS, promtool

RuleMutation = tuple[str, ...]
JOB = f"{{{EXPORTER_SELECTOR}}}"
"""How an expression selects the exporter's job."""


def one_of(mutations: Iterable[RuleMutation]) -> list[pytest.ParameterSet]:
    """A case for each mistake: `make test` tries the first, and that it would be noticed; `make rehearse` tries all.

    They can fail only once a rule or its tests have changed, and each of the hundreds is promtool's whole evaluation.
    """
    return [
        pytest.param(*mutation, marks=[pytest.mark.played] if number else [])
        for number, mutation in enumerate(mutations)
    ]


def mistaken(folder: Path, name: str, right: str, wrong: str) -> bool:
    """Whether it is noticed that a rule's expression has `wrong` wherever it should have `right`.

    Both are written without the selector of the exporter's job, unless they are about it.
    """
    expression = {**RECORDINGS, **ALERTS}[name]["expr"]
    if JOB not in right:
        right, wrong = select_exporter_job(right), select_exporter_job(wrong)
    assert right in expression
    return noticed(folder, name, {"expr": expression.replace(right, wrong)})


def misled(folder: Path, alert: str, annotation: str, right: str, wrong: str) -> bool:
    """Whether it is noticed that an annotation of an alert looks up `wrong` wherever it should look up `right`."""
    annotations = ALERTS[alert]["annotations"]
    assert right in annotations[annotation]
    changed = {**annotations, annotation: annotations[annotation].replace(right, wrong)}
    return noticed(folder, alert, {"annotations": changed})


def noticed(folder: Path, name: str, change: dict[str, Any]) -> bool:
    """Whether a promtool test of a rule, or of one that reads it, by way of others or not, fails once it is changed.

    The copy holds only those tests, and the rules that they are about: to evaluate the others takes most of the time.
    """
    rules = {**RECORDINGS, **ALERTS}
    rules[name] = {**rules[name], **change}
    judged = _follow({name}, lambda one: (other for other in rules if one in _list_queries(rules[other])))
    tests = {
        file: {**document, "rule_files": ["rules.yml"], "tests": cases}
        for file, document in TESTS.items()
        if (cases := [case for case in (_about(judged, case) for case in document["tests"]) if case])
    }
    asked = str(tests)
    read = judged | {other for other in rules if other in asked}
    read = _follow(read, lambda one: (other for other in rules if other in _list_queries(rules[one])))
    remaining = [rule for key, rule in rules.items() if key in read]
    files = [_write(folder / "rules.yml", {"groups": [{"name": "changed", "rules": remaining}]})]
    files += [_write(folder / file, document) for file, document in tests.items()]
    assert files[1:], "no test is about this rule"
    answer = promtool("test", "rules", *files[1:])
    output = answer.stdout + answer.stderr
    assert answer.returncode == 0 or "got:" in output, f"the mistake must still be a rule: {output}"
    return answer.returncode != 0


def _follow(names: set[str], step: Callable[[str], Iterable[str]]) -> set[str]:
    """These names, and what any number of steps leads to."""
    found, left = set(names), list(names)
    while left:
        new = set(step(left.pop())) - found
        found |= new
        left += new
    return found


def _list_queries(rule: dict[str, Any]) -> str:
    """Its expression, and what its message looks up."""
    return "\n".join([rule["expr"], *rule.get("annotations", {}).values()])


def _about(judged: set[str], case: dict[str, Any]) -> dict[str, Any] | None:
    """What a test expects of some rules."""
    alerts = [one for one in case.get("alert_rule_test", []) if one["alertname"] in judged]
    values = [one for one in case.get("promql_expr_test", []) if any(name in one["expr"] for name in judged)]
    return {**case, "alert_rule_test": alerts, "promql_expr_test": values} if alerts or values else None


def _write(file: Path, document: dict[str, Any]) -> Path:
    file.write_text(yaml.dump(document, Dumper=yaml.CSafeDumper))
    return file
