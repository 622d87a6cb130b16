"""Demonstrations: decisions of routers, with what they saw and what came of them.

A Parquet file with one row per decision and, in its metadata under `METADATA_KEY`, JSON with the
layout that all rows share and the provenance of each collection:

| column | type | unit |
|---|---|---|
| router | string | name of the router that decided |
| seed | int64 | of the collection |
| episode | int64 | within the collection; equal numbers are equal requests for every router |
| step | int64 | the decision's place in its episode |
| qps | float64 | mean arrival rate of the episode, requests/s |
| observation | float32[replicas * columns] | row by row, scaled as `envs.observation` states |
| mask | bool[replicas] | whether a replica could be chosen |
| action | int64 | the replica chosen |
| reward | float64 | of this decision, under the layout's weights |
| return_to_go | float64 | discounted sum of the rewards from this decision to the episode's end |
"""

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmroute_gym.config import ClusterConfig, ObservationConfig, RewardConfig
from llmroute_gym.demos.layout import DemoLayout, shown_setting
from llmroute_gym.errors import InputError
from llmroute_gym.ground.files import complete_or_absent

log = logging.getLogger(__name__)

DEMOS_FILE = "demos.parquet"
METADATA_KEY = b"llmroute_gym.demos"
FORMAT = 1
"""Version of the file's format."""


