"""Renders chat templates, strangers' programs, in a process of its own (`templates` starts it).

A line of JSON comes in for each, {"template": …, "values": …}, and one goes out: {"text": …} or
{"error": …}. Beside the sandbox of Jinja's, what takes too long or too much memory must end, in the
middle of one power or one filter too: no exception could do that, the kernel does. It ends the
process, which is started again.
"""

import datetime
import functools
import json
import resource
import signal
import sys

SECONDS = 2.0  # of the processor; a conversation takes milliseconds
MEMORY = 1 << 30
LONGEST = 1 << 24  # characters: no model reads so many


@functools.lru_cache(16)
def compiled(template: str):
  """A template with the extensions, filters and names that transformers gives it."""
  import jinja2.ext
  import jinja2.sandbox

  class Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what the assistant says, for training; the text is the same."""

    tags = {"generation"}

    def parse(self, parser):
      line = next(parser.stream).lineno
      body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
      return jinja2.nodes.Scope(body).set_lineno(line)

  def refuse(message):
    raise jinja2.TemplateError(message)

  def to_json(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(
      x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )

  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
  )
  environment.filters["tojson"] = to_json
  environment.globals |= dict(
    raise_exception=refuse, strftime_now=lambda form: datetime.datetime.now().strftime(form)
  )
  return environment.from_string(template)


def rendered(asked: dict) -> dict:
  """The answer to a line."""
  signal.setitimer(signal.ITIMER_PROF, SECONDS)  # whose signal ends the process
  try:
    text = compiled(asked["template"]).render(**asked["values"])
    if len(text) > LONGEST:
      return {"error": f"it makes a text of {len(text)} characters"}
    return {"text": text}
  except Exception as e:  # whatever a template may do
    return {"error": f"{type(e).__name__}: {e}"[:500]}
  finally:
    signal.setitimer(signal.ITIMER_PROF, 0)


def main() -> None:
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever waits for the answer is told
  _, most = resource.getrlimit(resource.RLIMIT_AS)
  memory = MEMORY if most == resource.RLIM_INFINITY else min(MEMORY, most)
  resource.setrlimit(resource.RLIMIT_AS, (memory, most))
  for line in sys.stdin:
    print(json.dumps(rendered(json.loads(line))), flush=True)


if __name__ == "__main__":
  main()
