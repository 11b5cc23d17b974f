"""The one error a user can cause."""


class RequestError(Exception):
    """The request cannot be satisfied; the command line prints the message as one line and exits with 2.

    The message says what is wrong, the offending value, and the remedy. Anything else that escapes is a
    defect of owl-compress (exit 1).
    """
