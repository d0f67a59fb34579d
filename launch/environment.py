"""The environment variables of the ranks."""

from __future__ import annotations

import fcntl
import os
import re
import socket
import struct
import time
from collections.abc import Mapping

from launch.job import UserError

HEARTBEAT_FOLDER_VARIABLE = "BOXLESS_HEARTBEAT_FOLDER"
"""Where the ranks of a node say how far they are (launch.processes.heartbeat)."""
PRELOAD_VARIABLE = "BOXLESS_PRELOAD"
"""Modules, with spaces between, that are imported before ranks are forked (launch.preloading)."""
_SIOCGIFADDR = 0x8915  # linux/sockios.h
# Variables that a launcher sets for its ranks. Left over from another launcher, a pod or a shell,
# it would be believed by ours: torchrun reads PET_* as its own options.
_OF_LAUNCHERS = re.compile(
    r"PET_.*|TORCHELASTIC_.*|OMPI_COMM_WORLD_.*|PMI_.*|PMIX_.*|GROUP_(RANK|WORLD_SIZE)"
    r"|ROLE_(RANK|NAME|WORLD_SIZE)|(LOCAL_|CROSS_)?(RANK|SIZE|WORLD_SIZE)|MASTER_(ADDR|PORT)"
    r"|NODE_RANK|BOXLESS_(LOG_FOLDER|HEARTBEAT_FOLDER|START)"
)


def variables_of_other_launchers(environment: Mapping[str, str]) -> list[str]:
    """The names in ``environment`` of variables by which a launcher numbers its ranks."""
    return sorted(name for name in environment if _OF_LAUNCHERS.fullmatch(name))


def launch_environment(given: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without what other launchers left, and ``given`` laid over it."""
    left = set(variables_of_other_launchers(os.environ))
    return {name: value for name, value in os.environ.items() if name not in left} | dict(given)


def interface_variables(address: str) -> dict[str, str]:
    """GLOO_SOCKET_IFNAME where gloo would not find the right interface by itself.

    gloo listens on the address that the machine's own name resolves to. Where that is no address
    or a loopback one, it is given the interface that has ``address``.
    """
    if "GLOO_SOCKET_IFNAME" in os.environ:
        return {}
    try:
        own = socket.gethostbyname(socket.gethostname())
    except OSError:
        own = None
    if own is not None and own.startswith("127.") == address.startswith("127."):
        return {}
    name = "lo" if address.startswith("127.") else _interface_of(address)
    return {"GLOO_SOCKET_IFNAME": name} if name else {}


def address_towards(host: str) -> str:
    """This machine's address on the route to ``host``; loopback where there is no route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))  # UDP: no packet is sent
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def free_port() -> int:
    """A port of this machine that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def check_port(port: int, *, wait_seconds: float) -> None:
    """UserError where another program of this machine listens on ``port``, at which ranks of
    several nodes are to meet, and still does after ``wait_seconds``; an earlier start may be
    ending."""
    deadline = time.monotonic() + wait_seconds
    while (words := _words_against(port)) is not None:
        if time.monotonic() > deadline:
            raise UserError(
                f"port {port} of {socket.gethostname()} cannot be bound ({words}); expected it to be "
                "free, for the nodes to meet there: end what listens on it (`ss -ltnp` names it), "
                "or set launch.master_port to another one on every node."
            )
        time.sleep(0.5)


def _words_against(port: int) -> str | None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            return error.strerror or str(error)
    return None


def _interface_of(address: str) -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
            except OSError:
                continue  # an interface without an IPv4 address
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None
