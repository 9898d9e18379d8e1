"""Stands between a replica and its SGLang server, so that nothing of it outlives the replica.

    python child.py PARENT_PID MODULE [ARGUMENT ...]

SGLang's processes ask the kernel to end them with their parent, but only once they have imported
all they need; a replica that is killed while its server starts would leave them behind, and with
them a GPU's memory. This process is the first of a session that holds them all, has nothing to
import, and ends the whole session when the replica is gone. Otherwise it does what the server
would: SIGTERM reaches the server, and its end is the server's end.

Run as a file by the Python that SGLang is installed in, so it imports nothing of this package.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from typing import Any

PR_SET_PDEATHSIG = 1
ORPHANED = signal.SIGUSR1


def die_with_parent(number: int) -> None:
    """The kernel sends this signal when the thread that started this process ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, number) != 0:
        raise OSError(ctypes.get_errno(), "the kernel refused a parent-death signal")


def end_session(*_: Any) -> None:
    os.killpg(0, signal.SIGKILL)


def main(parent: int, module: str, arguments: list[str]) -> None:
    signal.signal(ORPHANED, end_session)
    die_with_parent(ORPHANED)
    if os.getppid() != parent:  # it died before the kernel was told; nobody would end us
        sys.exit(f"the replica, process {parent}, has ended")
    server = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        preexec_fn=lambda: die_with_parent(signal.SIGKILL),  # this process has one thread
    )
    # Not before: until there is a server, SIGTERM may end this process as it ends any.
    signal.signal(signal.SIGTERM, lambda *_: server.send_signal(signal.SIGTERM))
    end_as(server.wait())


def end_as(status: int) -> None:
    """Ends this process as another has ended: with its exit status, or by its signal."""
    if status < 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
