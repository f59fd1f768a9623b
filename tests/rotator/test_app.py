from services.rotator.app import run_to_report
from services.rotator.report import CommandOutcome, CommandReport
from services.rotator.session import CommandSession
from tests.rotator.keyring_to_rotate import Quiet, Rotated


async def test_what_nobody_expected_is_a_report_without_the_value_that_it_is_about(in_a_file: Rotated) -> None:
    async def work(session: CommandSession) -> CommandReport:
        raise ValueError(f"{session.caller} cannot read 'a value'")

    report = await run_to_report("verify", in_a_file.settings(), work, Quiet())
    assert report.outcome is CommandOutcome.FAILED
    assert "ValueError in test_app.py, line " in report.summary
    assert "a value" not in report.summary
    assert report.next_commands == ("status", "verify")
