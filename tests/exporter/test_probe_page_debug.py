"""`/probe?debug=true`: the steps in words; and who may ask for a probe."""

from functools import partial
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families as text

from ops.kms_emulator.faults import EmulatorFault
from services.exporter.model import Call, Failure, Operation, ProbeResult
from services.exporter.probes.round_trip import Prober
from shared.config.secret_file import TokenFile
from shared.kms.gcp.settings import GcpKeySettings
from shared.kms.port import ConnectivityPhase
from shared.kms.reason import Cause, Reason
from shared.kms.registry import connect_key
from tests.exporter.probe_server import KEY, probed

STEPS = "?target=ledger-kek&debug=true"


@pytest.fixture
def token(tmp_path: Path) -> TokenFile:
    file = tmp_path / "token"
    file.write_text("an-admin-token-of-tests\n")
    return TokenFile(file)


def lines(body: str) -> dict[str, str]:
    """What stands behind the first word of each step."""
    steps = body.partition("What a scrape gets:")[0].splitlines()
    return {line.split("  ")[1]: line for line in steps if line.startswith("  ")}


async def test_the_steps_of_a_successful_probe_are_reported_and_its_connectivity_is_measured_too() -> None:
    async with probed() as page:
        answer = await page.get(STEPS)
    steps = lines(answer.body)
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.body.startswith("Probe of ledger-kek, service backend\n")
    assert "ok: the checksums of plaintext, AAD and ciphertext match" in steps["encrypt"]
    assert "is the one that was encrypted" in steps["decrypt"]
    assert "ok" in steps["dns"]
    assert "ok" in steps["tcp"]
    assert f"{page.observed[0].calls[0].seconds:.4f} s" in steps["first call"]
    assert "key version that encrypted: 1\n" in answer.body
    assert "protection level: SOFTWARE" in answer.body
    metrics = {
        s.name: s.value for family in text(answer.body.partition("What a scrape gets:\n")[2]) for s in family.samples
    }
    assert metrics["probe_success"] == 1
    assert "probe_phase_duration_seconds" in metrics


async def test_a_scrape_measures_no_connectivity_while_all_is_healthy() -> None:
    measurements = 0

    async def measure() -> tuple[ConnectivityPhase, ...]:
        nonlocal measurements
        measurements += 1
        return (ConnectivityPhase("dns", 0.001),)

    async with probed(measure_connectivity=measure) as page:
        await page.get("?target=ledger-kek")
        assert measurements == 0
        await page.get(STEPS)
        assert measurements == 1


async def test_the_steps_show_a_new_connection_not_the_one_that_earlier_failures_share() -> None:
    found = [ConnectivityPhase("tcp", 0.1, "refused", Cause.CONNECT)]

    async def measure() -> tuple[ConnectivityPhase, ...]:
        return tuple(found)

    async with probed(measure_connectivity=measure, min_interval=0.0) as page:
        page.emulator.faults.add(EmulatorFault(kind="status", status="UNAVAILABLE", message="try again later"))
        await page.get("?target=ledger-kek")
        await page.probe.measure_connectivity()
        found[:] = [ConnectivityPhase("tls", 0.1, "no trust", Cause.TLS)]
        body = (await page.get(STEPS)).body
    assert "tls (unavailable): try again later" in lines(body)["encrypt"]
    assert "It is the network, at TLS: no trust" in body


async def test_the_steps_distinguish_a_fault_of_kms_from_one_of_the_network() -> None:
    async with probed() as page:
        page.emulator.faults.add(EmulatorFault(kind="status", status="UNAVAILABLE", message="try again later"))
        of_kms = (await page.get(STEPS)).body
    assert "unavailable: try again later" in lines(of_kms)["encrypt"]
    assert "The network works" in of_kms
    assert "Check https://status.cloud.google.com" in of_kms
    key = connect_key(GcpKeySettings(key=KEY, endpoint="127.0.0.1:1", insecure=True))  # where nobody listens
    prober = Prober("backend", "ledger-kek", key, 10.0)
    async with probed(probe=prober.probe, measure_connectivity=partial(prober.measure_connectivity, 10.0)) as page:
        of_the_network = (await page.get(STEPS)).body
    await key.close()
    assert "connect (unavailable): " in lines(of_the_network)["encrypt"]
    assert "It is the network, at TCP: no connection" in of_the_network
    assert "key version that encrypted: none" in of_the_network


async def test_a_denial_that_kms_does_not_explain_is_explained_step_by_step() -> None:
    async with probed() as page:
        page.emulator.faults.add(EmulatorFault(kind="cause", cause="justification", operation="Encrypt"))
        body = (await page.get(STEPS)).body
        steps = lines(body)
        assert "permission_denied: Permission denied on resource" in steps["encrypt"]
        assert "granted: cloudkms.cryptoKeyVersions.useToDecrypt" in steps["test_permissions"]
        assert "its access justifications policy allows none" in steps["get_key"]
        assert "so it is: justification: probably the key's access justifications policy" in body
        assert "Allow CUSTOMER_INITIATED_ACCESS" in body
        assert "role" not in body.partition("What a scrape gets")[0]
        page.emulator.faults.clear()
        await page.probe.run()
        assert "does not say why" not in (await page.get(STEPS)).body


async def test_what_a_service_says_moves_no_terminal_and_forges_no_line() -> None:
    failure = Failure(Reason.INVALID_REQUEST, "\x1b[2J\nprobe_success 1\r" + "x" * 10_000)
    result = ProbeResult("backend", "ledger-kek", 1.0, (Call(Operation.ENCRYPT, 0.1, failure),), None)

    async def probe() -> ProbeResult:
        return result

    async with probed(probe=probe) as page:
        body = (await page.get(STEPS)).body
    assert "\x1b" not in body
    assert "\nprobe_success 1\r" not in body
    assert len(lines(body)["encrypt"]) < 600
    assert "probe_success 0.0" in body


async def test_the_steps_need_the_admin_token_and_the_metrics_do_not(token: TokenFile) -> None:
    async with probed(token) as page:
        refused = await page.get(STEPS)
        assert refused.status == 401
        assert refused.headers["www-authenticate"] == 'Basic realm="keypulse"'
        assert page.observed == []
        assert (await page.get(STEPS, {"Authorization": "Bearer an-admin-token-of-tests"})).status == 200
        assert (await page.get("?target=ledger-kek", {"Host": "exporter.example.org:9911"})).status == 200


@pytest.mark.parametrize("query", ["?target=ledger-kek", STEPS])
async def test_another_web_page_makes_a_browser_probe_nothing(query: str) -> None:
    async with probed() as page:
        for headers in (
            {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
            {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
            {"Origin": "https://evil.example.org"},
            {"Host": "evil.example.org", "Sec-Fetch-Site": "same-origin"},
        ):
            assert (await page.get(query, headers)).status == 403, headers
        assert page.observed == []
