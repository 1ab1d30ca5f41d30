"""The one exception that users meet: a sentence with what was got, expected, and what to do."""


class UserError(ValueError):
    """Bad input. `experiments` prints the sentence and exits with code 2, without a traceback."""
