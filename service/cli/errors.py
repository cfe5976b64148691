"""What can be wrong with a command."""


class CommandError(Exception):
    """Something that the user can mend; one sentence says what."""
