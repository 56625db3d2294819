"""Which network addresses a caller's URL may lead to."""

from __future__ import annotations

import ipaddress
from typing import Final

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Beyond what is private, loopback, link-local, shared (CGNAT), reserved or multicast by registry:
REFUSED: Final = (
    ipaddress.ip_network("168.63.129.16/32"),  # Azure's host agent, a public address reachable from inside only
    ipaddress.ip_network("192.0.0.0/24"),  # protocol assignments; one cloud's metadata service
    ipaddress.ip_network("192.88.99.0/24"),  # 6to4 relays
    ipaddress.ip_network("fec0::/10"),  # site-local, withdrawn but still routed in places
    ipaddress.ip_network("64:ff9b:1::/48"),  # NAT64 for local use
)
NAT64: Final = ipaddress.ip_network("64:ff9b::/96")


def is_address(text: str) -> bool:
    """Whether this is an address rather than a name."""
    try:
        ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return True


def is_public(text: str) -> bool:
    """Whether this is an address of the open internet. An IPv6 address that carries an IPv4 one is judged by both."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return all(_is_public(one) for one in (address, *_carried(address)))


def _is_public(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and (address.ipv4_mapped or address in NAT64):
        return True  # judged by the IPv4 address it is
    return (
        address.is_global
        and not (address.is_multicast or address.is_reserved or address.is_unspecified)
        and not any(address in network for network in REFUSED if network.version == address.version)
    )


def _carried(address: Address) -> tuple[ipaddress.IPv4Address, ...]:
    if isinstance(address, ipaddress.IPv4Address):
        return ()
    found = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in NAT64:
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return tuple(one for one in found if one is not None)
