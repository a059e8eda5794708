"""The one exception that means "the user can mend this"."""


class UserError(Exception):
  """A mistake of the user, told in one line that says what to do.

  Commands print it without a traceback and exit with code 2 (`vlx.cli.run`).
  """
