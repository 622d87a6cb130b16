"""Settings of the gateway: where it listens, what stands behind it, what it does about faults."""

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self
from urllib.parse import urlsplit

from llmroute_gym.config.commands import LARGEST_SEED
from llmroute_gym.config.serving import HttpLimits, HttpTimeouts
from llmroute_gym.config.settings import Settings, check_distinct, choice, number, refuse_unread
from llmroute_gym.config.simulation import ClusterConfig, ObservationConfig
from llmroute_gym.errors import InputError, shown
from llmroute_gym.ground.rules import rule_text

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
HEADER = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass
class BackendConfig(Settings):
    """One engine."""

    group: ClassVar[str] = "backends[]"

    name: str = ""
    """How metrics, logs and the admin port call it."""
    url: str = ""
    """``http://HOST:PORT``, with a path in front of ``/v1`` perhaps."""
    speed: float = number(1.0, above=0)
    """How fast it is, as a multiple of the others'; read by the router only."""
    key_env: str | None = None
    """The environment variable that holds the key it wants, in place of the client's."""

    def validate(self, group: str | None = None) -> Self:
        """Returns itself when name and address can be used."""
        group = group or self.group
        super().validate(group)
        if not NAME.fullmatch(self.name):
            raise InputError(
                f"{group}.name must be letters, digits, '.', '_' and '-', got {shown(self.name)}"
            )
        self.address(group)
        _check_variable(f"{group}.key_env", self.key_env)
        return self

    def address(self, group: str = "backends[]") -> tuple[str, int, str]:
        """Returns host, port, and the path in front of ``/v1``.

        Args:
            group: how an error calls the backend.

        Raises:
            InputError: the URL is no such address.
        """
        wanted = f"{group}.url must be http://HOST:PORT, got {shown(self.url)}"
        try:
            parts = urlsplit(self.url)
            port = parts.port or 80
        except ValueError:
            raise InputError(wanted) from None
        if parts.scheme == "https":
            raise InputError(f"{wanted}; for TLS put a proxy beside the engine")
        if parts.scheme != "http" or not parts.hostname or not _is_plain(self.url):
            raise InputError(wanted)
        if parts.username is not None or parts.query or parts.fragment:
            raise InputError(f"{wanted}; it has no user, query or fragment")
        path = parts.path.rstrip("/")
        if path.endswith("/v1"):
            raise InputError(f"{wanted}; leave /v1 out, it is added")
        return parts.hostname, port, path


def _is_plain(url: str) -> bool:
    return all(33 <= ord(letter) < 127 for letter in url)


@dataclass
class PolicyConfig(Settings):
    """Who decides where a request goes."""

    group: ClassVar[str] = "policy"

    mode: str = choice("rule", "rule", "learned", "shadow")
    """``rule``: the rule decides; ``learned``: the policy does; ``shadow``: the rule does, and what
    the policy would have done is counted."""
    rule: Any = "lor"
    """A rule by name, with options, or the path of a YAML file that holds one; not asked in mode
    ``learned``, where it may stand so that the mode alone is changed."""
    policy: Any | None = None
    """An exported policy, the path of its ``.npz`` file; or a rule, to try it out."""
    slowest_ms: float = number(5.0, above=0)
    """A decision that takes longer is taken by the fewest in flight instead, and counted."""
    approximate: bool = False
    """Whether one that was made for what engines do not publish is served by own counts."""
    seed: int = number(0, at_least=0, at_most=LARGEST_SEED)
    """Of the random numbers that rules draw."""

    def __post_init__(self) -> None:
        """Words the rules as settings do."""
        self.rule = rule_text(self.rule)
        self.policy = None if self.policy is None else rule_text(self.policy)

    def validate(self, group: str | None = None) -> Self:
        """Returns itself when the mode has whom it needs."""
        super().validate(group)
        if self.mode != "rule" and self.policy is None:
            raise InputError(
                f"policy.policy is missing: policy.mode={self.mode} needs an exported policy; name "
                "its .npz file, or choose policy.mode=rule"
            )
        if self.mode == "rule":
            refuse_unread(self, "policy", ["policy"], "mode=rule", "policy.mode=learned or shadow")
        return self


