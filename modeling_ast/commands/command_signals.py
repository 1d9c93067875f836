"""What a signal does to a command: it ends at once, or puts away what it has begun.

Nothing heavy is imported here: a signal may come at any time.
"""

import math
import os
import signal
import sys
import time

from modeling_ast.commands.command_faults import stop_sentence

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def stop_at_once(status: int | None = None) -> None:
    """Let a signal end this process in one line, where there is nothing to put away.

    Some libraries catch all errors while they are imported, so that none would end it.

    Args:
        status: Of a process that ends anyway and has told why: a signal, such as a launcher's when the first of its
            processes has ended, then changes neither.
    """
    process = os.getpid()

    def stop(number: int, frame) -> None:
        if os.getpid() == process:  # and not in processes that it starts
            if status is None:
                tell(stop_sentence(number))
            os._exit(128 + number if status is None else status)

    for number in SIGNALS:
        signal.signal(number, stop)


def raise_signals() -> None:
    """Let a signal raise `KeyboardInterrupt` in this process, so that a command puts away what it has begun.

    Another one within a second is the same: it was sent to the process and to its group.
    """
    process, last = os.getpid(), -math.inf

    def stop(number: int, frame) -> None:
        nonlocal last
        if os.getpid() == process and time.monotonic() > last + 1:
            last = time.monotonic()
            interrupt = KeyboardInterrupt()
            interrupt.number = number
            raise interrupt

    for number in SIGNALS:
        signal.signal(number, stop)


def ignore_signals() -> None:
    """At the very end, when what a command does is done, and Python takes seconds to put its modules away."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def tell(sentence: str) -> None:
    """Say how a command ends."""
    print(sentence, file=sys.stderr, flush=True)
