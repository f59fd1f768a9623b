"""How soon an outage of KMS is known, and how quiet its noise is: 200 keys at the default intervals.

The exporter's own schedule, round trips, key inspections and metrics, on a clock that jumps to whatever comes next,
with keys that fail as told. Their samples, one each 10 s, go to promtool, which evaluates the rules as Prometheus does,
each 10 s. An alert is on its way from then on: what Alertmanager waits, 10 s by its configuration, is not included.
"""

import asyncio
import logging
import re
import subprocess
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from random import Random
from statistics import median
from typing import Final

import click
import looptime
import structlog
import yaml
from prometheus_client.samples import Sample

from services.exporter.config import ExporterSettings, Target
from services.exporter.jobs import start_jobs
from services.exporter.metrics.targets import BackendMetrics, TargetMetrics
from services.exporter.results import Results
from shared.kms.gcp.profile import GCP_PROFILE
from shared.kms.gcp.settings import GcpKeySettings
from shared.kms.port import ConnectivityPhase, KmsError
from shared.kms.reason import Reason
from shared.kms.settings import ProviderSettings
from tests.bench.stage import BenchError
from tests.exporter.played_key import PlayedKey
from tests.ops.rules import PROMETHEUS

RULES: Final = PROMETHEUS / "rules/keys.yml"
KEYS: Final = 200
ALERTS: Final = ("KMSProbeFailing", "KMSProbeFlapping")
"""What pages because of round trips."""
OUTAGES: Final = (20, 60, 75, 600)
"""Seconds."""
SCRAPE: Final = 10
"""Seconds, also from one evaluation of the rules to the next: ops/prometheus."""
BEFORE: Final = 120
"""Seconds in which all works before an outage begins, or before noise counts."""
_SPREAD: Final = 60
"""The outages begin within so many seconds, one for each key and the endpoint of its own."""
_LATENCY: Final = 0.05
_RING: Final = "projects/bench/locations/global/keyRings/bench/cryptoKeys"
_SERIES: Final = frozenset(
    {
        "kms_probe_success",
        "kms_probe_last_success_timestamp_seconds",
        "kms_probes_total",
        "kms_probe_failures_total",
    }
)
"""What the rules read that judge round trips."""
_KEYS_OF_A_TEST: Final = 20
"""promtool refuses a query of more than 10,000 samples."""
_FIRING: Final = 'ALERTS{alertstate="firing", severity!="none"}'
_VALUE: Final = re.compile(r"\{([^{}]*)\} ([\d.E+-]+)")
_LABEL: Final = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True, slots=True)
class Scenario:
    """Why calls fail, and when: at random, or during one outage of each key."""

    reason: Reason
    seconds: float
    """Of the whole run, after `BEFORE`."""
    outage: float | None = None
    """Seconds; without it calls fail at random."""
    share: float = 0.0
    """Of the calls that fail at random."""
    is_shared: bool = False
    """Whether the keys have one endpoint, and one outage."""
    seed: int = 0


class Key(PlayedKey):
    """A key that fails as the scenario says."""

    profile = GCP_PROFILE

    def __init__(self, scenario: Scenario, fails_at: Callable[[float], bool]) -> None:
        self._hangs = scenario.reason is Reason.TIMEOUT
        self._reason = scenario.reason
        self._fails_at = fails_at

    async def play(self, operation: str, timeout: float) -> None:  # noqa: ARG002  all fail in the same way
        is_failing = self._fails_at(asyncio.get_running_loop().time())
        await asyncio.sleep(timeout if is_failing and self._hangs else _LATENCY)
        if is_failing:
            raise KmsError(self._reason, "as told")

    async def measure_connectivity(self, *, timeout: float) -> tuple[ConnectivityPhase, ...]:
        if self._hangs and self._fails_at(asyncio.get_running_loop().time()):
            await asyncio.sleep(timeout)
        return ()


