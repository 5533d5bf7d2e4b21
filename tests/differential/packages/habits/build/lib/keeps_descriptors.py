"""Descriptors made when it is imported: a pair of sockets, a file, an epoll."""

import os
import select
import socket
import tempfile

LEFT, RIGHT = socket.socketpair()
RIGHT.settimeout(5)
FILE = tempfile.TemporaryFile()
EPOLL = select.epoll()
EPOLL.register(RIGHT, select.EPOLLIN)


def through_sockets(text: str) -> str:
    LEFT.sendall(text.encode())
    ready = EPOLL.poll(5)
    assert [fd for fd, _ in ready] == [RIGHT.fileno()], ready
    return RIGHT.recv(1000).decode()


def through_file(text: str) -> str:
    FILE.write(text.encode())
    FILE.flush()
    return os.pread(FILE.fileno(), 1000, 0).decode()
