"""Runs a command in a terminal of 80x24 and presses a key once a text is on the screen; closes the
terminal instead when KEYS is HANGUP, or kills the command's children of that name when it is KILL NAME.

usage: terminal.py KEYS TEXT COMMAND...
Writes everything that came out; the last line is JSON: exit code, and whether the terminal's
settings are as before.
"""
import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time


def kill_children(name):
    for pid in (int(entry) for entry in os.listdir("/proc") if entry.isdigit()):
        try:
            with open(f"/proc/{pid}/stat", "rb") as stat, open(f"/proc/{pid}/cmdline", "rb") as command_line:
                parent = int(stat.read().rpartition(b")")[2].split()[1])
                if parent == child.pid and name in command_line.read().split(b"\0"):
                    os.kill(pid, signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            continue  # gone meanwhile


keys, text, command = sys.argv[1].encode(), sys.argv[2].encode(), sys.argv[3:]
master, slave = pty.openpty()
fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
before = termios.tcgetattr(slave)
child = subprocess.Popen(
    command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
    preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
)
seen, pressed, deadline = b"", False, time.monotonic() + float(os.environ["WITHIN_S"])
while child.poll() is None and time.monotonic() < deadline:
    if select.select([master], [], [], 0.05)[0]:
        seen += os.read(master, 65536)
    if not pressed and text in seen:
        pressed = True
        if keys == b"HANGUP":
            os.close(slave)
            os.close(master)
            break
        if keys.startswith(b"KILL "):
            kill_children(keys.removeprefix(b"KILL "))
        else:
            os.write(master, keys)
while child.poll() is None and time.monotonic() < deadline:
    time.sleep(0.05)
if child.poll() is None:
    child.kill()
restored = None
if keys != b"HANGUP":
    while select.select([master], [], [], 0.05)[0]:
        seen += os.read(master, 65536)
    restored = termios.tcgetattr(slave) == before
sys.stdout.buffer.write(seen)
print("\n" + json.dumps({"code": child.wait(), "restored": restored}))
