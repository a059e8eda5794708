"""The one exception that means "the user can mend this"."""

_BEGINS, _ENDS = 3000, 1000  # characters that are kept of a longer message


class UserError(Exception):
  """A mistake of the user, told in one line that says what to do.

  Commands print it without a traceback and exit with code 2 (`vlx.cli.run`). It may name what lies in
  somebody's file: of a huge line the middle is left out.
  """

  def __init__(self, message: object):
    super().__init__("\n".join(map(_bounded, str(message).split("\n"))))


def _bounded(line: str) -> str:
  if (left_out := len(line) - _BEGINS - _ENDS) <= 0:
    return line
  return f"{line[:_BEGINS]} … ({left_out} characters) … {line[-_ENDS:]}"
