"""Fixtures of every test: places of its own for results and runs, tiny real notebooks, and the public data."""

import json
import os
from pathlib import Path

import nbformat
import pytest

from lib.results import REPOSITORY

SHARED_DATA = REPOSITORY.parent / "shared" / "data"
FIRST = ("# {number} · Is it so?\n\n**Question.** Is it?\n\n**Answer.** It is **0.00**<!--value-->.\n\n"
         "Reads nothing · writes results/<profile>/{number}_trial")
START = ("from lib.results import save_findings, save_table, start_run\nimport pandas as pd\n"
         'run = start_run("{name}", dict(PROFILE=PROFILE, SEEDS=SEEDS, RATE=RATE, LANGUAGES=LANGUAGES))')
PARAMETERS = ('PROFILE = "small"  # how large\nSEEDS = 1  # repeats\nRATE = 0.5  # share\n'
              'LANGUAGES = ["en"]  # ISO codes\nSHUFFLE = True  # or not')
END = ('save_table(run, "scores", pd.DataFrame({"score": [SEEDS]}))\n'
       'save_findings(run, {"value": SEEDS}, main_table="scores")')


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Empty folders for notebooks, results and runs that lib and every child process use instead of the real ones."""
    for name in ("NOTEBOOKS_DIR", "RESULTS_ROOT", "RUNS_ROOT"):
        folder = tmp_path / name.lower()
        folder.mkdir()
        monkeypatch.setenv(name, str(folder))
    monkeypatch.delenv("RESULTS_STAGING", raising=False)
    return tmp_path


@pytest.fixture
def notebook(places):
    """Write a tiny notebook: a first cell, parameters, imports, the given cells, save_findings; return its path."""
    def write(name, *cells, upstream=(), reads=(), alone=False, parameters=PARAMETERS, first=FIRST, start=START, end=END):
        new = nbformat.v4.new_code_cell
        document = nbformat.v4.new_notebook(metadata={"upstream": list(upstream), "reads": list(reads), "alone": alone}, cells=[
            nbformat.v4.new_markdown_cell(first.format(number=name[:2])),
            new(parameters, metadata={"tags": ["parameters"]}),
            new(start.format(name=name)), *map(new, cells), new(end)])
        path = places / "notebooks_dir" / f"{name}.ipynb"
        nbformat.write(document, path)
        return path
    return write


@pytest.fixture
def shared_data():
    """The folder of public data; a test that needs it is skipped where it is not."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the public data sets are not in ../shared/data")
    return SHARED_DATA


def contents(folder):
    """Every file below a folder with its bytes; the wall time, the one thing that may differ, is left out."""
    paths = [path for path in Path(folder).rglob("*") if path.is_file()]
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    for name in [name for name in files if name.endswith("provenance.json")]:
        files[name] = {key: value for key, value in json.loads(files[name]).items() if key != "wall_minutes"}
    return files


def pytest_configure(config):
    # two kernels of two test processes on two cores must not start four threads
    if hasattr(config, "workerinput"):
        os.environ.setdefault("OMP_NUM_THREADS", "1")
