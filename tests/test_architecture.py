"""The rooms and arrows of docs/architecture.md, read from the imports themselves."""

import ast
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "llmroute_gym"
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
COMMANDS = (
    *("train", "evaluate", "collect_demos", "pretrain", "search", "fetch", "suite", "export"),
    *("calibrate", "mock_engine", "serve"),
)
BELOW: dict[str, set[str]] = {"errors": set(), "ground": {"errors"}}
"""Room to the rooms that it may import."""
for room, above in (
    ("config", {"ground"}),
    ("http", {"config"}),
    ("runs", {"config"}),
    ("sim", {"config"}),
    ("mock", {"sim", "http"}),
    ("routers", {"sim"}),
    ("gateway", {"routers", "http"}),
    ("envs", {"routers"}),
    ("compare", {"routers", "runs"}),
    ("demos", {"envs", "compare"}),
    ("sb3", {"demos"}),
    ("training", {"sb3"}),
):
    BELOW[room] = above.union(*(BELOW[one] for one in above))
for command in COMMANDS:
    BELOW[command] = {"training", "gateway", "mock"}.union(
        *(BELOW[room] for room in ("training", "gateway", "mock"))
    )
BELOW["llmroute_gym"] = {"routers", *BELOW["routers"]}
"""The package's own face; Gymnasium imports the environment by its name."""
BELOW["__main__"] = set()


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def imported(module: str) -> Iterator[str]:
    """Yields what a module imports of the package, in functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [one if one in MODULES else str(node.module) for one in whole]
        else:
            continue
        yield from (one for one in found if one.split(".")[0] == "llmroute_gym" and one != module)


GRAPH = {module: set(imported(module)) for module in MODULES}


def test_no_module_imports_itself_by_way_of_others() -> None:
    done: set[str] = set()
    path: list[str] = []

    def visit(module: str) -> None:
        assert module not in path, f"a circle: {' -> '.join([*path, module])}"
        if module not in done:
            path.append(module)
            for other in sorted(GRAPH[module]):
                visit(other)
            path.pop()
            done.add(module)

    for module in GRAPH:
        visit(module)


@pytest.mark.parametrize("module", MODULES)
def test_arrows_point_one_way(module: str) -> None:
    room = room_of(module)
    for other in GRAPH[module]:
        assert room_of(other) in {room, *BELOW[room]}, f"{module} imports {other}"


def test_commands_are_short_and_imported_by_nobody() -> None:
    for command in COMMANDS:
        assert len(MODULES[f"llmroute_gym.{command}"].read_text().splitlines()) <= 80, command
        for module, others in GRAPH.items():
            assert f"llmroute_gym.{command}" not in others, f"{module} imports {command}"


def test_every_command_is_listed() -> None:
    listed = runpy.run_path(str(PACKAGE / "__main__.py"))["COMMANDS"]
    assert set(COMMANDS) <= set(listed)


def test_the_package_has_few_entries() -> None:
    aside = {"__init__.py", "__main__.py", "py.typed", "__pycache__", "conf"}
    entries = {path.name for path in PACKAGE.iterdir()} - aside
    assert {entry.removesuffix(".py") for entry in entries} == BELOW.keys() - {
        "llmroute_gym",
        "__main__",
    }
    assert len(entries) <= 25


def test_no_module_only_forwards() -> None:
    for module, path in MODULES.items():
        body = ast.parse(path.read_text(encoding="utf-8")).body
        only_imports = all(
            isinstance(node, ast.Import | ast.ImportFrom | ast.Expr)
            or (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__")
            for node in body
        )
        assert not only_imports or path.name == "__init__.py", f"{module} only forwards"