@dataclass
class GatewayLimits(HttpLimits):
    """How much the gateway takes."""

    in_flight: int = number(2_048, at_least=1)
    """Requests at a time; 503 beyond, as there is no queue."""
    in_flight_per_backend: int = number(2_048, at_least=1)
    """Requests at a time that one backend gets."""
    parsed_bytes: int = number(1_048_576, at_least=0)
    """Larger bodies are passed on unread; their prompts count by their size."""


@dataclass
class GatewayTimeouts(HttpTimeouts):
    """How long the gateway waits, in seconds."""

    connect_s: float = number(1.0, above=0)
    """For a backend to accept a connection."""
    first_byte_s: float = number(120.0, above=0)
    """For the first byte of a backend's answer; then 504."""
    between_s: float = number(60.0, above=0)
    """Between two pieces of it; then it is cut."""
    whole_s: float = number(600.0, above=0)
    """For the whole of it; then it is cut."""
    upstream_idle_s: float = number(3.0, above=0)
    """How long an idle connection to a backend is kept; engines close theirs after five."""
    grace_s: float = number(0.0, at_least=0)
    """From SIGTERM or SIGINT on, how long requests are still taken while ``/ready`` says no, so
    that load balancers notice; a second signal ends it."""
    drain_s: float = number(30.0, at_least=0)
    """For the answers under way when the gateway is told to end; then they are cut."""


@dataclass
class HealthConfig(Settings):
    """How backends are watched."""

    group: ClassVar[str] = "health"

    path: str = "/health"
    interval_s: float = number(1.0, above=0)
    timeout_s: float = number(1.0, above=0)
    down_after: int = number(2, at_least=1)
    """Failed probes in a row; a connection that is refused or reset is enough by itself."""
    up_after: int = number(1, at_least=1)
    """Good probes in a row; then one request at a time until one is answered."""

    def validate(self, group: str | None = None) -> Self:
        """Returns itself when every value is in its range."""
        super().validate(group)
        _check_path("health.path", self.path)
        return self


@dataclass
class BreakerConfig(Settings):
    """When a backend is left out that fails requests, whatever it answers to probes."""

    group: ClassVar[str] = "breaker"

    after: int | None = number(5, at_least=1)
    """Failures in a row: a connection refused or broken, 502, 503 (and 500 with `retry_500`), an
    answer that breaks off or is timed out; None leaves none out."""
    first_s: float = number(1.0, above=0)
    """How long it is left out, twice as long each time until it has answered a request in full;
    then the next good probe gets it one request."""
    longest_s: float = number(30.0, above=0)
    """How long at most."""

    def validate(self, group: str | None = None) -> Self:
        """Returns itself when every value is in its range."""
        super().validate(group)
        if self.longest_s < self.first_s:
            raise InputError(
                f"breaker.longest_s must be >= breaker.first_s={self.first_s:g}, got "
                f"{self.longest_s:g}"
            )
        return self


@dataclass
class RetryConfig(Settings):
    """What happens to a request that a backend did not begin to answer."""

    group: ClassVar[str] = "retry"

    others: int = number(2, at_least=0)
    """Most other backends that are tried after a refused or broken connection, 429, 502 or 503."""
    retry_500: bool = False
    """Whether 500 is tried elsewhere too; it may be the request's fault."""


@dataclass
class ScrapeConfig(Settings):
    """Whether the engines' metrics are read, for ``information: metrics``."""

    group: ClassVar[str] = "scrape"

    interval_s: float | None = number(None, at_least=0.25)
    """Seconds between two readings; None reads none."""
    path: str = "/metrics"

    def validate(self, group: str | None = None) -> Self:
        """Returns itself when every value is in its range."""
        super().validate(group)
        _check_path("scrape.path", self.path)
        return self


