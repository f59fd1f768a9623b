"""The launchers install once, what is locked, and pass everything on."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import tree_sitter_pwsh
from tree_sitter import Language, Node, Parser

ROOT = Path(__file__).parents[3]
SHELL = "ops/audit/setup-kms-audit-logging.sh"
POWERSHELL = "ops/audit/setup-kms-audit-logging.ps1"
PYTHON = """\
#!/bin/sh
echo "$@" >>"$CALLS"
case "$*" in
  *"-m venv"*) for last; do :; done; mkdir -p "$last/bin"; cp "$0" "$last/bin/python" ;;
  *"$FAILS"*) exit 1 ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the launchers need of a checkout, with a Python that writes down what it is called with."""
    root = tmp_path / "a checkout"
    for name in (SHELL, "requirements/audit.lock", "requirements/build.lock"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    (tmp_path / "python3").write_text(PYTHON)
    (tmp_path / "python3").chmod(0o755)
    return root


def run_launcher(root: Path, *arguments: str, fails: str = "nothing") -> tuple[int, list[str], str]:
    calls = root.parent / "calls"
    calls.write_text("")
    environment = {"PATH": f"{root.parent}:{os.environ['PATH']}", "CALLS": str(calls), "FAILS": fails}
    command = ["bash", str(root / SHELL), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, calls.read_text().splitlines(), done.stderr


def test_it_installs_once_and_passes_everything_on(checkout: Path) -> None:
    code, calls, _ = run_launcher(checkout, "plan", "--project", "acme prod")
    assert code == 0
    assert [call.partition("pip install")[1] for call in calls] == ["", "", "pip install", "pip install", ""]
    assert "--require-hashes" in calls[2]
    assert "--no-index" in calls[3]
    assert calls[4] == "-m ops.audit plan --project acme prod"
    assert run_launcher(checkout, "apply")[1] == ["-m ops.audit apply"]


def test_it_installs_again_when_the_lock_has_changed(checkout: Path) -> None:
    run_launcher(checkout)
    later = (checkout / ".venv-audit/installed").stat().st_mtime + 10
    os.utime(checkout / "requirements/audit.lock", (later, later))
    assert len(run_launcher(checkout)[1]) == 5


def test_the_exit_code_is_the_command_s(checkout: Path) -> None:
    run_launcher(checkout)
    assert run_launcher(checkout, "plan", fails="ops.audit plan")[0] == 1


@pytest.mark.parametrize(
    ("fails", "code", "output"), [("-c import", 2, "Python 3.11"), ("pip install", 1, "package index")]
)
def test_what_goes_wrong_is_a_sentence_and_is_retried(fails: str, code: int, output: str, checkout: Path) -> None:
    failed, _, stderr = run_launcher(checkout, "plan", fails=fails)
    assert failed == code
    assert output in stderr
    assert run_launcher(checkout, "plan")[1][-1] == "-m ops.audit plan"


def test_the_one_for_powershell_is_powershell_and_does_the_same() -> None:
    source = (ROOT / POWERSHELL).read_bytes()
    tree = Parser(Language(tree_sitter_pwsh.language())).parse(source)
    assert not tree.root_node.has_error
    commands = [" ".join(node.text.decode().split()) for node in _commands(tree.root_node) if node.text]
    run = [command for command in commands if command.startswith("&")]
    assert [command.partition(" -m ")[2].partition(" --quiet")[0] for command in run[1:]] == [
        "venv --clear $venv",
        "pip install",
        "pip install",
        "ops.audit @args",
    ]
    assert "--require-hashes" in run[2]
    assert "--no-index" in run[3]
    (check,) = re.findall(r"-c ('[^']+')", (ROOT / SHELL).read_text())
    assert run[0] == f"& $python @options -c {check}", "the version is asked before anything is made"
    assert b"exit 2" in source.partition(b"-m venv")[0]
    assert source.rstrip().endswith(b"exit $LASTEXITCODE")


@pytest.mark.parametrize("launcher", [POWERSHELL, "ops/smoke/smoke-crypto-kms.ps1"])
def test_powershell_says_which_python_is_needed_where_there_is_none(launcher: str) -> None:
    """By `$?`: `$LASTEXITCODE` is of the command before where a command is not found."""
    source = (ROOT / launcher).read_text(encoding="utf-8")
    assert not Parser(Language(tree_sitter_pwsh.language())).parse(source.encode()).root_node.has_error
    check = (
        r"& \$python @options -c '.*sys\.version_info < \(3, 11\)\)'\n *if \(-not \$\?\) \{.*Python 3\.11.*exit 2 \}\n"
    )
    assert re.search(rf"find-python\.ps1'\)\n *{check}", source)


def _commands(node: Node) -> list[Node]:
    inner = [each for child in node.children for each in _commands(child)]
    return [node, *inner] if node.type == "command" else inner
