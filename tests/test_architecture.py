"""The house: two wings that never meet, imports that point down, a documented facade.

The tests read folders, so that a new file needs no row here.
"""

import ast
import doctest
import functools
import graphlib
import pathlib
import sys

import pytest

import mlox

ROOT = pathlib.Path(mlox.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
MODULES = {
    ".".join(["mlox", *path.relative_to(ROOT).with_suffix("").parts]): path
    for path in FILES
}

# What each room may import from, besides itself.
BELOW = {
    "_utils": set(),
    "_graph": {"_utils", "solvers"},
    "solvers": {"_utils"},
    "methods": {"_utils", "solvers"},
    "estimators": {"_utils"},
    "_problem": {"_utils", "methods"},
    "_hypergradient": {"_utils", "solvers", "methods", "_graph", "_problem"},
    "_cycle": {"_utils", "methods", "_graph", "_problem", "_hypergradient"},
    "_draw": {"_utils"},
    "_data": {"_utils"},
    "_logging": {"_utils"},
    "_sharding": {"_utils"},
    "_checkpoint": {"_utils", "_sharding"},
    "_run": {"_utils", "_data", "_logging", "_sharding", "_checkpoint"},
    "flax": {"_utils", "_problem"},
    "testing": {"_utils", "solvers", "methods", "_problem", "_engine"},
    "rewritings": {
        "_utils",
        "methods",
        "_graph",
        "_problem",
        "_hypergradient",
        "_engine",
    },
    "_check": {
        "_utils",
        "solvers",
        "methods",
        "_graph",
        "_problem",
        "_hypergradient",
        "_cycle",
        "_engine",
    },
    "plot": {"_utils", "_draw", "_engine", "_check"},
    "_command": {"_utils", "_check", "_checkpoint"},
    "__main__": {"_command"},
}
MATHEMATICS = {
    "_graph",
    "solvers",
    "methods",
    "estimators",
    "_problem",
    "_hypergradient",
    "_cycle",
}
HOST = {"_data", "_logging", "_sharding", "_checkpoint", "_run"}
# The engine joins the wings, and the facade shows everything.
JOINS = {"_engine", "__init__"}


@functools.cache
def parse(path):
    return ast.parse(path.read_text())


def room_of(path):
    return path.relative_to(ROOT).with_suffix("").parts[0]


@functools.cache
def find_imports(path):
    """List the dotted names that a file imports, wherever in it."""
    names = []
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in line {node.lineno}"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def find_rooms(path):
    dotted = [name.split(".") for name in find_imports(path)]
    return {names[1] for names in dotted if names[0] == "mlox" and names[1:]}


def find_forbidden(path):
    room = room_of(path)
    allowed = {room, *BELOW[room]}
    return [f"{path.name} imports {other}" for other in find_rooms(path) - allowed]


def test_top_of_package_holds_facade_adapters_and_rooms():
    assert {path.name for path in ROOT.glob("*.py")} == {
        "__init__.py",
        "__main__.py",
        "flax.py",
    }
    assert {room_of(path) for path in FILES} == {*BELOW, *JOINS}


def test_imports_point_down():
    files = [path for path in FILES if room_of(path) not in JOINS]
    assert [row for path in files for row in find_forbidden(path)] == []
    order = graphlib.TopologicalSorter(BELOW)
    order.prepare()  # raises if the rooms import in a circle


def test_mathematics_and_host_never_meet():
    for path in FILES:
        if room_of(path) in MATHEMATICS:
            assert not find_rooms(path) & HOST
        if room_of(path) in HOST:
            assert not find_rooms(path) & (MATHEMATICS | JOINS)


def test_files_do_not_import_in_a_circle():
    def covers(module, found):
        return found == module or found.startswith(f"{module}.")

    reads = {
        module: {m for m in MODULES for found in find_imports(path) if covers(m, found)}
        for module, path in MODULES.items()
        if path.stem != "__init__"
    }
    order = list(graphlib.TopologicalSorter(reads).static_order())
    assert {module for module in order if module in reads} == set(reads)


def test_a_forbidden_import_is_found_wherever_it_stands(monkeypatch, tmp_path):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "_graph" / "late.py"
    path.parent.mkdir()
    path.write_text("def late():\n    from mlox._run.loop import loop\n")
    assert find_forbidden(path) == ["late.py imports _run"]


def test_graph_needs_names_and_the_classes_of_systems_only():
    """`System` is a plain enumeration: no array is met, though its room uses JAX."""
    for path in (ROOT / "_graph").glob("*.py"):
        others = {
            name
            for name in find_imports(path)
            if name.split(".")[0] not in sys.stdlib_module_names
            and not name.startswith(("mlox._graph.", "mlox._utils."))
        }
        assert others <= {"mlox.solvers.System"}


def test_nothing_is_probed():
    probes = {"hasattr", "getattr", "setattr", "delattr"}
    for path in FILES:
        calls = [node for node in ast.walk(parse(path)) if isinstance(node, ast.Call)]
        names = {c.func.id for c in calls if isinstance(c.func, ast.Name)}
        assert not names & probes, path


def test_nothing_is_changed_after_construction():
    for path in FILES:
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.FunctionDef) and node.name != "__init__":
                assert not list(find_assigned_attributes(node)), f"{path}: {node.name}"


def find_assigned_attributes(function):
    """Yield the attributes of any object that a function assigns."""
    for node in ast.walk(function):
        if isinstance(node, ast.Attribute) and (
            isinstance(node.ctx, ast.Store) or node.attr == "__setattr__"
        ):
            yield node.attr


def read_facade():
    """List (module, name, name in the facade) of each import of the facade."""
    documentation, *lines = parse(ROOT / "__init__.py").body
    assert isinstance(documentation, ast.Expr)
    imports = [line for line in lines if isinstance(line, ast.ImportFrom)]
    (version,) = [line for line in lines if line not in imports]
    assert ast.unparse(version).startswith("__version__ = ")
    return [(i.module, a.name, a.asname) for i in imports for a in i.names]


def test_facade_is_a_sorted_list_of_names():
    def key(line):
        module, name, _ = line
        kind = 0 if name.isupper() else 1 if name[0].isupper() else 2
        return module, kind, name

    lines = read_facade()
    assert lines == sorted(lines, key=key)
    assert all(name == exported for _, name, exported in lines)


@pytest.mark.parametrize("name", sorted(name for _, _, name in read_facade()))
def test_public_names_have_an_example_that_shows_a_result(name):
    documentation = vars(mlox)[name].__doc__
    assert documentation, f"mlox.{name} has no docstring"
    assert "Example:" in documentation, f"the docstring of mlox.{name} has no Example"
    examples = doctest.DocTestParser().get_examples(documentation)
    assert any(example.want for example in examples), f"mlox.{name} shows no result"
