"""Rules of the house: who may import whom, and that everything public is described."""

import ast
import graphlib
import inspect
import re
from pathlib import Path

import pytest

import fopru

ROOT = Path(fopru.__file__).parent

ROOMS = (
    *(
        "versions",
        "arguments",
        "budgets",
        "pictures",
        "videos",
        "picking",
        "significance",
        "attention",
        "families",
    ),
    *("tapping", "encoding", "pruned", "choosing", "applying", "pruner", "in_llm", "methods"),
    *("evaluation", "efficiency", "checking", "plots", "redundancy", "pocket", "loading"),
    "adaptive",
    *(
        "pocket.score",
        "evaluation.lmms_tasks",
        "evaluation.lmms",
        "serving",
        "widgets",
        "fopru",
        "cli",
    ),
    "__main__",
)
"""Rooms of the package from the lowest to the highest: a module imports from its own room and from
those before it. `fopru` is the package itself, the door for users."""


def modules():
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found["fopru" if name == "__init__" else name] = path
    return found


MODULES = modules()


def room_of(module):
    """The most specific room that a module is in."""
    return max((r for r in ROOMS if f"{module}.".startswith(f"{r}.")), key=len, default=None)


def imports(path):
    """Modules of the package that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "fopru":
            inside = node.module.removeprefix("fopru").removeprefix(".")
            names = [f"{inside}.{alias.name}".removeprefix(".") for alias in node.names]
            found |= {name if name in MODULES else inside or "fopru" for name in names}
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names if a.name.partition(".")[0] == "fopru"]
            found |= {name.removeprefix("fopru.") for name in names}
    return found


def test_every_module_stands_in_a_room():
    assert [name for name in MODULES if room_of(name) is None] == []


def test_no_arrow_goes_up():
    up = [
        f"{name} imports {other}"
        for name, path in MODULES.items()
        for other in imports(path)
        if ROOMS.index(room_of(other)) > ROOMS.index(room_of(name))
    ]
    assert up == []


def test_no_circle():
    graph = {name: imports(path) - {name} for name, path in MODULES.items()}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(MODULES)


def test_what_serves_brings_no_package_for_tables_and_plots():
    """vLLM imports it in each of its processes."""
    reached, found = set(), [name for name in MODULES if room_of(name) == "serving"]
    while found:
        if (name := found.pop()) not in reached:
            reached.add(name)
            found += imports(MODULES[name])
    heavy = re.compile(r"^\s*(?:import|from) (?:pandas|scipy|matplotlib|pyarrow)\b", re.M)
    assert [name for name in sorted(reached) if heavy.search(MODULES[name].read_text())] == []


def test_imports_are_found(tmp_path):
    file = tmp_path / "a.py"
    file.write_text(
        "import fopru\nfrom fopru import load, cli\ndef f():\n from fopru.pruner import x"
    )
    assert imports(file) == {"fopru", "cli", "pruner"}


@pytest.mark.parametrize("room", ["evaluation", "efficiency", "cli", "widgets"])
def test_nobody_asks_of_which_kind_a_pruner_is(room):
    """Sessions are the same for all kinds."""
    kind = re.compile(r"is(instance|subclass)\(.*(InLLM|Pruner)|weights ==")
    found = [
        f"{path.name}:{number}: {line}"
        for path in (ROOT / room).rglob("*.py")
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if kind.search(line)
    ]
    assert found == []


def test_type_checkers_see_the_names_that_users_get():
    """`fopru` imports a name when it is used; what a type checker reads is beside it."""
    (block,) = (
        node
        for node in ast.parse((ROOT / "__init__.py").read_text()).body
        if isinstance(node, ast.If)
    )
    seen = {(node.module, alias.name) for node in block.body for alias in node.names}
    told = {(f"fopru.{module}", name) for module, names in fopru._NAMES.items() for name in names}
    assert seen == {*told, ("fopru.methods", "*")} - {("fopru.methods", "METHODS")}


# Docstrings


def described(node):
    """The first paragraph of a docstring, "" where there is none."""
    return (ast.get_docstring(node) or "").partition("\n\n")[0]


def classes():
    """Name -> class, of all modules; the names are all different."""
    return {
        node.name: node
        for path in MODULES.values()
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef)
    }


CLASSES = classes()


def inherits_description(cls, method):
    """Whether a class of the package, above this one, describes its method of that name."""
    for base in cls.bases:
        above = CLASSES.get(base.id if isinstance(base, ast.Name) else "")
        if above is None:
            continue
        own = [n for n in above.body if isinstance(n, ast.FunctionDef) and n.name == method]
        if any(map(described, own)) or inherits_description(above, method):
            return True
    return False


def public(body, cls=None):
    """The public classes, functions and methods of a body, with the class that they stand in."""
    for node in body:
        named = isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
        decorators = getattr(node, "decorator_list", ())
        if named and not any(
            isinstance(d, ast.Attribute) and d.attr == "setter" for d in decorators
        ):
            yield node, cls
            if isinstance(node, ast.ClassDef):
                yield from public(node.body, node)


def elsewhere(node, cls, module):
    """Whether something needs no docstring of its own: a method that a class above describes, or
    the class of an adapter, which its module describes."""
    if isinstance(node, ast.ClassDef):
        return room_of(module) == "families"
    return cls is not None and inherits_description(cls, node.name)


@pytest.mark.parametrize("module", MODULES)
def test_everything_public_is_described_by_a_sentence(module):
    tree = ast.parse(MODULES[module].read_text())
    assert described(tree).endswith((".", ":")), "the module"
    bad = [
        f"line {node.lineno}: {node.name}"
        for node, cls in public(tree.body)
        if not described(node).endswith(".")
        and not (elsewhere(node, cls, module) and not described(node))
    ]
    assert bad == []


def api():
    """What the API page shows."""
    page = Path(__file__).parents[1].joinpath("book", "api.md").read_text()
    for name in re.findall(r"auto(?:function|class):: fopru\.([\w.]+)", page):
        value = fopru
        for part in name.split("."):
            value = getattr(value, part)
        yield pytest.param(value, id=name)


def test_no_description_needs_the_line_above_it():
    found = [
        f"{name}:{node.lineno}"
        for name, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if str(node.value.value).startswith(("Of ", "As ", "Those "))
    ]
    assert found == []


@pytest.mark.parametrize("value", list(api()))
def test_every_parameter_on_the_api_page_is_described(value):
    """Where it stands: in the docstring, or, of a dataclass, below the field."""
    parameters = inspect.signature(value).parameters.values()
    names = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    text = " ".join(filter(None, (inspect.getdoc(c) for c in getattr(value, "__mro__", [value]))))
    if inspect.isclass(value):
        text += " ".join(re.findall(r'^    (\w+):.*\n    """', inspect.getsource(value), re.M))
    assert [name for name in names if not re.search(rf"\b{name}\b", text)] == []