@dataclass(frozen=True, eq=False)
class Demos:
    """Decisions in columns; all arrays have the length n.

    Attributes:
        layout: what they have in common.
        collections: provenance, one mapping per collection.
        router: (n,) names.
        seed: (n,) int64.
        episode: (n,) int64.
        step: (n,) int64.
        qps: (n,) float64, requests per second.
        observation: (n, n_replicas, n_columns) float32.
        mask: (n, n_replicas) bool.
        action: (n,) int64.
        reward: (n,) float64.
        return_to_go: (n,) float64.
    """

    layout: DemoLayout
    collections: tuple[dict[str, Any], ...]
    router: npt.NDArray[np.str_]
    seed: npt.NDArray[np.int64]
    episode: npt.NDArray[np.int64]
    step: npt.NDArray[np.int64]
    qps: npt.NDArray[np.float64]
    observation: npt.NDArray[np.float32]
    mask: npt.NDArray[np.bool_]
    action: npt.NDArray[np.int64]
    reward: npt.NDArray[np.float64]
    return_to_go: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.action)

    def routers(self) -> list[str]:
        """Returns the names of the routers, sorted."""
        return sorted(set(self.router.tolist()))

    def select(self, index: npt.NDArray[Any]) -> "Demos":
        """Returns the decisions at an index or where a mask is true."""
        chosen = {name: getattr(self, name)[index] for name in ARRAYS}
        return Demos(self.layout, self.collections, **chosen)

    def check_addition(
        self,
        layout: DemoLayout,
        cluster: ClusterConfig,
        routers: Iterable[str],
        seed: int,
        path: str | Path,
    ) -> None:
        """Checks that a collection may be added to these decisions.

        Args:
            layout: of the collection.
            cluster: of the collection.
            routers: names of its routers.
            seed: of the collection.
            path: of the file that holds these decisions, for the sentences.

        Raises:
            InputError: the layouts or clusters differ, or a router's episodes of this seed are
                there already.
        """
        differences = self.layout.differences(layout) or self.cluster_differences(cluster)
        if differences:
            raise InputError(
                f"{path} holds demonstrations of another layout: {'; '.join(differences)}; "
                "collect into another file with path=FILE"
            )
        held = set(self.router[self.seed == seed].tolist())
        for router in routers:
            if router in held:
                raise InputError(
                    f"{path} already holds decisions of {router} with seed {seed}, and equal "
                    "seeds give equal requests; choose another with seed=N"
                )

    def cluster_differences(self, cluster: ClusterConfig) -> list[str]:
        """Returns in what the replicas behind the decisions differ from a cluster.

        A key that the decisions' version did not know had its default.
        """
        stored = self.collections[0].get("cluster")
        if stored is None:
            return []
        there = {**asdict(ClusterConfig()), **stored}
        return [
            f"cluster.{name} is {shown_setting(there[name])} there and {shown_setting(value)} here"
            for name, value in asdict(cluster).items()
            if there[name] != value
        ]

    def joined(self, other: "Demos") -> "Demos":
        """Returns these decisions and others of the same layout after them."""
        assert self.layout == other.layout
        arrays = {
            name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in ARRAYS
        }
        return Demos(self.layout, (*self.collections, *other.collections), **arrays)

    def check_fits(self, replicas: int, observation: ObservationConfig) -> None:
        """Checks that a policy over these observations can learn from the decisions.

        Raises:
            InputError: naming both layouts.
        """
        given = DemoLayout(replicas, observation, self.layout.reward, self.layout.gamma)
        if differences := self.layout.differences(given):
            raise InputError(
                f"the demonstrations have another layout: {'; '.join(differences)}; "
                "set the same here or collect them again"
            )

    def check_returns(self, reward: RewardConfig, gamma: float, cluster: ClusterConfig) -> None:
        """Checks that the returns are those that a training will see.

        Warns where they come from other replicas: the decisions may be worth imitating, but the
        returns foretell another machine's latencies.

        Raises:
            InputError: the demonstrations have another discount or other weights.
        """
        if differences := self.cluster_differences(cluster):
            log.warning(
                "the demonstrations come from other replicas (%s); their returns are not those "
                "of this cluster",
                "; ".join(differences),
            )
        given = DemoLayout(self.layout.replicas, self.layout.observation, reward, gamma)
        if differences := self.layout.differences(given):
            raise InputError(
                f"the demonstrations' returns are not those of this training: "
                f"{'; '.join(differences)}; collect them again with the same reward and discount"
            )

    def save(self, path: str | Path) -> None:
        """Writes the file, complete or not at all; equal decisions give equal bytes.

        Raises:
            InputError: it cannot be written.
        """
        import pyarrow.parquet as pq

        with complete_or_absent(path) as part:
            pq.write_table(self._table(), part, compression="zstd")

    def _table(self) -> Any:
        import pyarrow as pa

        n_rows = len(self)
        columns = {}
        for field in _schema(self.layout):
            values = getattr(self, field.name)
            if pa.types.is_fixed_size_list(field.type):
                flat = pa.array(values.reshape(-1), field.type.value_type)
                columns[field.name] = pa.FixedSizeListArray.from_arrays(
                    flat, field.type.list_size
                ).cast(field.type)
            else:
                columns[field.name] = pa.array(values.tolist(), field.type)
            assert len(columns[field.name]) == n_rows
        layout = asdict(self.layout)
        layout["columns"] = layout["observation"].pop("columns")
        about = {
            "format": FORMAT,
            "layout": layout,
            "collections": self.collections,
        }
        metadata = {METADATA_KEY: json.dumps(about).encode()}
        return pa.table(columns, schema=_schema(self.layout).with_metadata(metadata))

    @classmethod
    def load(cls, path: str | Path) -> "Demos":
        """Reads and checks demonstrations.

        Args:
            path: the file, or the run folder that holds it.

        Raises:
            InputError: there is none, it is damaged or empty, or a row is wrong.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        file = Path(path)
        if file.is_dir():
            file = file / DEMOS_FILE
        if not file.is_file():
            raise InputError(
                f"the demonstrations {file} do not exist; "
                "make them with python -m llmroute_gym.collect_demos"
            )
        if file.stat().st_size == 0:
            raise InputError(f"the demonstrations {file} are an empty file; collect them again")
        try:
            table = pq.read_table(file)
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{file} cannot be read as Parquet ({_first_line(error)}), it may be truncated; "
                "collect the demonstrations again"
            ) from error
        demos = cls._from_table(table, file)
        demos._check_rows(file)
        return demos

    @classmethod
    def _from_table(cls, table: Any, file: Path) -> "Demos":
        import pyarrow as pa

        layout, collections = _about(table, file)
        schema = _schema(layout)
        missing = [name for name in schema.names if name not in table.column_names]
        if missing:
            raise InputError(
                f"{file} lacks the column {missing[0]}; it has {', '.join(table.column_names)}; "
                "collect the demonstrations again"
            )
        try:
            table = table.select(schema.names).cast(schema)
        except (pa.ArrowException, ValueError) as error:
            raise InputError(
                f"{file} has columns of other types ({_first_line(error)}); "
                "collect the demonstrations again"
            ) from error
        arrays = {}
        for field in schema:
            column = table.column(field.name).combine_chunks()
            lists = pa.types.is_fixed_size_list(field.type)
            values = column.flatten() if lists else column
            if column.null_count or values.null_count:
                raise InputError(f"{file} lacks values in the column {field.name}")
            arrays[field.name] = values.to_numpy(zero_copy_only=False)
        shape = (table.num_rows, layout.replicas, len(layout.columns))
        arrays["observation"] = arrays["observation"].reshape(shape)
        arrays["mask"] = arrays["mask"].reshape(shape[:2])
        arrays["router"] = arrays["router"].astype(np.str_)
        return cls(layout, collections, **arrays)

    def _check_rows(self, file: Path) -> None:
        if len(self) == 0:
            raise InputError(f"{file} holds no decisions; collect the demonstrations again")
        in_range = (self.action >= 0) & (self.action < self.layout.replicas)
        chosen = np.where(in_range, self.action, 0)
        allowed = self.mask[np.arange(len(self)), chosen]
        finite = np.isfinite(self.observation).all(axis=(1, 2))
        for name, good, wanted in (
            ("action", in_range, f"a replica from 0 to {self.layout.replicas - 1}"),
            ("action", allowed, "a replica that its mask allows"),
            ("observation", finite, "finite"),
            ("reward", np.isfinite(self.reward), "finite"),
            ("return_to_go", np.isfinite(self.return_to_go), "finite"),
        ):
            if not good.all():
                row = int(np.argmin(good))
                value = (
                    getattr(self, name)[row] if name != "observation" else "a number that is not"
                )
                raise InputError(
                    f"{file} row {row}: {name} must be {wanted}, got {value}; "
                    "collect the demonstrations again"
                )


ARRAYS = tuple(entry.name for entry in fields(Demos))[2:]
"""Names of the columns, in the order of the file."""


def concatenated(parts: Sequence[Demos]) -> Demos:
    """Joins the decisions of one collection, which have one layout and one provenance."""
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in ARRAYS}
    return Demos(parts[0].layout, parts[0].collections, **arrays)


def _schema(layout: DemoLayout) -> Any:
    import pyarrow as pa

    types = {
        "router": pa.string(),
        "seed": pa.int64(),
        "episode": pa.int64(),
        "step": pa.int64(),
        "qps": pa.float64(),
        "observation": pa.list_(pa.float32(), layout.replicas * len(layout.columns)),
        "mask": pa.list_(pa.bool_(), layout.replicas),
        "action": pa.int64(),
        "reward": pa.float64(),
        "return_to_go": pa.float64(),
    }
    return pa.schema([pa.field(name, types[name]) for name in ARRAYS])


def _about(table: Any, file: Path) -> tuple[DemoLayout, tuple[dict[str, Any], ...]]:
    """Reads layout and provenance out of a table's metadata."""
    metadata = table.schema.metadata or {}
    if METADATA_KEY not in metadata:
        raise InputError(
            f"{file} is a Parquet file without demonstrations; "
            "give one that python -m llmroute_gym.collect_demos has written"
        )
    try:
        about = json.loads(metadata[METADATA_KEY])
        if about["format"] != FORMAT:
            raise InputError(
                f"{file} has format {about['format']}, this version reads {FORMAT}; "
                "collect the demonstrations again"
            )
        stored = about["layout"]
        layout = DemoLayout(
            int(stored["replicas"]),
            ObservationConfig(**{**stored["observation"], "columns": list(stored["columns"])}),
            RewardConfig(**stored["reward"]),
            float(stored["gamma"]),
        )
        return layout, tuple(about["collections"])
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise InputError(
            f"{file} does not state its layout ({error}); collect the demonstrations again"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def summary(demos: Demos) -> str:
    """Lays out per router what was recorded."""
    lines = [f"{'router':<20} {'decisions':>9} {'episodes':>8} {'requests/s':>12} {'return':>8}"]
    for name in demos.routers():
        part = demos.select(demos.router == name)
        episodes = len(set(zip(part.seed.tolist(), part.episode.tolist(), strict=True)))
        loads = f"{part.qps.min():.3g}..{part.qps.max():.3g}"
        lines.append(
            f"{name:<20} {len(part):>9,} {episodes:>8} {loads:>12} {part.return_to_go.mean():>8.1f}"
        )
    return "\n".join(lines)
