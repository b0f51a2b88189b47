"""Runs a command on a busy machine: beside it, as many processes as there are cores do nothing but keep them busy.

python tools/busy.py [--processes N] COMMAND [ARGUMENT ...]

Its exit status is that of the command. The busy processes end with it, whatever ends it.
"""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

LOAD = "import os, sys\nwhile os.getppid() == int(sys.argv[1]): sum(range(10**6))"  # until nobody is there to end it


@contextmanager
def busy(processes: int) -> Iterator[list[subprocess.Popen]]:
    """So many busy processes, for as long as the context lasts or this process lives."""
    load = [sys.executable, "-c", LOAD, str(os.getpid())]
    running = []
    try:
        for _ in range(processes):
            running.append(subprocess.Popen(load))
        yield running
    finally:
        for one in running:
            one.kill()
            one.wait()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=os.cpu_count(), metavar="N", help="default: one a core")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND")
    options = parser.parse_args(arguments)
    if options.processes < 1 or not options.command:
        parser.error("need N >= 1 and a command")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the context ends as with Ctrl-C
    with busy(options.processes):
        print(f"{options.processes} busy processes beside {' '.join(options.command)}", flush=True)
        return subprocess.call(options.command)


if __name__ == "__main__":
    sys.exit(main())
