import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "scripts"
RUN = "import sys, leave_nothing; leave_nothing.GRACE_S = 0.5; sys.exit(leave_nothing.main())"


def leave_nothing(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", RUN, *command],
        env={"PYTHONPATH": str(SCRIPTS), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_clean_command_keeps_its_status() -> None:
    assert leave_nothing("true").returncode == 0
    result = leave_nothing("sh", "-c", "exit 3")
    assert result.returncode == 3
    assert "none left behind" in result.stdout


def test_a_daemon_is_found_named_and_ended() -> None:
    result = leave_nothing("sh", "-c", "setsid sleep 61.5 >/dev/null 2>&1 & echo $!")
    assert result.returncode == 1
    assert "sleep 61.5" in result.stderr
    assert not Path("/proc", result.stdout.split()[0]).exists()


def test_an_orphan_is_buried_while_the_command_runs() -> None:
    script = (
        "pid=$(sh -c 'sleep 0.2 >/dev/null & echo $!'); "
        "for i in $(seq 50); do [ -e /proc/$pid ] || exit 0; sleep 0.1; done; exit 4"
    )
    assert leave_nothing("sh", "-c", script).returncode == 0
