"""The error that command lines show as one line."""


class UsageError(ValueError):
    """A mistake of the user in an argument, a config, a file or the layout of the data.

    Args:
        message: text for the user that names the mistake and how to fix it.
        argument: Python name of the wrong argument, such as ``"out_item"``. The text of the error
            begins with it, and a command line shows it as the flag ``--out-item``.
    """

    def __init__(self, message: str, argument: str | None = None) -> None:
        super().__init__(f"{argument}: {message}" if argument else message)
        self.message = message
        self.argument = argument
