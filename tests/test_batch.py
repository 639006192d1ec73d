"""A run is refused early, complete, or a failure that leaves the earlier result as it was. Kernels here are real."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import papermill
import psutil
import pytest

from lib import batch, results
from tests.conftest import PARAMETERS, START, contents
from tests.fill import fill_sources


def summary(capsys):
    """The closing table as {notebook: (status, detail)}."""
    lines = capsys.readouterr().out.split("what was written\n")[1].strip().split("\n")
    return {line.split()[0]: (line[line.index("  "):].strip().split("  ")[0], line) for line in lines}


def start_batch(*arguments):
    return subprocess.Popen([sys.executable, "-m", "lib.batch", *arguments], cwd=results.REPOSITORY,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # a shell's "&" would have it ignored


def kernels(process):
    return [child for child in psutil.Process(process.pid).children(recursive=True)
            if "ipykernel_launcher" in " ".join(child.cmdline())]


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


@pytest.fixture
def good(notebook, places):
    """A notebook that has run once, and what its result was."""
    path = notebook("01_trial", "value = 1\nvalue")
    assert batch.main([]) == 0
    folder = results.results_root() / "small" / "01_trial"
    return path, folder, contents(folder)


# ---- refused before a kernel starts ----

@pytest.mark.parametrize(("arguments", "message"), [
    (["01", "-p", "SEEDZ", "2"], "no parameter 'SEEDZ' in 01_trial (did you mean SEEDS?)"),
    (["01", "-p", "SEEDS", "two"], "SEEDS must be int like its default 1, not 'two'"),
    (["01", "-p", "SEEDS", "1.0"], "SEEDS must be int"),
    (["01", "-p", "SEEDS", "010"], "SEEDS must be int"),
    (["01", "-p", "SEEDS", "1e3"], "SEEDS must be int"),
    (["01", "-p", "SEEDS", "True"], "SEEDS must be int"),
    (["01", "-p", "RATE", "nan"], "RATE must be float"),
    (["01", "-p", "RATE", "a half"], "RATE must be float"),
    (["01", "-p", "SHUFFLE", "1"], "SHUFFLE must be bool"),
    (["01", "-p", "LANGUAGES", "en"], 'LANGUAGES must be a JSON list like its default ["en"], not \'en\''),
    (["01", "-p", "LANGUAGES", "[1]"], "LANGUAGES must be a JSON list"),
    (["01", "-p", "LANGUAGES", '{"en": 1}'], "LANGUAGES must be a JSON list"),
    (["01", "-p", "SEEDS", "1", "2"], "write several as a JSON list: -p SEEDS '[1, 2]'"),
    (["01", "-p", "SEEDS"], "-p SEEDS takes one value"),
    (["01", "-p", "SEEDS", "1", "-p", "SEEDS", "2"], "-p SEEDS takes one value, once"),
    (["01", "-p", "PROFILE", "smoke"], "use --profile"),
    (["--profile", "smal"], "no profile 'smal' (did you mean small?)"),
    (["01", "07"], "no notebook '07'"),
    (["0"], "no notebook '0'"),
    (["trial"], "no notebook 'trial'"),
    (["02", "-p", "DATA_DIR", "no/such/folder"], "DATA_DIR: no folder 'no/such/folder'"),
    (["01", "-p", "DATA_DIR", ""], "no parameter 'DATA_DIR' in 01_trial"),
])
def test_refused_before_a_kernel_starts(notebook, monkeypatch, capsys, arguments, message):
    notebook("01_trial")
    notebook("02_public", parameters=PARAMETERS + '\nDATA_DIR = ""  # real data')
    monkeypatch.setattr(papermill, "execute_notebook", lambda *_, **__: pytest.fail("a kernel was started"))
    assert batch.main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(results.results_root().iterdir())


@pytest.mark.parametrize("parameters", ["SEEDS = 1", 'PROFILE = "small"\nN = 2 * 3', 'PROFILE = "small"\nimport os'])
def test_a_parameters_cell_holds_literals_and_the_profile(notebook, capsys, parameters):
    notebook("01_trial", parameters=parameters)
    assert batch.main([]) == 2
    assert "01_trial.ipynb must have one cell tagged `parameters`" in capsys.readouterr().err


def test_values_take_the_type_of_the_default():
    read = batch.parse_value
    assert [read("X", "3", 1), read("X", "-1_000", 1), read("X", "0", 1)] == [3, -1000, 0]
    assert [read("X", "3", 1.0), read("X", "1e-4", 1.0), read("X", ".5", 1.0)] == [3.0, 1e-4, 0.5]
    assert type(read("X", "3", 1.0)) is float
    assert [read("X", "true", False), read("X", "False", True)] == [True, False]
    assert [read("X", "010", "a"), read("X", "a=b c", ""), read("X", "None", "a")] == ["010", "a=b c", "None"]
    assert [read("X", '["en", "zh"]', ["en"]), read("X", "[]", ["en"]), read("X", "[1]", [])] == [["en", "zh"], [], [1]]


def test_selection_by_number_and_prefix(notebook):
    for name in ("02_two", "03_three", "20_summary"):
        notebook(name)
    def chosen(*wanted):
        return [job.name for job in batch.plan(wanted, "small", [])]
    assert chosen() == ["02_two", "03_three", "20_summary"]
    assert chosen("2") == chosen("02") == chosen("02_t") == ["02_two"]
    assert chosen("20", "03") == ["03_three", "20_summary"]


def test_a_parameter_goes_to_the_notebooks_that_declare_it(notebook):
    notebook("01_trial")
    notebook("02_other", parameters='PROFILE = "small"\nSTEPS = 10  # optimizer steps')
    first, second = batch.plan([], "smoke", [["STEPS", "20"]])
    assert "STEPS" not in first.parameters
    assert second.parameters == {"PROFILE": "smoke", "STEPS": 20}


def test_list_shows_titles_parameters_and_their_comments(notebook, capsys):
    notebook("01_trial")
    assert batch.main(["--list"]) == 0
    shown = capsys.readouterr().out
    assert "01_trial    01 · Is it so?" in shown
    assert "SEEDS = 1" in shown
    assert "repeats" in shown


# ---- a good run ----

def test_a_finished_notebook_is_whole_clean_and_indexed(good):
    _, folder, files = good
    assert {"01_trial.ipynb", "01_trial.html", "findings.json", "provenance.json", "tables/scores.csv"} == set(files)
    document = json.loads(files["01_trial.ipynb"])
    text = files["01_trial.ipynb"].decode()
    assert "It is **1.00**<!--value-->" in "".join(document["cells"][0]["source"])
    assert not [word for word in ("start_time", "duration", "iopub", str(results.REPOSITORY)) if word in text]
    page = files["01_trial.html"].decode()
    assert not [word for word in ("<script", "http://", "https://") if word in page]
    assert files["provenance.json"]["files"] == sorted(files)
    assert "small/01_trial/tables/scores.csv" in (results.results_root() / "README.md").read_text()
    assert [path.name for path in results.results_root().iterdir() if path.name.startswith(".")] == []


def test_parameters_reach_the_kernel_and_the_provenance(notebook):
    notebook("01_trial", 'assert (PROFILE, SEEDS, LANGUAGES, SHUFFLE) == ("smoke", 3, ["zh", "ja"], False)')
    given = ["--profile", "smoke", "-p", "SEEDS", "3", "-p", "LANGUAGES", '["zh", "ja"]', "-p", "SHUFFLE", "false"]
    assert batch.main(["01", *given]) == 0
    assert json.loads((results.results_root() / "smoke/01_trial/findings.json").read_text()) == {"value": 3}
    provenance = json.loads((results.results_root() / "smoke/01_trial/provenance.json").read_text())
    assert provenance["parameters"] == {
        "PROFILE": "smoke", "SEEDS": 3, "RATE": 0.5, "LANGUAGES": ["zh", "ja"], "SHUFFLE": False}


def test_real_data_goes_to_its_own_folder(notebook, places):
    data = places / "data"
    data.mkdir()
    (places / "elsewhere").mkdir()
    (data / "a.txt").write_text("one")
    (data / "linked").symlink_to(places / "elsewhere")
    start = START.replace("LANGUAGES=LANGUAGES", "DATA_DIR=DATA_DIR").format(name="01_trial")
    notebook("01_trial", start, parameters=PARAMETERS + '\nDATA_DIR = ""  # real data')
    assert batch.main(["-p", "DATA_DIR", str(data)]) == 0
    provenance = json.loads((results.results_root() / "small-public/01_trial/provenance.json").read_text())
    assert provenance["backend"] == "public-data"
    (job,) = batch.plan([], "small", [["DATA_DIR", str(data)]])
    assert batch.is_current(job)
    (places / "elsewhere/b.txt").write_text("of a linked folder")
    assert not batch.is_current(job)
    (places / "elsewhere/b.txt").unlink()
    assert batch.is_current(job)
    (data / "a.txt").write_text("more than one")
    assert not batch.is_current(job)


def test_unchanged_is_skipped_and_force_gives_the_same_bytes(good, capsys, monkeypatch):
    _, folder, files = good
    with monkeypatch.context() as patch:
        patch.setattr(papermill, "execute_notebook", lambda *_, **__: pytest.fail("a kernel was started"))
        assert batch.main([]) == 0
        assert summary(capsys)["01_trial"][0] == "unchanged"
    inode, provenance = folder.stat().st_ino, (folder / "provenance.json").read_bytes()
    assert batch.main(["--force"]) == 0
    assert summary(capsys)["01_trial"][0] == "done"
    assert contents(folder) == files
    assert (folder / "provenance.json").read_bytes() == provenance, "made again from the same inputs: the commit and time stay"
    assert folder.stat().st_ino != inode


def test_what_makes_a_result_old(good, notebook):
    path, folder, _ = good
    def current(given=()):
        (job,) = batch.plan([], "small", given)
        return batch.is_current(job)
    assert current()
    assert not current([["SEEDS", "2"]])
    text = path.read_text()
    path.write_text(text.replace("**0.00**", "**1.00**"))  # a quoted number is a result, not an input
    assert current()
    path.write_text(text.replace("It is", "It was"))
    assert not current()
    path.write_text(text.replace("value = 1", "value = 2"))
    assert not current()
    path.write_text(text)
    assert current()
    (folder / "tables/scores.csv").unlink()
    assert not current()


def test_a_skip_imports_nothing_heavy(good):
    code = ("import sys; from lib import batch; assert batch.main([]) == 0\n"
            "print({'torch', 'transformers', 'papermill', 'pandas', 'matplotlib'} & set(sys.modules))")
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=results.REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("set()"), done.stdout


def test_fill_puts_findings_into_the_sources(good):
    path, *_ = good
    readme = path.parent.parent / "README.md"
    readme.write_text("It is **9.0**<!--n01_value-->.")
    assert list(fill_sources(batch.plan([], "small", [])))
    assert readme.read_text() == "It is **1.0**<!--n01_value-->."
    cell = json.loads(path.read_text())["cells"][0]
    assert "It is **1.00**<!--value-->" in "".join(cell["source"])
    assert batch.is_current(batch.plan([], "small", [])[0])


# ---- failures: seen, named, and the earlier result untouched ----

FULL_DISK = ("import errno, os\nfrom unittest import mock\nfull = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))\n"
             'with mock.patch("os.fsync", side_effect=full):\n    save_table(run, "scores", pd.DataFrame())')
FAILURES = {
    "raises": ("1 / 0", "cell [4]: ZeroDivisionError: division by zero"),
    "exits with 0": ("import sys\nsys.exit(0)", "SystemExit 0"),
    "exits with 3": ("import sys\nsys.exit(3)", "SystemExit"),
    "is killed": ("import os\nos.kill(os.getpid(), 9)", "the kernel died"),
    "fills the disk": (FULL_DISK, "OSError: [Errno 28] No space left on device"),
    "shows a secret": ('print("hf_" + "a1B2" * 8)', "01_trial.ipynb holds what looks like a token (hf_a...); not kept"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failure_is_seen_and_replaces_nothing(good, notebook, capsys, case):
    _, folder, files = good
    cell, cause = FAILURES[case]
    notebook("01_trial", cell)
    assert batch.main([]) == 1
    status, line = summary(capsys)["01_trial"]
    assert status == "failed"
    assert cause in line
    assert contents(folder) == files
    assert not list(results.results_root().glob(".staging-*"))
    kept = results.results_root() / ".failed/small/01_trial.ipynb"
    assert kept.exists() == (case != "shows a secret")
    assert not kept.exists() or str(results.REPOSITORY) not in kept.read_text()


def test_findings_must_be_written_in_this_run(good, notebook, capsys):
    _, folder, files = good
    notebook("01_trial", end="pass")
    assert batch.main([]) == 1
    assert "findings.json was not written" in summary(capsys)["01_trial"][1]
    assert contents(folder) == files


def test_a_quoted_finding_that_does_not_exist_is_a_failure(notebook, capsys):
    notebook("01_trial", end='save_findings(run, {"other": 1})')
    assert batch.main([]) == 1
    assert "quotes the finding 'value'" in summary(capsys)["01_trial"][1]


def test_a_notebook_cut_short_without_an_error_is_a_failure(tmp_path):
    """A time limit inside papermill leaves cells that count as completed; the execution counts tell."""
    def cell(count, outputs=()):
        return {"cell_type": "code", "source": ["1"], "execution_count": count, "outputs": list(outputs)}
    path = tmp_path / "a.ipynb"
    (tmp_path / "findings.json").write_text("{}")
    def write(*cells, exception=None):
        path.write_text(json.dumps({"cells": cells, "metadata": {"papermill": {"exception": exception}}}))
        return path
    batch.check_executed(write(cell(1), cell(2)))
    with pytest.raises(RuntimeError, match="1 of 2 code cells did not run"):
        batch.check_executed(write(cell(1), cell(None)))
    with pytest.raises(RuntimeError, match="0 of 0 code cells"):
        batch.check_executed(write())
    with pytest.raises(RuntimeError, match="papermill recorded an exception"):
        batch.check_executed(write(cell(1), exception=True))
    with pytest.raises(RuntimeError, match="ended with KeyboardInterrupt"):
        batch.check_executed(write(cell(1, [{"output_type": "error", "ename": "KeyboardInterrupt", "evalue": ""}])))


@pytest.mark.parametrize("where", ["papermill writes", "results are finished", "the folder is moved"])
def test_a_full_disk_outside_the_kernel_replaces_nothing(good, notebook, capsys, monkeypatch, where):
    _, folder, files = good
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    patched = {"papermill writes": (papermill, "execute_notebook"), "results are finished": (results.os, "fsync"),
               "the folder is moved": (results, "publish")}[where]
    with monkeypatch.context() as patch:
        patch.setattr(*patched, full)
        patch.setattr(results, "write_index", lambda: None)
        assert batch.main(["--force"]) == 1
    assert "OSError: [Errno 28] No space left on device" in summary(capsys)["01_trial"][1]
    assert contents(folder) == files


def test_a_time_limit_ends_the_kernel_and_what_it_started(good, notebook):
    _, folder, files = good
    notebook("01_trial", 'import subprocess, time\nsubprocess.Popen(["sleep", "600"])\ntime.sleep(600)')
    started = time.monotonic()
    process = start_batch("--time-limit", "5")
    wait_for(lambda: kernels(process))
    family = psutil.Process(process.pid).children(recursive=True)
    shown, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "time limit of 5 s reached" in shown
    assert time.monotonic() - started < 30
    wait_for(lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in family), 5)
    assert contents(folder) == files


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_end_of_the_batch_ends_the_kernel_and_the_next_call_tidies(good, notebook, number):
    path, folder, files = good
    text = path.read_text()
    notebook("01_trial", "import time\ntime.sleep(600)")
    process = start_batch()
    wait_for(lambda: kernels(process) and list(results.results_root().glob(".staging-*/01_trial.ipynb")))
    (kernel,) = kernels(process)
    process.send_signal(number)
    shown, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert ("interrupted" in shown) == (number != signal.SIGKILL)
    wait_for(lambda: not kernel.is_running() or kernel.status() == psutil.STATUS_ZOMBIE, 20)
    assert contents(folder) == files
    path.write_text(text)
    assert batch.main([]) == 0
    assert not list(results.results_root().glob(".staging-*"))


def test_a_kill_between_the_two_moves_is_mended(good):
    _, folder, files = good
    folder.rename(folder.with_name(".old-01_trial"))
    results.tidy()
    assert contents(folder) == files
    folder.with_name(".old-01_trial").mkdir()  # killed after the second move
    results.tidy()
    assert contents(folder) == files
    assert not list(folder.parent.glob(".old-*"))


def test_a_staging_folder_in_use_is_left_alone(places):
    with results.staging_folder("01_trial") as staging:
        results.tidy()
        assert staging.exists()
    assert not staging.exists()


# ---- several notebooks ----

def test_one_failure_stops_only_what_depends_on_it(notebook, capsys):
    notebook("01_bad", "1 / 0")
    notebook("02_needs_it", upstream=["01_bad"])
    notebook("03_free")
    notebook("04_needs_both", upstream=["02_needs_it", "03_free"])
    assert batch.main([]) == 1
    seen = summary(capsys)
    assert {name: status for name, (status, _) in seen.items()} == {
        "01_bad": "failed", "02_needs_it": "not run", "03_free": "done", "04_needs_both": "not run"}
    assert "needs 01" in seen["02_needs_it"][1]
    assert "needs 02" in seen["04_needs_both"][1]


def test_stop_on_error_stops(notebook, capsys):
    notebook("01_bad", "1 / 0")
    notebook("02_free")
    assert batch.main(["--stop-on-error", "--jobs", "1"]) == 1
    assert summary(capsys)["02_free"][0] == "not run"


# ---- side by side ----

def spans(*names):
    """When each notebook was running: the time in its own findings, in seconds."""
    return [json.loads((results.results_root() / "small" / name / "findings.json").read_text()) for name in names]


SLEEPS = "import time, os\nstart = time.time() % 10_000\ntime.sleep(2)"  # findings have six digits
ENDS = """from lib.results import save_findings
save_findings(run, {"value": 1, "start": start, "end": time.time() % 10_000, "threads": int(os.environ.get("OMP_NUM_THREADS", 0))})"""


@pytest.fixture
def sleeper(notebook, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    return lambda name, **more: notebook(name, SLEEPS, end=ENDS, **more)


def test_two_run_at_a_time_and_the_third_when_one_has_ended(sleeper):
    """Two of three overlap, never three, and each has half of the cores."""
    names = [sleeper(name).stem for name in ("01_first", "02_second", "03_third")]
    assert batch.main(["--jobs", "2"]) == 0
    first, second, third = spans(*names)
    assert max(first["start"], second["start"]) < min(first["end"], second["end"])
    assert third["start"] > min(first["end"], second["end"])
    assert {each["threads"] for each in (first, second, third)} == {3}


def test_what_needs_or_shows_another_waits_for_it(sleeper):
    names = [sleeper("01_first").stem, sleeper("02_needs_it", upstream=["01_first"]).stem, sleeper("03_reads_it", reads=["02_needs_it"]).stem]
    assert batch.main(["--jobs", "3"]) == 0
    first, second, third = spans(*names)
    assert first["end"] < second["start"]
    assert second["end"] < third["start"]


def test_a_notebook_that_measures_has_the_machine_to_itself(sleeper):
    names = [sleeper("01_first").stem, sleeper("02_measures", alone=True).stem, sleeper("03_second").stem]
    assert batch.main(["--jobs", "2"]) == 0
    first, measures, second = spans(*names)
    assert max(first["start"], second["start"]) < min(first["end"], second["end"])
    assert measures["start"] > max(first["end"], second["end"])
    assert measures["threads"] == 0  # all that there are


def test_a_process_that_dies_takes_no_other_notebook_with_it(notebook, capsys):
    """The kernel kills what started it, as a machine short of memory might."""
    notebook("01_dies", "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)")
    notebook("02_free", "import time\ntime.sleep(4)")
    assert batch.main(["--jobs", "2"]) == 1
    seen = summary(capsys)
    assert seen["01_dies"][0] == "failed"
    assert "BrokenProcessPool" in seen["01_dies"][1]
    assert seen["02_free"][0] == "done"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_end_of_the_batch_ends_all_of_them(notebook, number):
    for name in ("01_first", "02_second"):
        notebook(name, "import time\ntime.sleep(600)")
    process = start_batch("--jobs", "2")
    wait_for(lambda: len(kernels(process)) == 2 and len(list(results.results_root().glob(".staging-*/0*.ipynb"))) == 2)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    shown, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert ("interrupted" in shown) == (number != signal.SIGKILL)
    wait_for(lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in family), 20)
    results.tidy()
    assert not list(results.results_root().glob(".staging-*"))


def test_upstream_must_have_run_and_its_findings_count_as_input(notebook, capsys):
    notebook("01_first")
    notebook("02_second", upstream=["01_first"])
    assert batch.main(["02"]) == 1
    assert "needs 01: ./run_all.sh 01" in summary(capsys)["02_second"][1]
    assert batch.main([]) == 0
    assert batch.is_current(batch.plan(["02"], "small", [])[0])
    (results.results_root() / "small/01_first/findings.json").write_text('{"value": 2}')
    assert not batch.is_current(batch.plan(["02"], "small", [])[0])


def test_what_is_only_read_need_not_be_there_but_counts_as_input(notebook, capsys):
    notebook("01_first")
    notebook("02_second", reads=["01_first"])
    assert batch.main(["02"]) == 0
    assert batch.is_current(batch.plan(["02"], "small", [])[0])
    assert batch.main(["01"]) == 0
    assert not batch.is_current(batch.plan(["02"], "small", [])[0])


# ---- the kernel ----

def test_the_kernel_is_this_environments_whatever_the_user_has(notebook, places, monkeypatch):
    foreign = places / "jupyter" / "kernels" / "python3"
    foreign.mkdir(parents=True)
    (foreign / "kernel.json").write_text('{"argv": ["false"], "display_name": "not ours", "language": "python"}')
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(places / "jupyter"))
    notebook("01_trial", f"import os, sys\nassert sys.executable == {sys.executable!r}\n"
                         f"assert os.getcwd() == {str(results.REPOSITORY)!r}")
    assert batch.main([]) == 0


# ---- what it would cost, and a batch job ----

def test_a_dry_run_shows_stages_and_recipes_and_trains_nothing(places, monkeypatch, capsys):
    """By hand: 1e9 tokens of (6 x 8.03e9 + 12 x 32 x 4096 x 2048) FLOPs, at half of 989e12 a second, are 28.9 hours."""
    monkeypatch.delenv("NOTEBOOKS_DIR")
    assert batch.main(["02", "04", "--profile", "full", "--dry-run", "-p", "MFU", "0.5", "-p", "BASE_MODEL", "meta-llama/Meta-Llama-3-8B"]) == 0
    shown = capsys.readouterr().out
    (line,) = [line for line in shown.split("\n") if "inject-papers_books-8B" in line]  # 04 takes it from 02
    assert line.split() == "02 inject-papers_books-8B 8.03 1 5.14e+19 118 1 H200 28.9 28.9 - -".split()
    assert "9 of 9 stages computed, each once" in shown
    assert batch.main(["02", "--dry-run", "-p", "DEVICE", "V100"]) == 1
    assert "DEVICE is one of A100, H100" in capsys.readouterr().out
    assert not list((places / "runs_root").iterdir())
    assert {path.name for path in (places / "results_root").iterdir()} <= {".plan"}  # a plan replaces no result


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A copy of the scripts with a fake environment, and a fake Slurm that runs a copy of the job elsewhere, as the real one does."""
    home, tools = tmp_path / "home", tmp_path / "tools"
    scripts = {home / ".venv/bin/python": 'echo "$RUNS_ROOT|$RESULTS_ROOT|$*"; [ -z "${NAP:-}" ] || exec sleep "$NAP"',
               tools / "sbatch": f'cp "$1" {tmp_path}/job; shift; SLURM_JOB_ID=7 SLURM_SUBMIT_DIR=$PWD exec bash {tmp_path}/job "$@"',
               tools / "srun": 'exec "$@"', tools / "scontrol": 'echo "scontrol $*"'}
    for path, text in scripts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    for name in ("run_all.sh", "environment.yml", "environment.lock", "lib/knowledge/slurm.sh"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes((results.REPOSITORY / name).read_bytes())
    (home / "run_all.sh").chmod(0o755)
    pins = subprocess.run("cat environment.yml environment.lock | cksum", shell=True, cwd=home, capture_output=True, text=True, check=True)
    (home / ".venv/.set-up-for").write_text(pins.stdout)
    for name in ("CONDA_PREFIX", "RUNS_ROOT", "RESULTS_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    return home, f"{tools}:/usr/bin:/bin"


def test_slurm_hands_its_arguments_to_the_full_profile(cluster, monkeypatch):
    home, path = cluster
    call = [str(home / "run_all.sh"), "slurm", "02", "-p", "BASE_MODEL", "a b"]
    refused = subprocess.run(call, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "there is no sbatch here" in refused.stderr
    monkeypatch.setenv("PATH", path)
    done = subprocess.run(call, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{home}/runs|{home}/results|-m lib.batch --profile full 02 -p BASE_MODEL a b\n"


def test_a_job_whose_time_is_up_goes_back_into_the_queue(cluster, monkeypatch):
    home, path = cluster
    monkeypatch.setenv("PATH", path)
    monkeypatch.setenv("NAP", "5")
    process = subprocess.Popen([str(home / "run_all.sh"), "slurm"], stdout=subprocess.PIPE, text=True)
    assert "-m lib.batch --profile full" in process.stdout.readline()
    process.terminate()
    assert process.stdout.readline() == "the time is nearly up: back into the queue\n"
    assert process.stdout.readline() == "scontrol requeue 7\n"
    assert process.wait(timeout=60) != 0
