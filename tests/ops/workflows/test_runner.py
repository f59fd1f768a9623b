"""The runner of the tests gives steps what GitHub's runner gives them."""

import os
from pathlib import Path

import pytest

from tests.ops.workflows.runner import Runner, Step, commands

HEAD = """
name: a test
on: {workflow_dispatch: {}}
permissions: {}
defaults: {run: {shell: bash}}
jobs:
  only:
    runs-on: anything
    env: {WHO: "${{ vars.WHO }}"}
    steps:
"""


def run(folder: Path, steps: str) -> tuple[Runner, list[Step]]:
    contexts = {"inputs": {}, "vars": {"WHO": "job"}, "secrets": {"S": "secret"}, "github": {}}
    runner = Runner(folder, os.environ["PATH"], contexts)
    workflow = folder / "workflow.yml"
    workflow.write_text(HEAD + steps)
    return runner, runner.run(workflow)


def test_what_a_step_writes_the_next_one_has(tmp_path: Path) -> None:
    runner, steps = run(
        tmp_path,
        """
      - run: |
          echo "NEXT=one" >>"$GITHUB_ENV"
          printf 'LINES<<END\\na\\nb\\nEND\\n' >>"$GITHUB_ENV"
          echo "WHO=step" >>"$GITHUB_ENV"
          echo "$RUNNER_TEMP" >>"$GITHUB_PATH"
          printf '#!/bin/sh\\necho tool' >"$RUNNER_TEMP/tool"
          chmod +x "$RUNNER_TEMP/tool"
          echo "# hello" >>"$GITHUB_STEP_SUMMARY"
          echo "$WHO"
      - id: second
        env: {OWN: "${{ env.NEXT }} ${{ secrets.S }}"}
        run: |
          echo "$NEXT $LINES $WHO $OWN $(tool)"
          echo "found=it" >>"$GITHUB_OUTPUT"
      - if: ${{ steps.second.outputs.found == 'it' }}
        run: echo "${OWN:-gone} ${NEXT:-gone}"
""",
    )
    assert [step.output for step in steps] == ["job\n", "one a\nb step one secret tool\n", "gone one\n"]
    assert runner.summary == "# hello\n"


def test_after_a_failure_only_steps_that_ask_for_it_run(tmp_path: Path) -> None:
    runner, steps = run(
        tmp_path,
        """
      - run: false | true
      - run: echo never
      - uses: actions/upload-artifact@v7
      - if: ${{ always() }}
        uses: actions/upload-artifact@v7
        with: {path: "${{ runner.temp }}"}
      - if: failure()
        run: echo after
""",
    )
    assert [step.outcome for step in steps] == ["failure", "skipped", "skipped", "success", "success"]
    assert steps[3].using == {"path": str(runner.temp)}
    assert runner.status == "failure"


@pytest.mark.parametrize(
    "step",
    [
        'run: echo "${{ inputs.x }}"',
        "{run: ls, shell: sh}",
        "{run: ls, continue-on-error: true}",
        "{run: ls, working-directory: x}",
    ],
)
def test_what_it_does_not_do_is_refused(tmp_path: Path, step: str) -> None:
    with pytest.raises(AssertionError, match=r"does not know|read as a command"):
        run(tmp_path, f"      - {step}\n")


def test_a_line_that_the_runner_would_refuse(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="the runner would refuse"):
        commands("no assignment\n")
