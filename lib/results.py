"""Where results live and how they are written: tables, figures, findings, provenance, resume-safe rows."""
import contextlib
import csv
import fcntl
import io
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from importlib import metadata, util
from pathlib import Path
# Nothing heavy is imported here: lib.batch must be able to skip a finished run within seconds.
REPOSITORY = Path(__file__).resolve().parent.parent
BACKENDS = ("controlled-world", "public-data", "published-values")
PACKAGES = "torch transformers peft datasets tokenizers safetensors numpy pandas scipy matplotlib papermill".split()
SHOWN_PROFILES = ("small", "small-public", "h200", "full", "full-public")  # the folders that results/README.md shows
SECRETS = re.compile(r"\bhf_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9_-]{20,}|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{30,}")
BOLD_FINDING = re.compile(r"\*\*([^*\n]+)\*\*<!--\s*(100\*)?\s*(\w+)\s*-->")
NUMBER = re.compile(r"([+\-\u2212]?)(\d[\d,]*)(?:\.(\d+))?")
KNOWLEDGE = Path(__file__).resolve().with_name("knowledge")  # tables, wordings, templates

Run = namedtuple("Run", "notebook profile parameters backend folder")  # one execution of one notebook; folder: where its results go

def results_root():
    """The folder of all results: $RESULTS_ROOT, else <repository>/results."""
    return Path(os.environ.get("RESULTS_ROOT") or REPOSITORY / "results").resolve()

def profile_folder(parameters):
    """The name of the folder under results/: the profile, with `-public` when real data is read.
    >>> profile_folder({"PROFILE": "small"}), profile_folder({"PROFILE": "small", "DATA_DIR": "../data"})
    ('small', 'small-public')"""
    return parameters["PROFILE"] + ("-public" if parameters.get("DATA_DIR") else "")

def start_run(notebook, parameters, *, backend="controlled-world"):
    """Make the folders of one run and return it; `parameters` holds at least PROFILE, and a DATA_DIR makes the backend `public-data`.
    The folder is $RESULTS_STAGING where lib.batch set it, else results/<profile>[-public]/<notebook>/. ValueError for an unknown backend."""
    if "PROFILE" not in parameters:
        raise ValueError(f"start_run({notebook!r}): parameters must hold PROFILE, got {sorted(parameters)}")
    if parameters.get("DATA_DIR") and backend == "controlled-world":
        backend = "public-data"
    if backend not in BACKENDS:
        raise ValueError(f"start_run({notebook!r}): backend {backend!r} is none of {', '.join(BACKENDS)}")
    folder = Path(os.environ.get("RESULTS_STAGING") or results_root() / profile_folder(parameters) / notebook)
    for part in ("tables", "figures", "rows"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    os.chdir(REPOSITORY)  # JupyterLab starts a kernel beside its notebook; a relative DATA_DIR starts here
    return Run(notebook, parameters["PROFILE"], dict(parameters), backend, folder)

def to_json(record, indent=2):
    """A record as JSON text in the one form that is committed; a numpy scalar becomes a number, a path text."""
    return json.dumps(record, indent=indent, ensure_ascii=False, default=lambda value: value.item() if hasattr(value, "item") else str(value)) + "\n"

def write_atomically(path, content):
    """Write text or bytes so that a reader sees the old file or the whole new one, never a part; return the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)  # it is there only after a failure
    return path

def save_table(run, name, frame, *, decimals=4):
    """Write tables/<name>.csv (UTF-8, floats rounded, no index) and return the frame as it was given."""
    if any(index is not None for index in frame.index.names):
        raise ValueError(f"table {name!r}: the index {list(frame.index.names)} would be lost; call reset_index() first")
    rounded = frame.map(lambda value: round(value, decimals) + 0.0 if isinstance(value, float) else value)
    write_atomically(_path(run, "tables", f"{name}.csv"), rounded.to_csv(index=False, lineterminator="\n"))
    return frame

def save_figure(run, name, figure):
    """Write figures/<name>.png (150 dpi) and .pdf with the backend in the footer, free of dates; return the figure.
    In a notebook the saved PNG is shown and the figure closed: drawing it once more for the page would take as long again."""
    if not any(text.get_gid() == "backend-footer" for text in figure.texts):  # saving twice must not print it twice
        footer = f"{run.notebook} · profile {run.profile} · backend: {run.backend}"
        figure.text(0.01, -0.02, footer, gid="backend-footer", ha="left", va="top", fontsize=7, color="0.45")
    if layout := figure.get_layout_engine():
        layout.execute(figure)
        figure.set_layout_engine(None)  # laid out once, for both formats: each would do it again, and draw everything to find out
    whole = figure.get_tightbbox().padded(0.1)
    for suffix, dates in {"pdf": {"CreationDate": None, "Creator": None, "Producer": None}, "png": {"Software": None}}.items():
        figure.savefig(drawn := io.BytesIO(), format=suffix, dpi=150, bbox_inches=whole, metadata=dates)
        write_atomically(_path(run, "figures", f"{name}.{suffix}"), drawn.getvalue())
    if "IPython" in sys.modules and sys.modules["IPython"].get_ipython():
        from IPython.display import Image, display
        from matplotlib.pyplot import close
        display(Image(drawn.getvalue(), width=110 * figure.get_figwidth(), alt=name.replace("_", " ")))
        close(figure)
    return figure

def save_findings(run, findings, **provenance):
    """Write findings.json (name -> number or string; null if not finite) and provenance.json, which takes the keywords: the last call of a notebook.
    Keywords are seeds, data_fingerprints, model, revision, stages ...; `main_figure` and `main_table` name what results/README.md shows."""
    for kind, part, suffix in (("main_figure", "figures", "png"), ("main_table", "tables", "csv")):
        name = provenance.get(kind)
        if name and not _path(run, part, f"{name}.{suffix}").exists():
            raise ValueError(f"save_findings: {kind}={name!r}, but {part}/{name}.{suffix} was not saved in this run")
    status = _git("status", "--porcelain", "--", ".", ":(exclude)results")  # its own output does not make it dirty
    known = {"notebook": run.notebook, "profile": run.profile, "backend": run.backend, "parameters": run.parameters, "commit": _git(
        "rev-parse", "HEAD") or "unknown", "dirty": bool(status) if status is not None else "unknown", "python": platform.python_version(),
        "device": _device(), "packages": {name: metadata.version(name) for name in PACKAGES if util.find_spec(name)}}
    write_atomically(run.folder / "provenance.json", hide_paths(to_json(known | provenance)))
    write_atomically(run.folder / "findings.json", to_json({name: _finding(name, findings[name]) for name in findings}))
    return findings

def append_row(path, row):
    """Append one JSON row, whoever else is writing; a last line torn by a kill or a full disk is cut off first."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # until the file is closed
        size = stream.seek(0, os.SEEK_END)
        if size and (stream.seek(size - 1), stream.read(1))[1] != b"\n":
            stream.seek(0)
            stream.truncate(stream.read().rfind(b"\n") + 1)
        stream.write(to_json(row, indent=None).encode())

def read_rows(path):
    """The rows of a JSONL file, [] where there is none; an unfinished last line is ignored, any other broken line is a ValueError that names it."""
    lines, rows = Path(path).read_bytes().split(b"\n")[:-1] if Path(path).exists() else [], []  # what follows the last newline is unfinished
    for number, line in enumerate(lines, start=1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error}); delete the line and run again") from None
    return rows

