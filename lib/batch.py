"""Papermill done strictly: one notebook or all, refused early, complete or not kept, skipped when nothing changed."""
import argparse
import ast
import concurrent.futures
import contextlib
import difflib
import glob
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from unittest import mock
import yaml
from lib import results
from lib.results import REPOSITORY, fill_answer, results_root, write_atomically
# papermill and psutil are imported where they are used: skipping a finished run must not wait for them.

@dataclass(frozen=True)
class Job:
    """A notebook, read without executing it, and the parameters that it is to be run with."""
    path: Path
    cells: list
    upstream: tuple  # names of the notebooks that must have run before it
    reads: tuple  # and of those whose results it shows where they are there
    alone: bool  # it measures times, so that nothing else may run beside it
    declared: dict  # name -> (default, help), from its parameters cell
    parameters: dict  # name -> value
    @property
    def name(self):
        return self.path.stem
    @property
    def folder(self):
        return results_root() / results.profile_folder(self.parameters) / self.name
def read_job(path, profile="small"):
    """A source with its defaults; raises ValueError where its `parameters` cell is missing, doubled or not literal."""
    document = json.loads(path.read_text(encoding="utf-8"))
    cells = [cell | {"source": "".join(cell["source"])} for cell in document["cells"]]
    tagged = [cell["source"] for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    try:
        (source,) = tagged
        declared = parse_parameters(source)
        values = {name: profile if name == "PROFILE" else default for name, (default, _) in declared.items()}
        results.profile_folder(values)  # a notebook without PROFILE fails here
    except (ValueError, AttributeError, SyntaxError, KeyError) as error:
        raise ValueError(f"{path.name} must have one cell tagged `parameters`, of plain `NAME = literal` lines, "
                         f"with PROFILE ({len(tagged)} tagged; {error})") from None
    about = document["metadata"]
    return Job(path, cells, tuple(about.get("upstream", ())), tuple(about.get("reads", ())), about.get("alone", False), declared, values)
def parse_parameters(source):
    """The literal assignments of a parameters cell as name -> (default, help).
    >>> parse_parameters('SEEDS = 2  # repeats of every run')
    {'SEEDS': (2, 'repeats of every run')}"""
    parameters, lines = {}, source.encode().splitlines()  # ast counts columns in bytes
    for line in ast.parse(source).body:
        (target,) = line.targets if isinstance(line, ast.Assign) else (line.target,)
        comment = lines[line.end_lineno - 1][line.end_col_offset:].decode().partition("#")[2]
        parameters[target.id] = (ast.literal_eval(line.value), comment.lstrip("# "))
    return parameters
def parse_value(name, text, default):
    """A command-line value in the type of the notebook's default; raises ValueError where it does not fit.
    >>> parse_value("SEEDS", "3", 1), parse_value("RATE", "1", 0.5), parse_value("LANGUAGES", '["en"]', ["en", "zh"])
    (3, 1.0, ['en'])"""
    kind = type(default)
    try:
        value = text if kind is str else json.loads(text) if kind in (list, dict) else ast.literal_eval(text.title())  # true, or True
    except (ValueError, SyntaxError):
        value = None
    value = float(value) if kind is float and type(value) is int else value
    if type(value) is not kind or kind is list and default and {type(item) for item in value} - {type(default[0])}:
        wanted = {list: "a JSON list", dict: "a JSON object"}.get(kind, kind.__name__)
        raise ValueError(f"{name} must be {wanted} like its default {json.dumps(default)}, not {text!r}")
    return value

def plan(wanted, profile, given):
    """The jobs of one call; raises ValueError for an unknown notebook, profile or parameter and for a wrong type.
    wanted: numbers or prefixes (04, 4, 04_abl), none for all. given: [name, text] pairs, for the notebooks that declare them; one must."""
    from lib.profiles import PROFILES
    if profile not in PROFILES:
        raise ValueError(f"no profile {profile!r}{_nearest(profile, PROFILES)}")
    sources = Path(os.environ.get("NOTEBOOKS_DIR") or REPOSITORY / "notebooks")
    jobs = {path.stem: read_job(path, profile) for path in sorted(sources.glob("[0-9]*.ipynb"))}
    prefixes = [f"{int(text):02d}_" if text.isdigit() else text for text in wanted]  # 2 means 02, not 20
    for text, prefix in zip(wanted or ["*"], prefixes or [""], strict=True):
        if not any(name.startswith(prefix) for name in jobs):
            raise ValueError(f"no notebook {text!r}{_nearest(text, jobs)}")
    chosen = sorted((jobs[name] for name in jobs if name.startswith(tuple(prefixes or [""]))), key=lambda job: bool(job.reads))  # readers last
    declared = {name for job in chosen for name in job.declared} - {"PROFILE"}
    for name, *values in given:
        if name not in declared:
            hint = "; use --profile" if name == "PROFILE" else _nearest(name, declared)
            raise ValueError(f"no parameter {name!r} in {', '.join(job.name for job in chosen)}{hint}")
        if len(values) != 1 or [other for other, *_ in given].count(name) > 1:
            hint = f"write several as a JSON list: -p {name} '[1, 2]' (and name notebooks before -p)"
            raise ValueError(f"-p {name} takes one value, once; {hint}")
        if name == "DATA_DIR" and values[0] not in ("", "hub") and not (REPOSITORY / values[0]).is_dir():
            raise ValueError(f"DATA_DIR: no folder {values[0]!r} (a relative path starts at the repository)")
    for job in chosen:
        job.parameters.update({name: parse_value(name, text, job.parameters[name]) for name, text in given if name in job.declared})
    return chosen
def _nearest(name, names):
    near = difflib.get_close_matches(name, list(names), n=1)
    return f" (did you mean {near[0]}?)" if near else f"; there are {', '.join(sorted(names)) or 'none'}"

def input_hash(job):
    """A hash of all a result depends on: notebook without quoted numbers, lib, parameters, upstream, data."""
    digest = hashlib.sha256(json.dumps(job.parameters, sort_keys=True).encode())
    for cell in job.cells:
        digest.update(cell["cell_type"].encode() + results.BOLD_FINDING.sub(r"<!--\2\3-->", cell["source"]).encode())
    read = ("lib/**/*.py", "lib/knowledge/**/*.*", "results/reported/*.csv")
    for path in sorted(path for pattern in read for path in REPOSITORY.glob(pattern)):
        digest.update(str(path.relative_to(REPOSITORY)).encode() + path.read_bytes())
    for findings in (_upstream_findings(job, name) for name in job.upstream + job.reads):
        digest.update(findings.read_bytes() if findings else b"none")
    if job.parameters.get("DATA_DIR"):
        data = REPOSITORY / job.parameters["DATA_DIR"]  # names and sizes: reading all would take too long
        found = (name for name in glob.iglob("**", root_dir=data, recursive=True) if (data / name).is_file())  # it goes into linked folders
        digest.update("\n".join(sorted(f"{name} {(data / name).stat().st_size}" for name in found)).encode())
    return digest.hexdigest()
def _upstream_findings(job, name):
    """An earlier notebook's findings.json: of the same data, else of the profile; None where it has not run."""
    places = (job.folder.parent / name, results_root() / job.parameters["PROFILE"] / name)
    return next((place / "findings.json" for place in places if (place / "findings.json").exists()), None)
def is_current(job):
    """Whether the result in place is whole and was made from the inputs of now."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        provenance = json.loads((job.folder / "provenance.json").read_text(encoding="utf-8"))
        return all((job.folder / name).is_file() for name in provenance["files"]) and provenance["input_hash"] == input_hash(job)
    return False

def run_job(job, time_limit=None):
    """Execute one notebook and put its folder in place of the earlier one; return (status, what was written or why)."""
    started, before = time.monotonic(), input_hash(job)
    try:
        with results.staging_folder(job.name) as staging:
            try:
                execute(job, staging, time_limit=time_limit)
                check_executed(staging / f"{job.name}.ipynb")
                minutes = round((time.monotonic() - started) / 60, 2)
                files = finish(job, staging, {"parameters": job.parameters, "input_hash": before, "wall_minutes": minutes})
                results.publish(staging, job.folder)
            except Exception as error:
                return "failed", f"{_cause(error)}; {_keep_failed(job, staging)}"
    except OSError as error:  # no staging folder; whatever went wrong, the other notebooks go on
        return "failed", _cause(error)
    tables, figures = (sum(name.endswith(suffix) for name in files) for suffix in (".csv", ".png"))
    return "done", f"tables: {tables}, figures: {figures}, in {results.hide_paths(str(job.folder))}"

def execute(job, staging, *, time_limit=None):
    """Papermill in a thread, so that this one can show progress, keep the time limit and stop the kernel."""
    import papermill
    injected = {name: value for name, value in job.parameters.items() if name == "PROFILE" or value != job.declared[name][0]}
    with (tempfile.TemporaryDirectory(prefix="kernel-", ignore_cleanup_errors=True) as scratch,
          mock.patch.dict(os.environ, RESULTS_STAGING=str(staging), PROGRESS_FILE=f"{scratch}/progress",
                          PYTHONHASHSEED="0", PYTHONWARNINGS="ignore:IProgress not found",  # tqdm, which shows no bar here
                          JUPYTER_RUNTIME_DIR=scratch, IPYTHONDIR=scratch,
                          JUPYTER_PATH=f"{sys.prefix}/share/jupyter",  # this environment's kernel, not another's
                          MPLBACKEND="module://matplotlib_inline.backend_inline"),
          concurrent.futures.ThreadPoolExecutor(1) as pool):
        future = pool.submit(papermill.execute_notebook, str(job.path), str(staging / f"{job.name}.ipynb"), injected, kernel_name="python3",
                             language="python", progress_bar=False, log_output=False, cwd=str(REPOSITORY), start_timeout=120,
                             iopub_timeout=60, coalesce_streams=True, extra_arguments=["--log-level=CRITICAL"])
        if not _watch(future, job.name, Path(scratch) / "progress", time_limit):
            raise TimeoutError(f"time limit of {time_limit} s reached")
        future.result()
def _watch(future, name, progress, time_limit):
    """Wait for the thread; False where the time limit came first. An interrupt ends the kernel, too."""
    started = time.monotonic()
    try:
        while not concurrent.futures.wait([future], timeout=0.5).done:
            elapsed = time.monotonic() - started
            if sys.stdout.isatty():
                last = progress.read_text(errors="replace").strip().split("\n")[-1] if progress.exists() else ""
                line = f"{name}  {elapsed // 60:.0f}:{elapsed % 60:02.0f}  {last}"
                print(f"\r\033[K{line[:shutil.get_terminal_size().columns - 1]}", end="", flush=True)
            if (batch := multiprocessing.parent_process()) and not batch.is_alive():  # killed, and nobody waits for this process any more
                os._exit(_kill_children() or 1)
            if time_limit and elapsed > time_limit:
                return False
        return True
    finally:
        while not concurrent.futures.wait([future], timeout=0.5).done:
            _kill_children()  # the kernel and what it started
def _kill_children():
    import psutil
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            process.kill()

def check_executed(path):
    """Raise RuntimeError unless every code cell ran, none failed, and findings.json was written beside the notebook."""
    document = json.loads(path.read_text(encoding="utf-8"))
    cells = [cell for cell in document["cells"] if cell["cell_type"] == "code" and "".join(cell["source"]).strip()]
    errors = [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]
    missed = [cell for cell in cells if not cell["execution_count"]]
    if errors:
        raise RuntimeError(f"a cell ended with {errors[0]['ename']} {errors[0]['evalue']}, which papermill lets pass")
    if missed or not cells:
        raise RuntimeError(f"{len(missed)} of {len(cells)} code cells did not run")
    if document["metadata"].get("papermill", {}).get("exception"):
        raise RuntimeError("papermill recorded an exception")
    if not (path.parent / "findings.json").exists():
        raise RuntimeError("findings.json was not written: the last cell must call save_findings(...)")
def finish(job, staging, facts):
    """Quote the findings, strip clock and machine, refuse secrets, export HTML, complete provenance; return files."""
    path = staging / f"{job.name}.ipynb"
    document = json.loads(path.read_text(encoding="utf-8"))
    document["metadata"]["papermill"] = {"parameters": document["metadata"]["papermill"]["parameters"]}  # it holds times and paths, too
    for number, cell in enumerate(document["cells"]):  # ids are random, cell metadata holds times
        cell["id"] = f"cell-{number:02d}"
        cell["metadata"] = {key: value for key, value in cell["metadata"].items() if key == "tags" and value}
    findings = json.loads((staging / "findings.json").read_text(encoding="utf-8"))
    first = document["cells"][0]
    first["source"] = fill_answer("".join(first["source"]), findings).splitlines(keepends=True)
    write_atomically(path, results.to_json(document, indent=1))
    for file in (item for item in staging.rglob("*") if item.suffix in (".ipynb", ".csv", ".json", ".jsonl")):
        text = results.hide_paths(file.read_text(encoding="utf-8"))
        if secret := results.find_secret(text):
            raise RuntimeError(f"{file.relative_to(staging)} holds {secret}; not kept")
        write_atomically(file, text)
    write_atomically(path.with_suffix(".html"), results.to_html(path, first["source"][0].strip("# \n")))
    files = sorted(item.relative_to(staging).as_posix() for item in staging.rglob("*") if item.is_file())
    files.remove(".lock")
    provenance = json.loads((staging / "provenance.json").read_text(encoding="utf-8")) | facts | {"files": files}
    with contextlib.suppress(OSError, ValueError):  # what is made again from the same inputs keeps its commit and time: git sees no change
        kept, varies = json.loads((job.folder / "provenance.json").read_text(encoding="utf-8")), dict.fromkeys(("commit", "wall_minutes"))
        provenance = kept if kept | varies == provenance | varies else provenance
    write_atomically(staging / "provenance.json", results.hide_paths(results.to_json(provenance)))
    return files
def _keep_failed(job, staging):
    """Keep the executed copy of a failed run apart, unless it holds a secret; return where, in words."""
    path = results_root() / ".failed" / job.folder.parent.name / f"{job.name}.ipynb"
    try:
        text = results.hide_paths((staging / path.name).read_text(encoding="utf-8"))
        if secret := results.find_secret(text):
            return f"no copy of the failed run was kept: it holds {secret}"
        write_atomically(path, text)
    except (OSError, ValueError) as error:
        return f"no copy of the failed run was kept ({type(error).__name__})"
    return f"see {results.hide_paths(str(path))}"
def _cause(error):
    """A failure in one line: in which cell, what."""
    if type(error).__name__ == "DeadKernelError":
        return "the kernel died (killed, or out of memory)"
    cell = f"cell [{error.exec_count}]: {error.ename}: {error.evalue}" if hasattr(error, "exec_count") else ""
    return " ".join((cell or f"{type(error).__name__}: {error}").split())[:400]
def run_jobs(jobs, *, together=1, **how):
    """Run the jobs in order, up to `together` at a time; yields (job, status, minutes, detail) of each as it ends. A job waits for those it needs or
    shows; one that measures times has the machine to itself. how: force, stop_on_error, time_limit."""
    waiting, running, broken = list(jobs), {}, []  # future -> (job, its start); names of notebooks that failed or did not run
    try:
        while waiting or running:
            ahead = {job.name for job in (*waiting, *(job for job, _ in running.values()))}
            for job in [job for job in waiting if not ahead & {*job.upstream, *job.reads}]:
                if len(running) < together and not (running and any(each.alone for each in (job, *(other for other, _ in running.values())))):
                    waiting.remove(job)
                    running[_start(job, broken, together=together, **how)] = job, time.monotonic()
            for future in concurrent.futures.wait(running, return_when="FIRST_COMPLETED").done:
                job, started = running.pop(future)
                status, detail = ("failed", _cause(future.exception())) if future.exception() else future.result()
                broken += [job.name] * (status in ("failed", "not run"))
                yield job, status, (time.monotonic() - started) / 60, detail
    finally:
        _kill_children() if running else None
def _start(job, broken, *, together, force=False, stop_on_error=False, time_limit=None):
    """A future of (status, detail): of what need not or cannot run, of a job that has run here, or of one that runs in a process of its own."""
    needed = " ".join(name.split("_")[0] for name in job.upstream if name in broken or not _upstream_findings(job, name))
    known = (("not run", f"stopped after {broken[0]}") if broken and stop_on_error else
             ("not run", f"needs {needed}: ./run_all.sh {needed} --profile {job.parameters['PROFILE']}") if needed else
             ("unchanged", f"kept {results.hide_paths(str(job.folder))} (--force runs it again)") if not force and is_current(job) else
             run_job(job, time_limit) if together == 1 or job.alone else None)
    apart = concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) if not known else concurrent.futures.ThreadPoolExecutor(1)
    with mock.patch.dict(os.environ, {"OMP_NUM_THREADS": str(max(1, os.cpu_count() // together))} | os.environ):  # the process starts with the call
        future = apart.submit(*((run_job, job, time_limit) if not known else (tuple, known)))
    apart.shutdown(wait=False)
    return future
def parse_arguments(arguments):
    """The command line, as lib/knowledge/arguments.yaml declares it."""
    parser = argparse.ArgumentParser(prog="run_all.sh", description=__doc__, allow_abbrev=False)
    parser.register("type", "int", int)
    for names, told in yaml.safe_load((results.KNOWLEDGE / "arguments.yaml").read_text(encoding="utf-8")):
        parser.add_argument(*names, **told)
    return parser.parse_intermixed_args(arguments)

def main(arguments=None):
    """Run the batch; the exit status is 0 if all went well, 1 if any failed, 2 if the call was refused."""
    options = parse_arguments(arguments)
    try:
        if options.dry_run:
            os.environ["RESULTS_ROOT"] = str(results_root() / ".plan")  # no result is replaced
            options.given.append(["NOTEBOOKS", " ".join(job.name[:2] for job in plan(options.notebooks, options.profile, []))])
        jobs = plan(["15"] if options.dry_run else options.notebooks, options.profile, options.given)
        if options.list:
            print(results.fill_template("list.txt", jobs=jobs), end="")
            return 0
    except ValueError as error:
        print(f"refused: {error}", file=sys.stderr)
        return 2
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # end the kernel as after Ctrl-C
    rows = [("notebook", "status", "minutes", "what was written")]
    try:
        results.tidy()
        together = options.jobs or (max(1, min(4, os.cpu_count() // 2)) if options.profile == "small" and len(jobs) > 1 else 1)
        for job, status, minutes, detail in run_jobs(jobs, together=together, force=options.force, stop_on_error=options.stop_on_error,
                                                     time_limit=options.time_limit):
            rows.append((job.name, status, f"{minutes:.1f}", detail))
            print("\r\033[K" * sys.stdout.isatty() + f"{job.name}: {status}, {minutes:.1f} min", flush=True)
    except KeyboardInterrupt:
        rows.append((next(job.name for job in jobs if job.name not in next(zip(*rows))), "interrupted", "", "the next call goes on from there"))
    width = max(len(row[0]) for row in rows)
    print("", *(f"{row[0]:{width}}  {row[1]:11}  {row[2]:>7}  {row[3]}" for row in rows), sep="\n")
    if options.dry_run and rows[1][1] in ("done", "unchanged"):
        print((jobs[0].folder / "plan.txt").read_text())
    results.write_index()
    return 0 if all(status in ("done", "unchanged") for _, status, *_ in rows[1:]) else 1

if __name__ == "__main__":
    sys.exit(main())
