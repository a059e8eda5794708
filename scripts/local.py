"""Runs one vlx command as N processes of this machine, which find each other over loopback.

  python scripts/local.py 2 -m vlx.train --config=configs/clip.py:smoke --workdir=runs/two

What the processes print is marked with their number. When one ends badly, it is named and the
others are ended. SIGTERM and ctrl-C reach them all.
"""

import argparse
import signal
import socket
import subprocess
import sys
import threading
import time

GRACE_S = 10  # between asking the others to end and killing them


def free_port() -> int:
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


def relay(number: int, stream) -> None:
  for line in stream:
    sys.stdout.write(f"[{number}] {line}")
    sys.stdout.flush()


def main() -> int:
  parser = argparse.ArgumentParser(usage="local.py N -m vlx.train FLAGS…")
  parser.add_argument("processes", type=int)
  parser.add_argument("command", nargs=argparse.REMAINDER)
  arguments = parser.parse_args()
  address = f"127.0.0.1:{free_port()}"
  processes = [
    subprocess.Popen(
      [
        sys.executable,
        *arguments.command,
        f"--coordinator={address}",
        f"--num_processes={arguments.processes}",
        f"--process_id={i}",
      ],
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      errors="replace",
    )
    for i in range(arguments.processes)
  ]
  relays = [threading.Thread(target=relay, args=(i, p.stdout)) for i, p in enumerate(processes)]
  for thread in relays:
    thread.start()
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda got, _: [p.send_signal(got) for p in processes])
  code = wait(processes)
  for thread in relays:
    thread.join()
  return code


def wait(processes: list[subprocess.Popen]) -> int:
  """The exit code of the first that ended badly, 0 where none did."""
  while True:
    codes = [p.poll() for p in processes]
    if all(code == 0 for code in codes):
      return 0
    for i, code in enumerate(codes):
      if code:
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        print(f"process {i} of {len(processes)} ended {how}; ending the others", flush=True)
        end(processes)
        return code if code > 0 else 128 - code
    time.sleep(0.1)


def end(processes: list[subprocess.Popen]) -> None:
  for p in processes:
    p.terminate()
  deadline = time.monotonic() + GRACE_S
  for p in processes:
    try:
      p.wait(max(0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
      p.kill()


if __name__ == "__main__":
  sys.exit(main())
