"""Each command of the documents for people on call, against what chart, rules, Prometheus and servers have."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from tests.architecture.test_roles import TABLE
from tests.ops import exposed_metrics
from tests.ops.helm.rendering import of_kind, rendered
from tests.ops.rehearsal.document import blocks
from tests.ops.routing import FILE as ALERTMANAGER
from tests.ops.rules import ALERTS, RECORDINGS, ROOT, RUNBOOK, RUNBOOKS

PAGES = (*RUNBOOKS, ROOT / "docs/KMS_SETUP_CHECKLIST.md", ROOT / "docs/DRILLS.md")
TOOLS = ("kubectl", "promtool", "amtool", "curl")
SERVERS = {
    "EXPORTER": "exporter",
    "RELAY": "relay",
    "BACKEND": "backend",
    "STAND_INS": "stand-ins",
    "FAULTS": "emulator",
}
OTHERS = {
    "PROMETHEUS": {"GET /metrics", "GET /api/v1/status/flags", "POST /-/reload", "GET /-/ready"},
    "ALERTMANAGER": {"GET /metrics", "POST /-/reload", "GET /-/ready"},
}
"""What the documents ask Prometheus and Alertmanager."""
TESTS_OWN = "KMSTest"
"""What `send-test` and the smoke test call their alert."""
PROMTOOL = ("query instant", "query range", "query …", "check config", "check rules")
SELECTOR = re.compile(r"\b((?:crypto|kms|relay|keypulse)[_:][a-z0-9_]+|up|ALERTS)\b(?:\{([^}]*)\})?")
Labels = dict[str, set[str] | None]
OF_PROMETHEUS = {"env", "job", "instance"}
"""Labels that its configuration adds to each series."""


def commands_of(page: Path, tool: str) -> list[list[str]]:
    """The words of each command of a tool: in blocks and between the lines' backticks, without what follows a pipe."""
    typed = [command for block in blocks(page) for command in block.commands]
    typed += re.findall(rf"`((?:{tool}) [^`]*)`", page.read_text(encoding="utf-8"))
    return [words for command in typed for words in _split(command) if words[0] == tool]


def _split(command: str) -> Iterator[list[str]]:
    """Each simple command of a line of shell."""
    lexer = shlex.shlex(command.replace("\\\n", " "), posix=True, punctuation_chars="|;&()<>")
    lexer.whitespace_split, lexer.commenters = True, "#"
    words: list[str] = []
    for word in lexer:
        if set(word) <= set("|;&()"):
            if words:
                yield words
            words = []
        else:
            words.append(word)
    if words:
        yield words


def pages_with(tool: str) -> list[Path]:
    return [page for page in PAGES if commands_of(page, tool)]


@pytest.mark.parametrize("tool", TOOLS)
def test_there_are_commands_of_each_tool(tool: str) -> None:
    assert len(pages_with(tool)) >= 3


@pytest.mark.parametrize("page", pages_with("kubectl"), ids=lambda page: page.stem)
def test_kubectl_asks_the_namespace_in_which_the_deployment_is(page: Path) -> None:
    deployments = of_kind("Deployment", rendered())
    rule = ALERTS.get(page.stem)
    is_of_keypulse = rule is not None and "$labels.service" not in str(rule)
    for words in commands_of(page, "kubectl"):
        named = re.findall(r"deployment/(\S+)", " ".join(words))
        if words[1] != "-n":  # in a sentence, of any namespace; or what has none
            assert words[1] in ("cordon", "get", "logs", "rollout"), words
            continue
        own = [name for name in named if name.startswith("keypulse-")]
        assert [name for name in own if name not in deployments] == [], words
        if own or (is_of_keypulse and not named):
            assert words[2] in ("$KEYPULSE_NAMESPACE", "keypulse"), words
        elif named:
            assert (words[2], named) == ("$NAMESPACE", ["$SERVICE"]), words
        else:
            assert words[2] in ("$NAMESPACE", "keypulse", "monitoring"), words


