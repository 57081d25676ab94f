"""The one exception whose message is meant for the person who runs masklet."""


class UserError(Exception):
    """Something in the input is wrong: one line that says what, where, and what to do.

    The command line prints it on stderr and exits with code 2; a Prefect run fails with it as
    its message. Everything else that is raised is a defect of masklet.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
