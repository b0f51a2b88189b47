"""`make test-busy`: there is load while the command runs, and none after it, whatever ended it."""

import signal
import subprocess
import sys
import time

import psutil
import pytest
from notebook_tools import HOURS, ROOT

TOOL = [sys.executable, ROOT / "tools" / "busy.py", "--processes", "2"]
WAITS = [sys.executable, "-c", "print('here', flush=True); input()"]


def test_its_status_is_that_of_the_command():
    for status in (0, 3):
        command = [*TOOL, sys.executable, "-c", f"raise SystemExit({status})"]
        assert subprocess.run(command, capture_output=True).returncode == status
    assert subprocess.run(TOOL, capture_output=True).returncode == 2, "no command"


@pytest.mark.parametrize("ending", [None, signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_load_ends_with_the_tool(ending):
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([*TOOL, *WAITS], text=True, **pipes) as tool:
        assert [tool.stdout.readline().split()[0], tool.stdout.readline()] == ["2", "here\n"]
        children = psutil.Process(tool.pid).children()
        load = [one for one in children if "getppid" in " ".join(one.cmdline())]
        assert len(load) == 2 and len(children) == 3
        spent = [sum(one.cpu_times()[:2]) for one in load]
        end = time.monotonic() + HOURS
        while any(sum(one.cpu_times()[:2]) <= before for one, before in zip(load, spent)):
            assert time.monotonic() < end, "it is idle"
            time.sleep(0.05)
        if ending:
            tool.send_signal(ending)
        else:
            tool.stdin.write("\n")
        tool.stdin.close()  # the command ends
        assert (tool.wait(HOURS) == 0) == (ending is None)
        assert psutil.wait_procs(load, timeout=HOURS)[1] == []
