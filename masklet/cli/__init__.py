"""The command line: `masklet segment` and the commands beside it."""

import os
import signal
import sys


def main() -> None:
    """Entry point of the `masklet` command; a refusal is one line on stderr and exit code 2."""
    try:
        signal.signal(signal.SIGTERM, _leave)
        _run()
    except KeyboardInterrupt:
        sys.exit(130)


def _run() -> None:
    # here, since importing takes long enough for a Ctrl-C
    import typer

    from masklet.cli.app import app
    from masklet.errors import UserError

    try:
        sys.exit(app(sys.argv[1:] or ["--help"], standalone_mode=False))
    except UserError as error:
        _refuse(str(error))
    except typer.TyperException as error:
        # an option that is unknown, missing or no number
        context = getattr(error, "ctx", None)
        hint = f"; see {context.command_path} --help" if context else ""
        _refuse(error.format_message().rstrip(".") + hint)
    except BrokenPipeError:
        # the reader of a pipe has gone; without this, Python complains again at its exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        # a full disk, a folder without permission, a name that is too long
        place = f"{error.filename}: " if error.filename is not None else ""
        _refuse(f"{place}{error.strerror or error}")


def _leave(*_: object) -> None:
    """End as Ctrl-C does, so that nothing half-written is left behind."""
    sys.exit(128 + signal.SIGTERM)


def _refuse(message: str) -> None:
    import typer

    # names of files and fields may hold control characters, which would steer a terminal
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in message)
    typer.secho(f"masklet: {line}", fg="red", err=True)
    sys.exit(2)
