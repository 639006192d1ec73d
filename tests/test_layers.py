"""The shape of the code: import order, line limits, one sentence on top of each module, no passing on of **kwargs."""

import ast
import json
import re
import subprocess
import sys
from importlib.metadata import packages_distributions, version

import pytest

from lib.results import REPOSITORY

ORDER = ("results profiles statistics reported world sources filters corpora shards instructions models distributed training teacher "
         "generation benchmarks evaluation ablations prompting text_metrics tasks ratings tables figures batch").split()
LIB_LINES, FILE_LINES, FUNCTION_LINES = 4500, 400, 40
MODULES = {path.stem: path for path in sorted((REPOSITORY / "lib").glob("*.py")) if path.stem != "__init__"}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def siblings(tree):
    """The modules of lib that a module imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == "lib"):
            inner = (node.module or "").removeprefix("lib").strip(".")
            found |= {inner.split(".")[0]} if inner else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("lib.")}
    return found


def length(function):
    """Lines of a function without its docstring and decorators."""
    first = function.body[0]
    docstring = first.end_lineno - first.lineno + 1 if ast.get_docstring(function) is not None else 0
    return function.end_lineno - function.lineno + 1 - docstring


def forwards(function):
    """The names of the functions that a function hands its own **keywords to."""
    own = function.args.kwarg and function.args.kwarg.arg
    return {getattr(call.func, "attr", getattr(call.func, "id", "?")) for call in ast.walk(function)
            if isinstance(call, ast.Call) for word in call.keywords
            if own and word.arg is None and isinstance(word.value, ast.Name) and word.value.id == own}


def test_the_checks_see_what_they_should():
    tree = ast.parse('from lib import world, results\nimport lib.models as m\nfrom lib.tables import show\nimport os\n'
                     'from . import figures\n'
                     'def f(a, **k):\n    """Text\n    more."""\n    from lib.batch import x\n    return g(**k)\n')
    assert siblings(tree) == {"world", "results", "models", "tables", "figures", "batch"}
    function = next(node for node in ast.walk(tree) if isinstance(node, FUNCTIONS))
    assert (length(function), forwards(function)) == (3, {"g"})
    assert {"results", "batch"} <= set(MODULES)


def test_every_module_has_its_place():
    assert set(MODULES) <= set(ORDER), f"not in the design: {set(MODULES) - set(ORDER)}"


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_those_above_it(name):
    below = [other for other in siblings(ast.parse(MODULES[name].read_text()))
             if other not in ORDER or ORDER.index(other) >= ORDER.index(name)]
    assert not below, f"lib/{name}.py imports {below}, which stand below it"


@pytest.mark.parametrize("name", MODULES)
def test_a_module_opens_with_a_sentence_and_stays_short(name):
    source = MODULES[name].read_text()
    opening = (ast.get_docstring(ast.parse(source)) or "").split("\n\n")[0]
    assert opening.endswith("."), f"lib/{name}.py must open with one sentence"
    assert source.count("\n") <= FILE_LINES
    too_long = {node.name: length(node) for node in ast.walk(ast.parse(source))
                if isinstance(node, FUNCTIONS) and length(node) > FUNCTION_LINES}
    assert not too_long


def test_lib_stays_thin():
    assert sum(path.read_text().count("\n") for path in (REPOSITORY / "lib").rglob("*.py")) < LIB_LINES


def test_keywords_are_not_passed_on_and_on():
    """f(**k) may hand its keywords to one g(...); if g hands them on again, nobody knows what may be given."""
    passing = {node.name: forwards(node) for path in MODULES.values() for node in ast.walk(ast.parse(path.read_text()))
               if isinstance(node, FUNCTIONS) and forwards(node)}
    chains = [f"{name} -> {inner}" for name, targets in passing.items() for inner in targets if inner in passing]
    assert not chains


def test_ruff_is_content():
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", str(REPOSITORY)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_pins_are_what_is_installed_and_locked():
    """environment.yml is exact, environment.lock repeats it, and this environment holds it."""
    pins = dict(re.findall(r"\n +- ([\w.-]+)==([\w.]+)", (REPOSITORY / "environment.yml").read_text()))
    lock = dict(line.split("==") for line in (REPOSITORY / "environment.lock").read_text().split() if "==" in line)
    names = {re.sub(r"[-_.]+", "-", name).lower(): number for name, number in lock.items()}
    assert pins["torch"] == "2.13.0"
    assert {name: names[name.lower()] for name in pins} == pins
    assert {name: version(name).split("+")[0] for name in pins} == pins


def imported():
    """The packages that lib, the notebooks and the tests import."""
    sources = [path.read_text() for folder in ("lib", "tests") for path in (REPOSITORY / folder).glob("*.py")]
    for path in (REPOSITORY / "notebooks").glob("*.ipynb"):
        sources += ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    names = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    names |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.args[0].value for node in nodes if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "importorskip"}
    return {name.split(".")[0] for name in names}


def test_every_pinned_package_is_used_and_says_why():
    """One line and one reason a package; what is not imported here is used by another program, named here."""
    not_imported = {"accelerate": "peft", "openpyxl": "pandas", "jupyterlab": "run_all.sh", "ipykernel": "papermill", "pytest-xdist": "pytest",
                    "fastapi": "transformers serve", "uvicorn": "transformers serve", "openai": "transformers serve", "ruff": "a command", "nbstripout": "a command"}
    reasons = dict(re.findall(r"\n +- ([\w.-]+)==\S+ *(.*)", (REPOSITORY / "environment.yml").read_text()))
    assert len(reasons) > 40
    assert not [name for name, reason in reasons.items() if not re.fullmatch(r"# \S.{3,}", reason)], "without a reason"
    modules, used = packages_distributions(), imported()
    named = {re.sub(r"[-_.]+", "-", name).lower() for module in used for name in modules.get(module, ())}
    assert set(reasons) - named == set(not_imported)


def test_every_public_function_says_what_it_does():
    nodes = {f"{name}.{node.name}": node for name, path in MODULES.items() for node in ast.parse(path.read_text()).body
             if isinstance(node, (*FUNCTIONS, ast.ClassDef)) and not node.name.startswith("_")}
    assert len(nodes) > 150
    assert not [name for name, node in nodes.items() if not ast.get_docstring(node)]


def test_shell_scripts_parse_and_nothing_hides_lib():
    for script in ("run_all.sh", ".ci/run"):
        subprocess.run(["bash", "-n", str(REPOSITORY / script)], check=True)
    ignored = (REPOSITORY / ".gitignore").read_text().split("\n")
    assert not {"lib", "lib/", "/lib", "/lib/"} & set(ignored)
