"""Two network namespaces joined by a cable: one for the service, one for those who attack it from outside."""

from __future__ import annotations

import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

SERVICE_ADDRESS = "10.213.0.1"
ATTACKER_ADDRESS = "10.213.0.2"


@dataclass(frozen=True)
class Namespace:
    """A network namespace; an empty name is the one that this process is in.

    `interface` is its end of the cable, if it has one.
    """

    name: str
    address: str
    interface: str = ""

    def command(self, *command: str) -> list[str]:
        """Return the command line that runs `command` inside this namespace."""
        return ["ip", "netns", "exec", self.name, *command] if self.name else list(command)


def can_make_namespaces() -> bool:
    """Check that this process may make network namespaces: it needs root and `ip`."""
    if shutil.which("ip") is None:
        return False
    name = f"longcat-{uuid.uuid4().hex[:8]}"
    made = subprocess.run(["ip", "netns", "add", name], check=False, capture_output=True).returncode == 0
    if made:
        _run("ip", "netns", "delete", name)
    return made


def add_cable(first: str, second: str) -> None:
    """Make two devices, of which each receives what is sent by the other."""
    _run("ip", "link", "add", first, "type", "veth", "peer", "name", second)


@contextmanager
def joined_namespaces(
    add_devices: Callable[[str, str], None] = add_cable,
) -> Iterator[tuple[Namespace, Namespace]]:
    """Yield the service's and the attacker's namespace; remove both at the end.

    `add_devices` makes the ends of the cable, given their names.
    """
    tag = uuid.uuid4().hex[:6]
    cable = f"lcs{tag}", f"lca{tag}"
    service = Namespace(f"longcat-s-{tag}", SERVICE_ADDRESS, cable[0])
    attacker = Namespace(f"longcat-a-{tag}", ATTACKER_ADDRESS, cable[1])
    with ExitStack() as cleanup:
        for namespace in (service, attacker):
            _run("ip", "netns", "add", namespace.name)
            cleanup.callback(_run, "ip", "netns", "delete", namespace.name)
        add_devices(*cable)
        for namespace, end in zip((service, attacker), cable, strict=True):
            _run("ip", "link", "set", end, "netns", namespace.name)
            _run(*namespace.command("ip", "address", "add", f"{namespace.address}/24", "dev", end))
            _run(*namespace.command("ip", "link", "set", end, "up"))
            _run(*namespace.command("ip", "link", "set", "lo", "up"))
        yield service, attacker


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