def read_table(profile, notebook, name):
    """A table of an earlier notebook as a pandas DataFrame."""
    import pandas
    path = results_root() / profile / notebook / "tables" / f"{name}.csv"
    if not path.exists():
        raise FileNotFoundError(f"results/{profile}/{notebook}/tables/{name}.csv is missing; run notebook {notebook} first: ./run_all.sh "
                                f"{notebook.split('_')[0]} --profile {profile.replace('-public', ' -p DATA_DIR <folder>')}")
    return pandas.read_csv(path)

def fill_answer(markdown, findings):
    """Put the findings into the bold numbers of a first cell, each with as many decimals as it had.
    >>> fill_answer("**0.51**<!--recall--> of **+1.0**<!--100*gain--> in **9,999**<!--n-->",
    ...             {"recall": 0.934, "gain": 0.0312, "n": 12345})
    '**0.93**<!--recall--> of **+3.1**<!--100*gain--> in **12,345**<!--n-->'"""
    def replace(match):
        text, percent, name = match.groups()
        if name not in findings:
            known = ", ".join(findings) or "nothing"
            raise ValueError(f"the first cell quotes the finding {name!r}, but save_findings wrote only {known}")
        return match.group().replace(text, _format(findings[name], text, 100 if percent else 1), 1)
    return BOLD_FINDING.sub(replace, markdown)

def hide_paths(text):
    """Replace this machine's paths (environment, repository, home, staging folder, kernel files) by short names."""
    text = re.sub(re.escape(str(results_root())) + r"/\.staging-[\w-]+", "results/<this run>", text)
    text = re.sub(r"(<[\w.]+ object|<[\w.]+) at 0x[0-9a-f]+>", r"\1>", text)  # where an object stood in memory is another place in each run
    text = re.sub(r"/[\w./-]*ipykernel_\d+/\d+\.py", "<cell>", text) if "ipykernel_" in text else text  # slow where there are pictures
    start = r"(?:(?<![\w.])|(?<=\\[nt])|(?<=\dm))"  # not inside a word, but behind a JSON \n or a terminal colour
    for path, short in ((sys.prefix, "<environment>"), (REPOSITORY, "."), (Path.home(), "~")):
        if len(Path(path).parts) > 1 and str(path) in text:  # a home of "/" would match everything
            text = re.sub(start + re.escape(str(path)) + r"(?![\w.-])", short, text)
    return text

def find_secret(text):
    """What kind of secret a text holds, None where none is seen; the secret itself is never named."""
    if match := SECRETS.search(text):
        return f"what looks like a token ({match.group()[:4]}...)"
    found = (name for name, value in os.environ.items() if len(value) >= 8 and re.search("(?i)TOKEN|KEY|SECRET|PASSWORD", name) and value in text)
    return next((f"the value of ${name}" for name in found), None)

