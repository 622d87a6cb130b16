"""What a user should know at once: the commands send it to standard error, a library logs it."""

import logging

notices = logging.getLogger("llmroute_gym.notices")
"""At level INFO, so that nothing is shown unless logging is set up."""
