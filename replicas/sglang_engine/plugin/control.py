"""The plugin's end of the control directory: schedules in, reports out."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

from policies.vocabulary import Schedule
from replicas.sglang_engine.protocol import (
    CONTROL_DIR_VARIABLE,
    REPORT_INTERVAL_S,
    SCHEDULE_FILE,
    PluginReport,
    ProtocolError,
    read_schedule,
    write_report,
)

logger = logging.getLogger(__name__)


def control_directory() -> Path | None:
    """What the environment names; None where SGLang was started by hand.

    Raises:
        FileNotFoundError: it names a folder that is not there.
    """
    named = os.environ.get(CONTROL_DIR_VARIABLE)
    if not named:
        return None
    directory = Path(named)
    if not directory.is_dir():
        raise FileNotFoundError(f"{CONTROL_DIR_VARIABLE}={named}: no such folder; create it first")
    return directory


class ScheduleFile:
    """Notices a new schedule for the price of one `stat`."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._seen = directory, (0, 0)
        # Joined once: this is looked up before every step.
        self._path = str(directory / SCHEDULE_FILE)
        self.refusal: str | None = None
        """Why the last file that came was not taken, if so."""

    def news(self) -> Schedule | None:
        """The schedule if it was written since the last call. A broken file is reported, not
        raised: the schedule in force goes on."""
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            return None
        seen = (found.st_ino, found.st_mtime_ns)
        if seen == self._seen:
            return None
        self._seen = seen
        try:
            schedule = read_schedule(self._directory)
        except ProtocolError as error:
            self.refusal = str(error)
            logger.error("trimode: %s", error)
            return None
        self.refusal = None
        return schedule


class Reporter(threading.Thread):
    """Writes a report every `REPORT_INTERVAL_S`, also while a step is long or none is running."""

    def __init__(self, directory: Path, report: Callable[[], PluginReport]) -> None:
        super().__init__(name="trimode-report", daemon=True)
        self._directory, self._report = directory, report
        self._stopped = threading.Event()

    def run(self) -> None:
        try:
            while True:
                write_report(self._directory, self._report())
                if self._stopped.wait(REPORT_INTERVAL_S):
                    return
        except OSError as error:
            # The folder goes when the replica does. Without reports the replica gives this process
            # up, which is the right end for a process that can no longer be heard.
            logger.error("trimode: no more reports: %s", error)

    def stop(self) -> None:
        self._stopped.set()
