"""Records the decisions of routers: ``python -m llmroute_gym.collect_demos``."""

from pathlib import Path

from llmroute_gym.compare.capacity import warn_of_overload
from llmroute_gym.config import CollectDemosConfig
from llmroute_gym.demos.collection import checked, collected, layout_of
from llmroute_gym.demos.file import DEMOS_FILE, Demos, summary
from llmroute_gym.errors import InputError
from llmroute_gym.ground.files import check_writable
from llmroute_gym.runs.command import run_command
from llmroute_gym.runs.folder import RunFolder


def collect_demos(settings: CollectDemosConfig) -> Path:
    """Collects demonstrations and writes them.

    Returns:
        The Parquet file.

    Raises:
        InputError: a setting is wrong, or the file holds something that is not to be touched.
    """
    path = Path(settings.path or settings.run_dir)
    if settings.path is None or path.is_dir():
        path /= DEMOS_FILE
    held = _held(path, settings)
    cluster, source, plans = checked(settings)
    check_writable(path)
    with RunFolder(settings.run_dir) as folder:
        warn_of_overload(cluster, source, settings.workload.rate_key("qps"), source.qps)
        demos = collected(settings, cluster, source, plans)
        if held is not None:
            demos = held.joined(demos)
        folder.write_settings(settings)
        demos.save(path)
    print(f"{summary(demos)}\n\ndemonstrations: {path}")
    return path


def _held(path: Path, settings: CollectDemosConfig) -> Demos | None:
    if settings.append:
        if not path.exists():
            raise InputError(f"append=true adds to {path}, which does not exist; leave it out")
        held = Demos.load(path)
        held.check_addition(
            layout_of(settings), settings.cluster, settings.policies, settings.seed, path
        )
        return held
    if path.exists():
        raise InputError(
            f"{path} exists and is kept; add to it with append=true, or give another path=FILE"
        )
    return None


def main() -> None:
    """Runs the command."""
    run_command("collect_demos", collect_demos)


if __name__ == "__main__":
    main()
