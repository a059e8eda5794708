"""vlx's commands as a shell runs them, without each importing JAX anew: a process that has imported
it forks for each command.

  python tests/forked.py    reads a JSON list of arguments a line, answers [code, stdout, stderr]
"""

import json
import os
import runpy
import sys
import tempfile
import traceback

# What commands import; none of it touches a device before the fork.
import vlx.ablate.experiment
import vlx.evaluate.measure
import vlx.train.loop  # noqa: F401


def run(module: str, *arguments: str) -> int:
  """The exit code of `python -m module arguments`."""
  sys.argv = [module, *arguments]
  try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0
  except SystemExit as e:
    return e.code if isinstance(e.code, int) else int(e.code is not None)
  except BaseException:
    traceback.print_exc()
    return 1


def main():
  for line in sys.stdin:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
      child = os.fork()
      if not child:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        code = run(*json.loads(line))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
      _, status = os.waitpid(child, 0)
      said = [file.seek(0) or file.read().decode() for file in (out, err)]
      print(json.dumps([os.waitstatus_to_exitcode(status), *said]), flush=True)


if __name__ == "__main__":
  main()
