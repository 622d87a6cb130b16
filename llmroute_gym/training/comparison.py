"""What a clone is compared with."""

import logging
from dataclasses import replace

from llmroute_gym.config import EvaluationConfig
from llmroute_gym.demos.file import Demos
from llmroute_gym.ground.rules import rule_title

log = logging.getLogger(__name__)


def comparison(config: EvaluationConfig, demos: Demos) -> EvaluationConfig:
    """Returns the comparison with the routers and the baseline that the settings leave open.

    The routers are those that are imitated, in the order of the demonstrations. The baseline is
    round robin where it is among the routers, else the first of them that is imitated.
    """
    imitated = list(dict.fromkeys(demos.router.tolist()))
    routers = config.routers or imitated
    others = (name for name in routers if name in imitated)
    usual = "round_robin" if "round_robin" in routers else next(others, routers[0])
    baseline = config.baseline or rule_title(usual)
    log.info("compared with %s; the baseline is %s", ", ".join(routers), baseline)
    return replace(config, routers=routers, baseline=baseline)
