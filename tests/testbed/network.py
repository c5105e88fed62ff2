"""The addresses of one cluster, and the link that joins its node to this machine.

The node lives in a network namespace of its own. A pair of virtual interfaces joins it to the
machine: `host` is this machine's end, which pods reach, and `node` the other. Whoever creates the
link owns its number, so two clusters never share an address; the kernel removes both ends, the
routes over them and everything inside the namespace when the namespace ends.
"""

from __future__ import annotations

import ipaddress
import json
import subprocess
from dataclasses import dataclass

from tests.testbed.packages import program

# The second byte of 10.x.0.0/16 for the first cluster, and how many there may be at once.
_FIRST, _COUNT = 200, 50


@dataclass(frozen=True)
class Network:
    """10.x.0.0/24 joins host and node, 10.x.64.0/18 are Services, 10.x.128.0/17 pods."""

    number: int

    @property
    def link(self) -> str:
        return f"kubequant{self.number}"

    @property
    def peer(self) -> str:
        return f"kubequant{self.number}n"

    @property
    def prefix(self) -> str:
        return f"10.{_FIRST + self.number}"

    @property
    def host(self) -> str:
        return f"{self.prefix}.0.1"

    @property
    def node(self) -> str:
        return f"{self.prefix}.0.2"

    @property
    def services(self) -> str:
        return f"{self.prefix}.64.0/18"

    @property
    def first_service(self) -> str:
        """The address of the Service `kubernetes`."""
        return f"{self.prefix}.64.1"

    @property
    def pods(self) -> str:
        return f"{self.prefix}.128.0/17"

    @property
    def first_pod(self) -> str:
        """The address of the bridge between the pods."""
        return f"{self.prefix}.128.1"

    def join_node(self, process: int) -> None:
        """Move the node's end into the namespace of `process`; route pods and Services there."""
        _ip("link", "set", self.peer, "netns", str(process))
        inside = [program("nsenter") or "nsenter", "--target", str(process), "--net"]
        for words in (
            ["link", "set", "lo", "up"],
            ["address", "add", f"{self.node}/24", "dev", self.peer],
            ["link", "set", self.peer, "up"],
            ["route", "add", "default", "via", self.host],
        ):
            _run([*inside, program("ip") or "ip", *words])
        for subnet in (self.services, self.pods):
            _ip("route", "add", subnet, "via", self.node, "dev", self.link)

    def remove(self) -> None:
        """Remove the link if it is still there."""
        if any(link["ifname"] == self.link for link in _ip_json("link")):
            _ip("link", "delete", self.link)


def reserve() -> Network:
    """Create the link of the first number whose addresses nothing on this machine uses."""
    taken = [
        ipaddress.ip_network(route["dst"], strict=False)
        for route in _ip_json("route")
        if route["dst"] != "default"
    ]
    for number in range(_COUNT):
        network = Network(number)
        mine = ipaddress.ip_network(f"{network.prefix}.0.0/16")
        if any(mine.overlaps(other) for other in taken):
            continue
        if _created(network):
            _ip("address", "add", f"{network.host}/24", "dev", network.link)
            _ip("link", "set", network.link, "up")
            return network
    raise RuntimeError(
        f"no network of 10.{_FIRST}.0.0/16 to 10.{_FIRST + _COUNT - 1}.0.0/16 is free"
    )


def _created(network: Network) -> bool:
    """Whether this call made the link: another run may have been quicker."""
    words = ["link", "add", network.link, "type", "veth", "peer", "name", network.peer]
    done = subprocess.run(
        [program("ip") or "ip", *words], capture_output=True, text=True, check=False
    )
    if done.returncode and "File exists" not in done.stderr:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.returncode == 0


def _ip_json(subject: str) -> list[dict[str, str]]:
    done = _run([program("ip") or "ip", "-json", "-4", subject, "show"])
    found: list[dict[str, str]] = json.loads(done or "[]")
    return found


def _ip(*words: str) -> None:
    _run([program("ip") or "ip", *words])


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
