"""Settings of what speaks HTTP: how much it takes from a client, and how long it waits."""

from dataclasses import dataclass
from typing import ClassVar

from llmroute_gym.config.settings import Settings, number


@dataclass
class HttpLimits(Settings):
    """How much a server takes; what is beyond is answered with the status that says so."""

    group: ClassVar[str] = "limits"

    head_bytes: int = number(16_384, at_least=256)
    """Of a request's head: its line and its headers; 431 beyond."""
    target_bytes: int = number(8_192, at_least=64)
    """Of a request's line; 414 beyond."""
    headers: int = number(100, at_least=8)
    """Of one request; 431 beyond."""
    body_bytes: int = number(8_388_608, at_least=1)
    """Of one request; 413 beyond."""
    bodies_bytes: int = number(1_073_741_824, at_least=1)
    """Of all requests that are held at a time; 503 beyond."""
    connections: int = number(4_096, at_least=1)
    """Open at a time; 503 beyond."""
    unsent_bytes: int = number(262_144, at_least=4_096)
    """Of one answer that its client has not taken yet; its source is paused beyond."""


@dataclass
class HttpTimeouts(Settings):
    """How long a server waits for a client, in seconds."""

    group: ClassVar[str] = "timeouts"

    head_s: float = number(10.0, above=0)
    """For a request's head, from its first byte, or from the connection's start; then 408."""
    body_s: float = number(30.0, above=0)
    """For a request's body, from its head; then 408."""
    idle_s: float = number(75.0, above=0)
    """For a next request; then the connection is closed."""
    send_s: float = number(60.0, above=0)
    """For a client that takes nothing of its answer; then the connection is cut."""
