"""vlx COMMAND --FLAG=VALUE …: the same as python -m vlx.COMMAND --FLAG=VALUE …"""

import runpy
import sys

COMMANDS = ("train", "evaluate", "generate", "convert", "compile", "ablate")


def main():
  name = sys.argv[1] if len(sys.argv) > 1 else ""
  if name not in COMMANDS:
    print(f"error: vlx COMMAND, one of {', '.join(COMMANDS)}; vlx COMMAND --help", file=sys.stderr)
    sys.exit(2)
  sys.argv[:2] = [f"vlx {name}"]
  runpy.run_module(f"vlx.{name}", run_name="__main__")


if __name__ == "__main__":
  main()
