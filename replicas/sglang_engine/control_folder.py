"""A replica's private folder: the two control files, and the log of its SGLang server.

It goes when the replica ends in order. After a failed start or a killed replica it stays, since its
log says why; the next replica on the machine clears such folders away, all but the latest.
"""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

PREFIX = "trimode-sglang-"
_OWNER = "owner"


class ControlFolder:
    """Made in the temporary folder, and this process's until it is removed or the process ends.

    A file lock says so, which the kernel releases whatever the end: process numbers come again, and
    mean nothing to another container that has the same temporary folder.
    """

    def __init__(self) -> None:
        clear_abandoned(Path(tempfile.gettempdir()))
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        draft = self.path / f".{_OWNER}"
        self._owner = draft.open("w")
        fcntl.flock(self._owner, fcntl.LOCK_EX)
        # Under its name only once it is locked: a folder without an owner is in the making.
        draft.rename(self.path / _OWNER)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self._owner.close()


def clear_abandoned(parent: Path) -> None:
    """Removes the folders whose processes have ended, and leaves the latest."""
    abandoned = [folder for folder in parent.glob(f"{PREFIX}*") if _is_abandoned(folder)]
    for folder in sorted(abandoned, key=_last_change)[:-1]:
        shutil.rmtree(folder, ignore_errors=True)


def _is_abandoned(folder: Path) -> bool:
    with suppress(OSError), (folder / _OWNER).open() as owner:  # another user's cannot be opened
        fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _last_change(folder: Path) -> float:
    with suppress(OSError):  # another replica that starts may have removed it
        return folder.stat().st_mtime
    return 0.0