def to_html(path, title):
    """The executed notebook as one self-contained page: no scripts, no fonts, nothing from the network."""
    from nbconvert import HTMLExporter
    from pygments.formatters import HtmlFormatter
    body, _ = HTMLExporter(template_name="basic", exclude_anchor_links=True).from_filename(str(path))
    return fill_template("page.html", title=title, body=body, highlight=HtmlFormatter().get_style_defs(".highlight"))

@contextlib.contextmanager
def staging_folder(name):
    """A fresh folder under results/, locked while this process lives, gone afterwards unless it was published."""
    staging = results_root() / f".staging-{name}-{os.getpid()}-{time.time_ns():x}"
    staging.mkdir(parents=True)
    with open(staging / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)

def publish(staging, folder):
    """Move a finished folder into place of the earlier one; a kill in between is mended by `tidy`."""
    old = folder.with_name(f".old-{folder.name}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists():
        folder.rename(old)
    try:
        staging.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    (folder / ".lock").unlink()
    shutil.rmtree(old, ignore_errors=True)

def tidy():
    """After a kill: remove staging folders whose process is gone, bring back a result that was set aside."""
    for lock in results_root().glob(".staging-*/.lock"):
        with open(lock) as stream, contextlib.suppress(OSError):  # locked: that process lives
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)
    for old in results_root().glob("*/.old-*"):
        place = old.with_name(old.name.removeprefix(".old-"))
        shutil.rmtree(old) if place.exists() else old.rename(place)

def fill_template(name, **values):
    """A Jinja template of lib/knowledge, filled in."""
    from jinja2 import Environment, FileSystemLoader
    return Environment(loader=FileSystemLoader(KNOWLEDGE), trim_blocks=True, keep_trailing_newline=True).get_template(name).render(values)

def write_index():
    """Write results/README.md and index.html: of each finished notebook the title, answer, main figure and table, and links."""
    from nbconvert.filters import markdown2html
    found = {profile: sorted(results_root().glob(f"{profile}/*/*.ipynb")) for profile in SHOWN_PROFILES}  # none where it was run by hand only
    entries = {profile: [_index_entry(notebook.parent) for notebook in paths] for profile, paths in found.items()}
    text = fill_template("index.md", profiles=entries)
    write_atomically(results_root() / "README.md", text)
    write_atomically(results_root() / "index.html", fill_template("page.html", title="Results", body=markdown2html(text), sortable=True))
def _index_entry(folder):
    provenance = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    cells = json.loads((folder / f"{folder.name}.ipynb").read_text(encoding="utf-8"))["cells"]
    first = re.sub(r"<!--.*?-->", "", "".join(cells[0]["source"]))
    answer = re.search(r"\*\*Answer\.?\*\*\s*(.+?)(?=\n\s*\n|\nReads |\Z)", first, flags=re.DOTALL)
    tables = {path.stem: path for path in sorted(folder.glob("tables/*.csv"))}
    main = tables[provenance["main_table"]].read_text(encoding="utf-8") if provenance.get("main_table") else ""
    return provenance | {"notebook": folder.name, "title": first.split("\n")[0].lstrip("# "), "answer": answer and answer.group(1),
                         "tables": tables, "rows": list(csv.reader(io.StringIO(main)))}
def _path(run, part, name):
    if Path(name).name != name:
        raise ValueError(f"{name!r} must be a plain file name, without folders")
    return run.folder / part / name
def _format(value, pattern, factor):
    """The value written like `pattern`: same decimals, a sign if it had one, thousands separated if they were."""
    number = NUMBER.search(pattern)
    if value is None or isinstance(value, str):
        return value or "n/a"
    if not number:  # a placeholder such as **?**
        return f"{value * factor:.2f}" if isinstance(value, float) else f"{value * factor:,}"
    sign, whole, decimals = number.group(1), number.group(2), len(number.group(3) or "")
    rounded = round(value * factor, decimals) + 0.0  # + 0.0: no "-0.0"
    written = f"{rounded:{'+' if sign else ''}{',' if ',' in whole or abs(rounded) >= 10_000 else ''}.{decimals}f}"
    return pattern[:number.start()] + written + pattern[number.end():]
def _finding(name, value):
    value = value.item() if hasattr(value, "item") else value
    if value is not None and not isinstance(value, (bool, int, float, str)):
        raise ValueError(f"finding {name!r} is a {type(value).__name__}; findings are flat: numbers or strings")
    return value if not isinstance(value, float) else float(f"{value:.6g}") if math.isfinite(value) else None
def _git(*arguments):
    """The output of git in the repository, None where there is no git or no commit."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
def _device():
    torch = sys.modules.get("torch")  # a notebook that did not load torch ran on the processor
    if torch is not None and torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else "", flags=re.MULTILINE)
    return f"{os.cpu_count()} x {model.group(1) if model else platform.machine()}"
