"""A calibration from its settings to its files."""

from dataclasses import fields
from pathlib import Path

import numpy as np
from tqdm import tqdm

from llmroute_gym.compare.calibration import errors
from llmroute_gym.compare.calibration.fitting import Fitted, fit, simulated
from llmroute_gym.compare.calibration.recorded import Recorded
from llmroute_gym.config import CalibrateConfig
from llmroute_gym.ground.arrays import BoolArray
from llmroute_gym.runs.folder import PROFILE_FILE, RunFolder
from llmroute_gym.sim import Cluster, FormulaBatchTime, Replica
from llmroute_gym.sim.fit import fit_formula
from llmroute_gym.sim.profile_time import LIMITS, Profile
from llmroute_gym.sim.profile_writer import write_profile

TABLE, PICTURE = "calibration.csv", "calibration.png"
DIFFERENT = 0.1
"""Spread of the backends' median errors from which they are no servers of one kind."""


def calibrate(settings: CalibrateConfig) -> Path:
    """Fits a profile to a log; writes it with its errors, and prints them.

    Returns:
        The profile's file.

    Raises:
        InputError: the log or the steps cannot be read or used, or a setting is wrong; nothing is
            written then.
    """
    assert settings.log is not None
    log = Path(settings.log)
    (replica,) = Cluster.from_profile(settings.profile, 1, **settings.overrides())
    recorded = Recorded.read(log, settings.backends, settings.limit)
    recorded.check_fits(replica)
    formula = None if settings.steps is None else fit_formula(settings.steps)
    with RunFolder(settings.run_dir) as folder:
        folder.write_settings(settings)
        part = recorded.first_part(1 - settings.held_out)
        if formula is None:
            fitted = _searched(recorded, replica, part, settings)
        else:
            fitted = Fitted(formula, _besides_s(recorded, replica, part, formula))
        times = simulated(recorded, replica, fitted)
        found = errors.rows(recorded, times, part)
        title = f"{log.name}: {len(recorded.workload)} requests, {len(recorded.backends)} backends"
        with folder.writing(TABLE) as part_file:
            errors.write_rows(found, part_file)
        with folder.writing(PICTURE) as part_file:
            errors.plot(recorded, times, part_file, title)
        path = folder.path / PROFILE_FILE
        write_profile(_profile(settings, replica, fitted), path, errors=errors.stated(found))
        print(f"{title}\n{errors.table(found)}\n")
        print("\n".join(_notes(recorded, replica, fitted, errors.by_backend(recorded, times))))
        print(f"\nprofile: {path}, used as cluster.profile={path}")
    return path


def _searched(
    recorded: Recorded, replica: Replica, part: BoolArray, settings: CalibrateConfig
) -> Fitted:
    with tqdm(total=settings.candidates, desc="calibrate", unit="candidate") as bar:

        def show(measured: int, lowest: float) -> None:
            bar.update(min(measured, settings.candidates) - bar.n)
            bar.set_postfix_str(f"loss {lowest:.3f}")

        return fit(recorded, replica, part, settings.candidates, settings.seed, show)


def _besides_s(
    recorded: Recorded, replica: Replica, part: BoolArray, formula: FormulaBatchTime
) -> float:
    """Returns what requests take beside the batches that were measured, at the median."""
    times = simulated(recorded, replica, Fitted(formula, 0.0))
    for simulated_s, recorded_s in ((times.ttft_s, recorded.ttft_s), (times.e2e_s, recorded.e2e_s)):
        known = part & (recorded_s > 0)
        if known.any():
            return max(float(np.median(recorded_s[known] - simulated_s[known])), 0.0)
    return 0.0


def _profile(settings: CalibrateConfig, replica: Replica, fitted: Fitted) -> Profile:
    log = Path(settings.log or "")
    to = f"the iterations of {Path(settings.steps).name}" if settings.steps else log.name
    return Profile(
        name=settings.name or log.name.partition(".")[0],
        batch_time=fitted.batch_time,
        limits={name: getattr(replica, name) for name in LIMITS},
        model=settings.served_model,
        hardware=settings.hardware,
        description=f"formula fitted to {to}",
        source=f"own log; besides, a request takes {fitted.besides_s:.6f} s that no batch does",
        scheduler=replica.scheduler,
    )


def _notes(
    recorded: Recorded, replica: Replica, fitted: Fitted, backends: dict[str, float]
) -> list[str]:
    """Says what was found, and what stands in the way of believing it."""
    formula = fitted.batch_time
    numbers = (f"{one.name} = {getattr(formula, one.name):.4g}" for one in fields(formula))
    notes = [
        ", ".join(numbers),
        f"A request takes {fitted.besides_s * 1e3:.1f} ms besides, which the times above contain "
        "and the profile does not.",
    ]
    if len(backends) > 1:
        listed = ", ".join(f"{name} {error:+.1%}" for name, error in backends.items())
        notes.append(f"Median error of the end-to-end latency by backend: {listed}.")
        if max(backends.values()) - min(backends.values()) > DIFFERENT:
            notes.append(
                "The backends differ: calibrate each kind of server for itself, as in "
                f"backends=[{next(iter(backends))}]."
            )
    if recorded.cached_share:
        cached = f"{recorded.cached_share:.0%} of the prompts' tokens were found in prefix caches"
        if not replica.prefix_caching:
            notes.append(
                f"{cached}, and {replica.scheduler} has none here: choose scheduler=vllm_v1."
            )
        else:
            notes.append(
                f"{cached}; {recorded.explained_share:.0%} of these have an earlier request that "
                "may have begun alike, and are found again."
            )
    if not np.isfinite(recorded.ttft_s).any():
        notes.append("No answer was streamed: nothing tells prompts' times from those of answers.")
    return notes