@pytest.mark.parametrize("page", pages_with("promtool"), ids=lambda page: page.stem)
def test_promtool_asks_for_series_and_labels_that_exist(page: Path, labels: Labels, tmp_path: Path) -> None:
    jobs = re.findall(r"job_name: (\S+)", (ROOT / "ops/prometheus/prometheus.yml").read_text(encoding="utf-8"))
    queries = [
        words[-1] for words in commands_of(page, "promtool") if words[1] == "query" and words[-1] not in ("query", "…")
    ]
    for query in queries:
        found = SELECTOR.findall(query)
        assert found, query
        for name, matchers in found:
            asked = dict(re.findall(r'(\w+)(?:=~|!~|!=|=)"([^"]*)"', matchers))
            assert name in labels, query
            known = labels[name]
            assert known is None or asked.keys() <= known | OF_PROMETHEUS, query
            assert [job for job in jobs if re.fullmatch(asked.get("job", job), job)], query
            assert asked.get("alertname", "Watchdog") in ALERTS, query
    if queries:
        rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries)]
        file = tmp_path / "queries.yml"
        file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
        done = subprocess.run(
            ["promtool", "check", "rules", file], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
    for words in commands_of(page, "promtool"):
        assert len(words) == 2 or f"{words[1]} {words[2]}" in PROMTOOL, words


@pytest.mark.parametrize("page", pages_with("amtool"), ids=lambda page: page.stem)
def test_amtool_names_alerts_that_exist_and_routes_that_lead_somewhere(page: Path) -> None:
    for words in commands_of(page, "amtool"):
        named = [word.partition("=")[2] for word in words if word.startswith("alertname=")]
        assert [name for name in named if name not in (*ALERTS, TESTS_OWN)] == [], words
        if "merged.yml" in " ".join(words):  # what `alertmanager --merge` has written
            continue
        if words[1] in ("config", "check-config"):
            played = [word.replace("/etc/alertmanager/alertmanager.yml", str(ALERTMANAGER)) for word in words]
            done = subprocess.run(played, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 0, done.stderr
        elif "expire" not in words:
            assert "--alertmanager.url=$ALERTMANAGER" in words, words


@pytest.mark.parametrize("page", pages_with("curl"), ids=lambda page: page.stem)
def test_curl_asks_what_a_server_answers(page: Path) -> None:
    for words in commands_of(page, "curl"):
        for variable, address in [found for word in words for found in re.findall(r"^\$(\w+)(/\S*)", word)]:
            method = words[words.index("-X") + 1] if "-X" in words else "POST" if "-d" in words else "GET"
            endpoints = OTHERS.get(variable) or TABLE[SERVERS[variable]].keys()
            asked = f"{method} {urlsplit(address).path}"
            patterns = [re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(endpoint)) for endpoint in endpoints]
            assert any(re.fullmatch(pattern, asked) for pattern in patterns), words


def test_the_variables_have_the_chart_s_namespace_and_ports() -> None:
    variables = dict(
        re.findall(r"(\w+)=(\S+)", "\n".join(re.findall("^export (.*)", RUNBOOK.read_text(), re.MULTILINE)))
    )
    readme = (ROOT / "ops/helm/keypulse/README.md").read_text(encoding="utf-8")
    assert f"kubectl create namespace {variables['KEYPULSE_NAMESPACE']}\n" in readme
    services = of_kind("Service", rendered())
    for part in ("exporter", "relay"):
        ports = [each["port"] for each in services[f"keypulse-{part}"]["spec"]["ports"]]
        assert urlsplit(variables[part.upper()]).port in ports


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Labels:
    """The names of the labels of each series that a query may ask for; None where no series of it is there."""
    families = [
        *exposed_metrics.by_the_exporter(),
        *exposed_metrics.by_a_relay(tmp_path_factory.mktemp("relay")),
        *exposed_metrics.by_every_server(),
    ]
    of_rules = {"service", "target", "channel", "state"}
    found: Labels = {"up": set(), "ALERTS": of_rules | {"alertname", "alertstate", "severity"}}
    found |= dict.fromkeys(RECORDINGS, of_rules)
    for family in families:
        names = dict.fromkeys(exposed_metrics.names([family]))
        for sample in family.samples:
            names[sample.name] = (names.get(sample.name) or set()) | sample.labels.keys()
        found |= names
    return found
