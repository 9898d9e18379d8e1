"""First code of the child process: ties its life to the replica's, then becomes SGLang's server.

    python child.py PARENT_PID MODULE [ARGUMENT ...]

Run as a file by the Python that SGLang is installed in, so it imports nothing of this package. The
kernel keeps the parent-death signal across `exec`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent: int, module: str, arguments: list[str]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "the kernel refused a parent-death signal")
    if os.getppid() != parent:  # it died before the kernel was told; nobody would end us
        sys.exit(f"the replica, process {parent}, has ended")
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
