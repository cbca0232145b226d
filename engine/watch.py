"""A process that stands still says where, and ends: its launcher can then start all of them again."""

import faulthandler
import os
import sys
import threading
import time

from engine.distributed import Context


class Watch:
    """Ends this process, exit code 1, if what it expects takes longer than so many minutes.

    What keeps a process of many from going on stands elsewhere: in a collective on the others, in a file or a device on
    the one to blame. So each says what it was at, and the stack of each thread.
    """

    def __init__(self, context: Context, minutes: float):
        self.who = f"process {context.rank} of {context.world}"
        self.minutes, self.what, self.deadline = minutes, "", float("inf")
        self.ended = threading.Event()
        if context.world > 1:  # one alone may stand: stopped by its user, or at a long validation
            threading.Thread(target=self._look, daemon=True).start()

    def expect(self, what: str) -> None:
        self.what, self.deadline = what, time.monotonic() + 60 * self.minutes

    def end(self) -> None:
        self.ended.set()

    def _look(self) -> None:
        while not self.ended.wait(min(5.0, 6 * self.minutes)):
            if time.monotonic() > self.deadline:
                print(f"error: {self.who} stands still: {self.what} has taken more than {self.minutes:g} minutes "
                      "(--timeout-minutes). Its threads:", file=sys.__stderr__, flush=True)  # fmt: skip
                faulthandler.dump_traceback(sys.__stderr__)
                os._exit(1)
