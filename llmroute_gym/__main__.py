"""What can be run: ``python -m llmroute_gym``."""

COMMANDS = {
    "train": "train a router and compare it with rules",
    "evaluate": "compare routers, a trained one among them",
    "collect_demos": "record the decisions of routers",
    "pretrain": "clone recorded decisions into a policy",
    "export": "write a trained policy as it is served, without PyTorch",
    "search": "choose the constants of a rule by what they achieve",
    "calibrate": "make a profile of a gateway's log",
    "mock_engine": "stand in for vLLM servers, without a GPU",
    "suite": "publish what a suite found, or compute it again",
    "serve": "route requests to engines by a policy or a rule",
    "fetch": "download a public trace",
    "sim.fit": "make a profile of measured iteration times",
}

if __name__ == "__main__":
    for name, about in COMMANDS.items():
        print(f"python -m llmroute_gym.{name:<14} {about}")