class Scraper:
    """What Prometheus has of the exporter: by key and series, the values by the number of the scrape."""

    def __init__(self, results: Results) -> None:
        self._results = results
        self._latest: dict[TargetMetrics | BackendMetrics, tuple[int, dict[str, float]]] = {}
        self.keys: defaultdict[str, defaultdict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))

    def scrape(self, number: int) -> None:
        for source in self._results.metrics.get_sources():
            version, values = self._latest.get(source, (0, {}))
            if version != source.version:
                values = {
                    _format_series(sample): float(sample.value)
                    for family in source.collect()
                    for sample in family.samples
                    if sample.name in _SERIES and (sample.value or "reason" not in sample.labels)
                }
                self._latest[source] = source.version, values
            for series, value in values.items():
                self.keys[series.partition('target="')[2][:7]][series][number] = value


def _format_series(sample: Sample) -> str:
    labels = ", ".join(f'{name}="{value}"' for name, value in sample.labels.items())
    return f'{sample.name}{{env="bench", job="keypulse-exporter", instance="bench:9911", {labels}}}'


def _simulate(scenario: Scenario) -> tuple[Scraper, int, dict[str, float]]:
    """The scrapes of one run, the second of each 15 at which they come, and when the outage of each key began."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    random = Random(scenario.seed)  # noqa: S311  the same in each run
    names = [f"key-{number:03d}" for number in range(KEYS)]
    begins = {name: BEFORE + (0 if scenario.is_shared else random.uniform(0, _SPREAD)) for name in names}
    phase = random.randrange(1, SCRAPE)
    is_one = scenario.is_shared or scenario.outage is None

    def connect(settings: ProviderSettings) -> Key:
        begin = begins[settings.key.rpartition("/")[2]]
        outage = scenario.outage
        if outage is None:
            return Key(scenario, lambda _: random.random() < scenario.share)
        return Key(scenario, lambda now: begin <= now < begin + outage)

    async def run() -> Scraper:
        loop = asyncio.get_running_loop()
        results = Results(loop.time)
        scraper = Scraper(results)
        targets = [
            Target(
                name=name,
                service="bench",
                kms=GcpKeySettings(
                    key=f"{_RING}/{name}", endpoint=f"127.0.0.1:{1 if is_one else number}", insecure=True
                ),
            )
            for number, name in enumerate(names, 1)
        ]
        async with start_jobs(ExporterSettings(targets=targets), results, connect, random):
            for number in range(int((BEFORE + scenario.seconds) / SCRAPE)):
                await asyncio.sleep(number * SCRAPE + phase - loop.time())
                scraper.scrape(number)
        return scraper

    with asyncio.Runner(loop_factory=partial(looptime.new_event_loop, noop_cycles=0)) as runner:
        return runner.run(run()), phase, begins


def _write(series: str, values: Mapping[int, float], phase: int) -> str:
    """One series as promtool reads it, a value for each second: `_x4 1 _x14 0`."""
    written, at = [], 0
    if "reason" in series:  # a counter that was 0 until it is known
        values = dict.fromkeys(range(min(values)), 0.0) | dict(values)
    for number, value in values.items():
        if gap := number * SCRAPE + phase - at:
            written.append(f"_x{gap}")
        written.append(f"{value!r}")
        at = number * SCRAPE + phase + 1
    return " ".join(written)


def _read_rules() -> dict[str, list[dict[str, object]]]:
    """The alerts, without their texts and without the rules beside them, which take most of the time."""
    (group,) = yaml.load(RULES.read_text(encoding="utf-8"), yaml.CSafeLoader)["groups"]
    rules = [{**rule, "annotations": {}} for rule in group["rules"] if rule.get("alert") in ALERTS]
    return {"groups": [{**group, "rules": rules}]}


def _evaluate(scenario: Scenario, expression: str) -> tuple[list[tuple[dict[str, str], float]], dict[str, float]]:
    """What the expression gives at the end of a run, by labels, and when the outage of each key began."""
    scraper, phase, begins = _simulate(scenario)
    query = {"expr": expression, "eval_time": f"{int(BEFORE + scenario.seconds)}s"}
    keys = list(scraper.keys.values())
    tests = [
        {
            "interval": "1s",
            "input_series": [
                {"series": series, "values": _write(series, values, phase)}
                for key in keys[first : first + _KEYS_OF_A_TEST]
                for series, values in key.items()
            ],
            "promql_expr_test": [query],
        }
        for first in range(0, len(keys), _KEYS_OF_A_TEST)
    ]
    content = {"rule_files": ["rules.yml"], "evaluation_interval": f"{SCRAPE}s", "tests": tests}
    with tempfile.TemporaryDirectory() as folder:
        for name, document in (("rules.yml", _read_rules()), ("tests.yml", content)):
            with Path(folder, name).open("w", encoding="utf-8") as file:
                yaml.dump(document, file, Dumper=yaml.CSafeDumper, width=1 << 30)
        command = ["promtool", "test", "rules", f"{folder}/tests.yml"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    output = answer.stdout + answer.stderr
    # Each test expects nothing: it fails with the values, or succeeds where there are none.
    got = [line for line in output.splitlines() if line.strip().startswith("got:")]
    if (answer.returncode and not got) or " err: " in output:
        raise BenchError(output)
    return [(dict(_LABEL.findall(labels)), float(value)) for labels, value in _VALUE.findall("".join(got))], begins


def count_pages(scenario: Scenario) -> Counter[str]:
    """How often each alert began to fire in a run, by name."""
    window = f"[{int(scenario.seconds)}s:{SCRAPE}s]"
    found, _ = _evaluate(
        scenario, f"sum by (alertname) (sum_over_time(({_FIRING} unless {_FIRING} offset {SCRAPE}s){window}))"
    )
    pages: Counter[str] = Counter()
    for labels, value in found:
        pages[labels["alertname"]] += int(value)
    return pages


def time_pages(scenario: Scenario) -> list[float]:
    """How many seconds after its outage began KMSProbeFailing fired for each key; infinite where it did not."""
    firing = _FIRING.replace("{", '{alertname="KMSProbeFailing", ')
    found, begins = _evaluate(
        scenario, f"min_over_time(timestamp({firing})[{int(BEFORE + scenario.seconds)}s:{SCRAPE}s])"
    )
    fired = {labels["target"]: value for labels, value in found}
    return [fired.get(name, inf) - begin for name, begin in begins.items()]


def noise(half_hours: int, runs: int) -> None:
    """Prints how many alerts noise raises in half an hour, and how many outages are seen, and when."""
    kinds = {"refused": Reason.UNAVAILABLE, "without an answer": Reason.TIMEOUT}
    quiet = [
        (0.01, "refused", half_hours, 10),
        (0.01, "without an answer", half_hours // 10, 10),
        (0.1, "refused", half_hours // 10, 2),  # with so many alerts, promtool counts those of no more
    ]
    with ProcessPoolExecutor() as pool:
        click.echo(f"{KEYS} keys; alerts that begin in half an hour")
        for share, kind, number, longest in quiet:
            each = min(number, longest)
            scenarios = [Scenario(kinds[kind], each * 1800, share=share, seed=seed) for seed in range(number // each)]
            pages = sum(pool.map(count_pages, scenarios), Counter())
            found = ", ".join(f"{alert} {pages[alert] / (each * len(scenarios)):.2f}" for alert in ALERTS)
            click.echo(f"  {share:.0%} of the calls {kind}, {each * len(scenarios)} half hours: {found}")
        click.echo(f"{KEYS * runs} outages of one key each: seen by {ALERTS[0]}, seconds after the outage began")
        for kind, reason in kinds.items():
            for outage in OUTAGES:
                scenarios = [Scenario(reason, _SPREAD + outage + 180, outage, seed=seed) for seed in range(runs)]
                times = sorted(one for run in pool.map(time_pages, scenarios) for one in run)
                seen = [one for one in times if one < inf]
                took = f", median {median(seen):.0f} s, 95 % within {seen[int(0.95 * len(seen))]:.0f} s" if seen else ""
                click.echo(f"  {outage} s, calls {kind}: {len(seen) / len(times):.1%} seen{took}")
        click.echo(f"{runs} outages of 75 s of all keys of one endpoint at once")
        for kind, reason in kinds.items():
            scenarios = [Scenario(reason, 255, 75, is_shared=True, seed=seed) for seed in range(runs)]
            shared = [sorted(run) for run in pool.map(time_pages, scenarios)]
            first = ", ".join(f"{times[0]:.0f}" for times in shared)
            share = sum(one < inf for times in shared for one in times) / (KEYS * runs)
            click.echo(f"  calls {kind}: first alert after {first} s; {share:.1%} of the keys")
