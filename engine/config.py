"""Dataclasses of options -> command-line flags (by tyro), and the one way an entry is run."""

import os
import sys
import traceback
from collections.abc import Callable
from typing import Literal, TypeVar

Options = TypeVar("Options")
Auto = Literal["auto"]  # the value is taken from the checkpoint, the data or the machine


def parse(options: type[Options], argv: list[str] | None = None, description: str | None = None) -> Options:
    """Flags -> options. Nested dataclasses become flat flags; `--x-y` and `--x_y` are the same; booleans pair --x and
    --no-x."""
    import tyro

    return tyro.cli(options, args=argv, description=description, config=(tyro.conf.OmitArgPrefixes,))


def leave_for_good(code: int) -> None:
    """End one process of many that has done its work, or has said why it cannot.

    A thread of gloo's that the interpreter's end does not find finished aborts the process: a run that has saved
    everything would be called failed, and a launcher would start it again; a user's mistake would look like a crash.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(main: Callable[[Options], None], options: type[Options]) -> None:
    """What every entry calls: parse the command line, run, and turn a user's mistake into one plain sentence.

    A ValueError, OSError or FloatingPointError ends the command with `error: ...` and exit code 2; LLAMAGEN_TRACEBACK=1
    shows the whole trace instead. SystemExit (a training run that was told to stop) keeps its code, and everything
    unforeseen passes through.
    """
    parsed = parse(options, description=sys.modules["__main__"].__doc__)
    try:
        main(parsed)
        leave_for_good(0)
    except SystemExit as end:
        leave_for_good(int(end.code or 0))
        raise
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("LLAMAGEN_TRACEBACK"):
            raise
        where = traceback.extract_tb(error.__traceback__)[-1]
        message = str(error)
        if message.startswith("Caught "):  # from a DataLoader's worker: its trace comes first, what it says comes last
            message = message.strip().splitlines()[-1].partition(": ")[2]
        print(f"error: {message}", file=sys.stderr)
        print(f"  (from {where.filename}:{where.lineno}; LLAMAGEN_TRACEBACK=1 shows the whole trace)", file=sys.stderr)
        leave_for_good(2)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
