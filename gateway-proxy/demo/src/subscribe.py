"""Prints Discord's events as they come: a plain NATS subscriber, with nothing but Python.

usage: subscribe.py [host:port] [subject]
"""
import json
import socket
import sys

host, port = (sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:4222").rsplit(":", 1)
subject = sys.argv[2] if len(sys.argv) > 2 else "discord.shard.*.events"
nats = socket.create_connection((host, int(port))).makefile("rwb")
nats.readline()  # INFO
nats.write(b'CONNECT {"verbose":false,"headers":true,"name":"subscribe.py"}\r\n')
nats.write(b"SUB " + subject.encode() + b" 1\r\n")
nats.flush()
try:
    for line in nats:
        verb, *fields = line.split()
        if verb == b"PING":
            nats.write(b"PONG\r\n")
            nats.flush()
        elif verb == b"-ERR":
            sys.exit(line.decode().strip())
        elif verb in (b"MSG", b"HMSG"):
            message = nats.read(int(fields[-1]) + 2)
            headers = int(fields[-2]) if verb == b"HMSG" else 0
            event = json.loads(message[headers:])
            print(fields[0].decode(), event["s"], event["t"], len(message) - headers - 2, "bytes", flush=True)
except (KeyboardInterrupt, BrokenPipeError):
    pass
