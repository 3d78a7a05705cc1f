"""python -m radin, and the command radin."""

import signal

from radin import interrupts
from radin.cli import main


def run() -> None:
    """``main`` as a program, which has nothing to say to a signal while Python shuts down."""
    try:
        main()
    except SystemExit as ended:
        if ended.code in interrupts.CODES:
            interrupts.leave(ended.code)
        raise
    finally:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    run()
