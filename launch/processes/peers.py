"""Detects lost nodes of a job, by a connection from each node to the first.

torchrun notices a lost node only after its ranks failed, and a rank that waits for a node without
power waits until a time-out of many minutes. Here every node sends a byte a second to the first
one, which answers; a connection that is closed, or silent for LOST_SECONDS, is a lost node.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time

LOST_SECONDS = 15.0
"""More than TCP's 12.6 s of silence after a cut of 8 s: it sends again after 6.2 s and 12.6 s."""
_BEAT_SECONDS = 1.0
_HELLO, _BYE = b"boxless1", b"bye!"


class Peers:
    """Watches the other nodes of a job from one of its nodes.

    ``lost`` counts the connections that were lost so far: the first node counts those to all
    others, each of the others counts its own.
    """

    def __init__(self, address: str, port: int, *, is_first: bool) -> None:
        self.lost = 0
        self._address, self._port = address, port
        self._closed = threading.Event()
        self._counting = threading.Lock()
        self._connections: list[socket.socket] = []
        target = self._serve if is_first else self._visit
        threading.Thread(target=target, name="peers", daemon=True).start()

    def close(self) -> None:
        """Stop watching, and say so to the others: this node is not lost."""
        self._closed.set()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.sendall(_BYE)

    def _serve(self) -> None:
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                server.bind(("", self._port))
            except OSError:
                return  # lost nodes are then found by their ranks' time-outs
            server.listen()
            server.settimeout(_BEAT_SECONDS)
            while not self._closed.is_set():
                with contextlib.suppress(TimeoutError):
                    connection, _ = server.accept()
                    threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _visit(self) -> None:
        while not self._closed.is_set():
            with contextlib.suppress(OSError):
                self._talk(socket.create_connection((self._address, self._port), LOST_SECONDS))
            self._closed.wait(_BEAT_SECONDS)

    def _talk(self, connection: socket.socket) -> None:
        """Send and receive until the other side is lost."""
        with connection:
            connection.settimeout(_BEAT_SECONDS)
            self._connections.append(connection)
            is_greeted, heard = False, time.monotonic()
            while not self._closed.is_set():
                try:
                    connection.sendall(b"." if is_greeted else _HELLO)
                    received = connection.recv(64)
                    if not received or not (is_greeted or received.startswith(_HELLO)):
                        break
                    if received.endswith(_BYE):
                        return
                    is_greeted, heard = True, time.monotonic()
                    self._closed.wait(_BEAT_SECONDS)
                except TimeoutError:
                    if time.monotonic() - heard > LOST_SECONDS:
                        break
                except OSError:
                    break
            else:
                return
            if is_greeted:
                with self._counting:  # several connections may be lost at once
                    self.lost += 1
