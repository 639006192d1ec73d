"""`./run_all.sh lab` in a fresh copy of the repository: the right kernel, `lib` importable, and notebooks run as they do in the batch."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from jupyter_client import BlockingKernelClient

from lib.results import REPOSITORY
from tests.test_rating_page import free_port

pytestmark = pytest.mark.slow
TOKEN = "a-token-of-this-test"


def ask(address, method="GET", body=None, token=TOKEN):
    """What the server answers, as JSON; None where it answers with nothing."""
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(address, data, {"Authorization": f"token {token}"}, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read() or "null")


def answers(client):
    """Wait until a kernel answers; on a busy machine its first heartbeats are late, and the client takes it for dead."""
    ends = time.monotonic() + 180
    while True:
        try:
            return client.wait_for_ready(timeout=60)
        except RuntimeError:
            assert time.monotonic() < ends, "the kernel does not answer"


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """The files that git keeps, as they are now, without the results of runs; and a home whose own kernel must not be taken."""
    folder = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(["git", "ls-files", "lib", "notebooks", "results/reported", "*.sh", "environment.*"],
                            cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.split()
    assert {"run_all.sh", "lib/results.py", "notebooks/20_summary.ipynb"} <= set(listed)
    for name in listed:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPOSITORY / name, folder / name)
    other = folder / "home" / ".local/share/jupyter/kernels/python3"
    other.mkdir(parents=True)
    (other / "kernel.json").write_text(json.dumps({"argv": ["false"], "display_name": "Python 3", "language": "python"}))
    return folder


@pytest.fixture(scope="module")
def lab(clone):
    """The address of a JupyterLab that run_all.sh has started, from another folder and without a browser."""
    port, runtime = free_port(), clone / "runtime"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHONPATH", "JUPYTER_", "RESULTS_", "RUNS_"))}
    environment |= {"CONDA_PREFIX": sys.prefix, "HOME": str(clone / "home"), "JUPYTER_RUNTIME_DIR": str(runtime)}
    command = [str(clone / "run_all.sh"), "lab", "--no-browser", "--allow-root", f"--ServerApp.port={port}", f"--IdentityProvider.token={TOKEN}"]
    with open(clone / "lab.log", "w") as log:
        server = subprocess.Popen(command, cwd="/", env=environment, stdout=log, stderr=log, start_new_session=True)
    address, ends = f"http://127.0.0.1:{port}/api", time.monotonic() + 120
    while True:
        try:
            ask(f"{address}/status")
            break
        except OSError:
            assert server.poll() is None, (clone / "lab.log").read_text()[-2000:]
            assert time.monotonic() < ends, "JupyterLab does not answer"
            time.sleep(0.3)
    yield address
    os.killpg(server.pid, signal.SIGTERM)
    assert server.wait(30) in (0, -signal.SIGTERM)


@pytest.fixture
def kernel(lab, clone):
    """Open a notebook as a browser does; returns its cells and a function that executes one in its kernel and gives back what it printed."""
    opened = []

    def start(name):
        document = ask(f"{lab}/contents/notebooks/{name}.ipynb")["content"]
        session = ask(f"{lab}/sessions", "POST", {"path": f"notebooks/{name}.ipynb", "name": name, "type": "notebook",
                                                  "kernel": {"name": document["metadata"]["kernelspec"]["name"]}})
        client = BlockingKernelClient(connection_file=str(clone / "runtime" / f"kernel-{session['kernel']['id']}.json"))
        client.load_connection_file()
        client.start_channels()
        opened.append((session, client))
        answers(client)

        def run(source):
            shown = []
            reply = client.execute_interactive(source, timeout=300, output_hook=lambda message: shown.append(message["content"].get("text", "")))
            assert reply["content"]["status"] == "ok", f"{reply['content']['ename']}: {reply['content']['evalue']}, in\n{source}"
            return "".join(shown)
        return ["".join(cell["source"]) for cell in document["cells"] if cell["cell_type"] == "code"], run
    yield start
    for session, client in opened:
        client.stop_channels()
        ask(f"{lab}/sessions/{session['id']}", "DELETE")
    assert not ask(f"{lab}/kernels"), "a kernel is left over"


def test_a_stranger_is_kept_out(lab):
    with pytest.raises(urllib.error.HTTPError, match="403"):
        ask(f"{lab}/contents", token="wrong")


def test_the_kernel_is_that_of_the_environment_and_lib_that_of_the_clone(kernel, clone):
    cells, run = kernel("20_summary")
    run(cells[1])  # the imports
    shown = run("import sys, os; print(sys.prefix, results.__file__, os.getcwd(), sep='\\n')").split()
    assert Path(shown[0]) == Path(sys.prefix)
    assert Path(shown[1]) == clone / "lib" / "results.py"
    assert Path(shown[2]) == clone / "notebooks", "a notebook's kernel starts beside it"


def test_notebooks_run_from_top_to_bottom(kernel, clone):
    """With PROFILE edited in the parameters cell; the tables are those of the batch, and a relative DATA_DIR would start at the repository."""
    for name in ("00_published_values", "20_summary"):
        cells, run = kernel(name)
        assert 'PROFILE = "small"' in cells[0]
        for source in (cells[0].replace('PROFILE = "small"', 'PROFILE = "smoke"'), *cells[1:]):
            run(source)
        assert run("import os; print(os.getcwd())").strip() == str(clone)
        assert json.loads((clone / "results" / "smoke" / name / "findings.json").read_text())
    tables = sorted((clone / "results" / "smoke" / "00_published_values" / "tables").glob("*.csv"))
    assert len(tables) >= 5
    committed = REPOSITORY / "results" / "small" / "00_published_values" / "tables"
    assert [path.read_bytes() for path in tables] == [(committed / path.name).read_bytes() for path in tables]
