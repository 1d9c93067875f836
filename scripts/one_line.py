"""What ends any script is one line: Ctrl-C, with exit status 130, and a machine that has too little, with 1.

Each script imports this first, since importing the libraries takes seconds. Some of them catch all errors meanwhile,
and there is nothing to put away: Ctrl-C ends the process at once. Within `main` it is Python's own
`KeyboardInterrupt`, which `main` may catch.
"""

import os
import signal
import sys
from types import FrameType, TracebackType

SAID = "Stopped by Ctrl-C."
EXIT_STATUS = 128 + signal.SIGINT  # as shells have it
_PROCESS = os.getpid()


def _stop(number: int, frame: FrameType | None) -> None:
    is_within_main = os.getpid() != _PROCESS  # workers are forked there
    while frame is not None and not is_within_main:
        is_within_main = frame.f_code.co_name == "main" and frame.f_globals["__name__"] == "__main__"
        frame = frame.f_back
    if is_within_main:
        raise KeyboardInterrupt
    print(SAID, file=sys.stderr, flush=True)
    os._exit(EXIT_STATUS)


def _tell(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print(SAID, file=sys.stderr, flush=True)
        sys.exit(EXIT_STATUS)
    if issubclass(kind, (OSError, MemoryError, RuntimeError)):
        from modeling_ast.training.recipes import error_sentence, remedy

        if remedy(error):
            sys.exit(error_sentence(error))
    sys.__excepthook__(kind, error, traceback)


if os.path.dirname(os.path.abspath(sys.argv[0])) == os.path.dirname(os.path.abspath(__file__)):  # run, not imported
    signal.signal(signal.SIGINT, _stop)
    sys.excepthook = _tell
