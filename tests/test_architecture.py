"""The house: floors, what each may import, and a facade that is documented."""

import ast
import doctest
import functools
import pathlib
import sys

import pytest

import mlox

ROOT = pathlib.Path(mlox.__file__).parent

FLOORS = {
    "_tree": 0,
    "_loops": 0,
    "_scaling": 0,
    "solvers": 1,
    "methods": 2,
    "_context": 3,
    "_arguments": 3,
    "_losses": 3,
    "_problem": 3,
    "flax": 4,
    "_graph": 4,
    "_plan": 4,
    "_values": 5,
    "_objective": 5,
    "_batches": 5,
    "_finite": 5,
    "_hooks": 5,
    "_rounds": 5,
    "_cycle": 5,
    "_checks": 5,
    "_step": 5,
    "_evaluation": 5,
    "_explain": 5,
    "_data": 6,
    "_placement": 6,
    "_processes": 6,
    "_sources": 6,
    "_series": 6,
    "_log": 6,
    "_csv": 6,
    "_tensorboard": 6,
    "_faults": 6,
    "_dispatch": 6,
    "_points": 6,
    "_stopping": 6,
    "_trail": 6,
    "_checkpoint": 6,
    "_packing": 6,
    "_archive": 6,
    "_orbax": 6,
    "_store": 6,
    "_saving": 6,
    "_signals": 6,
    "_loop": 7,
    "_options": 8,
    "_run": 8,
    "_engine": 9,
    "_rules": 9,
    "_sharding": 9,
    "__init__": 10,
}

# The host loop works for anything with `step` and `steps_per_cycle`, a protocol of its
# own: it stands beside the mathematics, under the engine that offers it as a method.
HOST_LOOP = {part for part, floor in FLOORS.items() if floor in (6, 7, 8)}

FILES = sorted(ROOT.rglob("*.py"))


@functools.cache
def parsed(path):
    return ast.parse(path.read_text())


def part_of(path):
    """Name the part of the house that a file belongs to: a module or a folder."""
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imported(path):
    """List the dotted names that a file imports, wherever in it."""
    names = []
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in line {node.lineno}"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def parts_imported(path):
    dotted = [name.split(".") for name in imported(path)]
    return {names[1] for names in dotted if names[0] == "mlox"}


def upward(path):
    own = part_of(path)
    return [
        f"{own} (floor {FLOORS[own]}) imports {part} (floor {FLOORS[part]})"
        for part in sorted(parts_imported(path))
        if FLOORS[part] > FLOORS[own]
    ]


def test_every_file_has_a_floor():
    parts = {part_of(path) for path in FILES}
    assert parts == set(FLOORS), "give what is new a floor, and drop what is gone"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    assert not upward(path)


def test_imports_are_found_wherever_they_stand(tmp_path):
    path = tmp_path / "late.py"
    path.write_text(
        "import mlox._graph, mlox.solvers._cg\n"
        "from mlox import _run as loop\n"
        "def late():\n"
        "    from mlox.methods import Implicit\n"
    )
    assert parts_imported(path) == {"_graph", "solvers", "_run", "methods"}


def test_an_import_that_points_up_is_found(monkeypatch, tmp_path):
    path = tmp_path / "_tree.py"
    path.write_text("from mlox._engine import Engine\n")
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert upward(path) == ["_tree (floor 0) imports _engine (floor 9)"]


@pytest.mark.parametrize("floor", sorted(set(FLOORS.values())))
def test_no_circles_within_a_floor(floor):
    """Files of one floor import each other too: in one direction only."""
    files = {
        ".".join(["mlox", *path.relative_to(ROOT).with_suffix("").parts]): path
        for path in FILES
        if FLOORS[part_of(path)] == floor and path.stem != "__init__"
    }
    reads = {
        module: {m for m in files for found in imported(path) if covers(m, found)}
        for module, path in files.items()
    }
    done = set()
    while ready := {m for m in reads if m not in done and reads[m] <= done}:
        done |= ready
    assert done == set(files), f"imports in a circle among {set(files) - done}"


def covers(module, found):
    return found == module or found.startswith(f"{module}.")


@pytest.mark.parametrize("part", sorted(HOST_LOOP))
def test_the_host_loop_knows_nothing_of_the_mathematics(part):
    assert parts_imported(ROOT / f"{part}.py") <= HOST_LOOP


def test_the_graph_needs_nothing_but_python():
    roots = {name.split(".")[0] for name in imported(ROOT / "_graph.py")}
    assert roots <= sys.stdlib_module_names


def test_the_plan_needs_names_and_the_classes_of_systems():
    """`System` is a plain enumeration: no array is met, though its folder uses JAX."""
    names = imported(ROOT / "_plan.py")
    others = {n for n in names if n.split(".")[0] not in sys.stdlib_module_names}
    assert others <= {"mlox._graph.Graph", "mlox.solvers.System"}


@pytest.mark.parametrize("name", ["solvers", "methods"])
def test_solvers_and_methods_see_functions_and_pytrees_only(name):
    for path in sorted((ROOT / name).rglob("*.py")):
        assert parts_imported(path) <= {"_tree", "_loops", "solvers", name}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_is_probed_nor_mutated(path):
    tree = parsed(path)
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = {func.id for func in calls if isinstance(func, ast.Name)}
    assert not names & {"hasattr", "getattr", "setattr", "delattr"}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name != "__init__":
            assert not list(own_attributes_set(node)), f"{node.name} changes self"


def own_attributes_set(function):
    """Yield the attributes of `self` that a function assigns."""
    for node in ast.walk(function):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id == "self":
                yield node.attr
        elif isinstance(node, ast.Attribute) and node.attr == "__setattr__":
            yield node.attr


def facade():
    """List (module, name, name in the facade) of each line of the facade."""
    documentation, *lines = parsed(ROOT / "__init__.py").body
    assert isinstance(documentation, ast.Expr)
    assert all(isinstance(line, ast.ImportFrom) for line in lines)
    return [
        (line.module, alias.name, alias.asname)
        for line in lines
        for alias in line.names
    ]


def test_facade_is_a_sorted_list_of_names():
    def key(line):
        module, name, _ = line
        kind = 0 if name.isupper() else 1 if name[0].isupper() else 2
        return module, kind, name

    lines = facade()
    assert lines == sorted(lines, key=key)
    assert all(name == exported for _, name, exported in lines)


def test_facade_is_complete():
    """What is fixed for users is there, and every file but the facades is private."""
    names = {name for _, _, name in facade()}
    assert names >= {
        *("Problem", "Engine", "Context", "Neighbour", "RunError"),
        *("Unrolled", "Implicit", "FiniteDifference", "SAMA", "Method", "Answer"),
        *("CG", "GMRES", "BiCGStab", "Identity", "Dense", "Neumann", "Solver"),
    }
    assert {path.stem for path in FILES if path.stem[0] != "_"} == {"flax"}


@pytest.mark.parametrize("name", sorted(name for _, _, name in facade()))
def test_facade_has_docstrings_with_examples_that_show_a_result(name):
    documentation = vars(mlox)[name].__doc__
    assert documentation, f"mlox.{name} has no docstring"
    assert "Example:" in documentation, f"the docstring of mlox.{name} has no Example"
    examples = doctest.DocTestParser().get_examples(documentation)
    assert any(example.want for example in examples), f"mlox.{name} shows no result"
