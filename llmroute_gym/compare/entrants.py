"""What is compared: the rules that the settings name, beside a policy."""

from llmroute_gym.config import (
    EvaluationConfig,
    check_distinct,
)
from llmroute_gym.errors import InputError, unknown_name
from llmroute_gym.ground.rules import rule_title
from llmroute_gym.routers import Router, make

POLICY = "policy"


def rule_routers(config: EvaluationConfig, *, with_policy: bool) -> dict[str, Router]:
    """Makes the routers that the settings name, each under its title.

    Args:
        config: the names, and that of the baseline.
        with_policy: whether a policy will be compared too.

    Raises:
        InputError: a name is unknown, none is given, or the baseline is not among them.
    """
    policies = [POLICY] if with_policy else []
    check_distinct("routers", [*policies, *map(rule_title, config.routers)])
    routers = {rule_title(rule): make(rule) for rule in config.routers}
    if not routers and not with_policy:
        raise InputError("routers is empty; name at least one, such as routers=[round_robin,lor]")
    compared = [*routers, *policies]
    if config.baseline is not None and config.baseline not in compared:
        raise unknown_name("baseline", config.baseline, compared)
    return routers
