"""The one kind of error that the user can mend."""


class InputError(ValueError):
    """The user gave something that cannot work; the message is one line that says what to do."""
