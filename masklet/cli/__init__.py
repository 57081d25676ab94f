"""The command line: `masklet segment`, `masklet price`, `masklet models`."""

import sys

from rich.console import Console

from masklet.cli.app import app
from masklet.errors import UserError


def main() -> None:
    """Entry point of the `masklet` command; a UserError is one line on stderr and exit code 2."""
    try:
        app()
    except UserError as error:
        Console(stderr=True, soft_wrap=True).print(f"masklet: {error}", style="red", markup=False)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