@dataclass
class ServeConfig(Settings):
    """All settings of ``python -m llmroute_gym.serve``."""

    listen: str = "127.0.0.1:8080"
    admin: str | None = "127.0.0.1:8081"
    """Where ``/metrics`` and ``/backends`` are; None opens no such port."""
    allow_public: bool = False
    """Whether both may be other addresses than this machine's own."""
    backends: list[BackendConfig] = field(default_factory=list)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    observation: ObservationConfig = field(
        default_factory=lambda: ObservationConfig(information="router", prefix_view="tree")
    )
    """What rules are told; an exported policy brings its own."""
    cluster: ClusterConfig | None = None
    """What the backends are like, in their order, for a rule that has to know."""
    limits: GatewayLimits = field(default_factory=GatewayLimits)
    timeouts: GatewayTimeouts = field(default_factory=GatewayTimeouts)
    health: HealthConfig = field(default_factory=HealthConfig)
    breaker: BreakerConfig = field(default_factory=BreakerConfig)
    retry: RetryConfig = field(default_factory=RetryConfig)
    scrape: ScrapeConfig = field(default_factory=ScrapeConfig)
    log: str | None = None
    """File that gets a line per request, never a word of it; `load_trace` reads it."""
    key_env: str | None = None
    """The environment variable that holds the key which clients must show."""
    session_header: str | None = None
    """The header that names a client's conversation, for rules that keep it together."""
    show_backend: bool = False
    """Whether answers say which backend they are from, in ``x-llmroute-backend``."""

    def validate(self, group: str | None = None) -> Self:
        """Returns itself when every value is in its range and all of them fit together."""
        super().validate(group)
        for key in ("listen", "admin"):
            if getattr(self, key) is not None:
                host, _ = address(key, getattr(self, key))
                if host not in LOOPBACK and not self.allow_public:
                    raise InputError(
                        f"{key}={getattr(self, key)} can be reached from other machines; set "
                        "allow_public=true if it shall"
                    )
        if self.admin == self.listen and address("listen", self.listen)[1]:
            raise InputError(f"listen and admin are both {self.listen}; give admin another port")
        if not self.backends:
            raise InputError("backends is empty; name at least one, with its name and url")
        for index, backend in enumerate(self.backends):
            if not isinstance(backend, BackendConfig):
                raise InputError(f"backends[{index}] must be a BackendConfig, got {shown(backend)}")
            backend.validate(f"backends[{index}]")
        check_distinct("backends", [one.name for one in self.backends], "backend")
        check_distinct("backends", [one.url.rstrip("/") for one in self.backends], "url")
        _check_variable("key_env", self.key_env)
        if self.session_header is not None and not HEADER.fullmatch(self.session_header):
            raise InputError(
                f"session_header must be the name of a header, got {shown(self.session_header)}"
            )
        self._check_observation()
        return self

    def _check_observation(self) -> None:
        told = self.observation
        if told.information in ("engine", "oracle"):
            raise InputError(
                f"observation.information={told.information} is more than any gateway can know; "
                "choose router, or metrics with scrape.interval_s"
            )
        if told.information == "metrics" and self.scrape.interval_s is None:
            raise InputError(
                "observation.information=metrics needs the engines' metrics; set "
                "scrape.interval_s=1, or choose observation.information=router"
            )
        if told.prefix_view != "tree":
            raise InputError(
                f"observation.prefix_view={told.prefix_view} needs events of the engines, which "
                "are not read; choose tree"
            )
        names = ["signal_interval_s", "predicted_output_sigma", "events_lag_s", "gateways"]
        refuse_unread(told, "observation", names, f"information={told.information} of a gateway")


def address(key: str, text: str) -> tuple[str, int]:
    """Returns host and port of ``HOST:PORT``.

    Args:
        key: how an error calls it.
        text: what was given; an IPv6 address stands in brackets.

    Raises:
        InputError: it is no such text.
    """
    host, colon, port = str(text).rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    bare = ":" in host and not str(text).startswith("[")
    digits = port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) <= 65535
    if not colon or not host or bare or not digits or not _is_plain(host):
        raise InputError(f"{key} must be HOST:PORT, such as 127.0.0.1:8080, got {shown(text)}")
    return host, int(port)


def _check_variable(key: str, value: str | None) -> None:
    if value is not None and not VARIABLE.fullmatch(value):
        raise InputError(f"{key} must name an environment variable, got {shown(value)}")


def _check_path(key: str, value: str) -> None:
    if not value.startswith("/") or not _is_plain(value) or "#" in value:
        raise InputError(f"{key} must be a path that begins with /, got {shown(value)}")
