"""What is written, is written whole, without clock or path, and can be read again."""

import errno
import json
import os
import re

import matplotlib
import numpy as np
import pandas as pd
import pytest

from lib import results

matplotlib.use("Agg")
from matplotlib.figure import Figure


@pytest.fixture
def run(places):
    return results.start_run("01_trial", {"PROFILE": "small", "SEEDS": 1})


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_folders_follow_profile_and_data(places):
    plain = results.start_run("01_trial", {"PROFILE": "small"})
    public = results.start_run("01_trial", {"PROFILE": "small", "DATA_DIR": "../data"})
    assert plain.folder == results.results_root() / "small" / "01_trial"
    assert public.folder == results.results_root() / "small-public" / "01_trial"
    assert (plain.backend, public.backend) == ("controlled-world", "public-data")
    assert sorted(path.name for path in plain.folder.iterdir()) == ["figures", "rows", "tables"]


def test_staging_folder_of_the_batch_comes_first(places, monkeypatch):
    monkeypatch.setenv("RESULTS_STAGING", str(places / "staging"))
    assert results.start_run("01_trial", {"PROFILE": "small"}).folder == places / "staging"


def test_a_run_needs_a_profile_and_a_known_backend(places):
    with pytest.raises(ValueError, match="must hold PROFILE"):
        results.start_run("01_trial", {})
    with pytest.raises(ValueError, match="none of controlled-world, public-data"):
        results.start_run("01_trial", {"PROFILE": "small"}, backend="toy")


def test_table_is_rounded_and_the_frame_is_given_back(run):
    frame = pd.DataFrame({"model": ["böse, |", "b"], "accuracy": [0.123456, -0.000001], "n": [3, 4]})
    assert results.save_table(run, "scores", frame) is frame
    assert (run.folder / "tables/scores.csv").read_bytes() == 'model,accuracy,n\n"böse, |",0.1235,3\nb,0.0,4\n'.encode()


def test_table_with_an_index_is_refused_because_it_would_be_lost(run):
    with pytest.raises(ValueError, match="reset_index"):
        results.save_table(run, "scores", pd.DataFrame({"a": [1]}).set_index("a"))
    with pytest.raises(ValueError, match="plain file name"):
        results.save_table(run, "../scores", pd.DataFrame({"a": [1]}))


def test_figure_has_a_footer_and_the_same_bytes_twice(run):
    def draw():
        figure = Figure()
        figure.subplots().plot([1, 2])
        results.save_figure(run, "line", results.save_figure(run, "line", figure))
        return figure, [(run.folder / f"figures/line.{suffix}").read_bytes() for suffix in ("png", "pdf")]
    (figure, first), (_, second) = draw(), draw()
    assert first == second
    assert [text.get_text() for text in figure.texts] == ["01_trial · profile small · backend: controlled-world"]
    assert not re.search(rb"CreationDate|D:20\d\d", first[1])


def test_findings_are_flat_and_plain(run):
    findings = {"a": np.float64(0.1234567), "n": np.int64(3), "name": "books", "none": float("nan")}
    results.save_findings(run, findings, seeds=[0])
    assert (run.folder / "findings.json").read_text() == \
        '{\n  "a": 0.123457,\n  "n": 3,\n  "name": "books",\n  "none": null\n}\n'
    with pytest.raises(ValueError, match="'rows' is a list"):
        results.save_findings(run, {"rows": [1, 2]})


def test_provenance_says_what_the_run_depends_on(run):
    results.save_findings(run, {}, seeds=[0], data_fingerprints={"corpus": "ab12"}, note=str(results.REPOSITORY / "x"))
    provenance = json.loads((run.folder / "provenance.json").read_text())
    assert {"commit", "dirty", "profile", "parameters", "packages", "device", "backend", "python"} <= set(provenance)
    assert provenance["backend"] == "controlled-world"
    assert provenance["data_fingerprints"] == {"corpus": "ab12"}
    assert provenance["packages"]["numpy"] == np.__version__
    assert provenance["note"] == "./x"


def test_main_table_must_have_been_saved(run):
    with pytest.raises(ValueError, match=r"tables/scores\.csv was not saved"):
        results.save_findings(run, {}, main_table="scores")


def test_earlier_results_are_read_or_missed_by_name(run):
    results.save_table(run, "scores", pd.DataFrame({"a": [1, 2]}))
    results.save_findings(run, {"a": 0.5})
    assert results.read_table("small", "01_trial", "scores")["a"].tolist() == [1, 2]
    with pytest.raises(FileNotFoundError, match=r"run notebook 02_other first: \./run_all\.sh 02 --profile small -p"):
        results.read_table("small-public", "02_other", "scores")


def test_a_full_disk_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    path = results.write_atomically(tmp_path / "file.txt", "old")
    monkeypatch.setattr(results.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        results.write_atomically(path, "new")
    assert [item.name for item in tmp_path.iterdir()] == ["file.txt"]
    assert path.read_text() == "old"


def test_rows_survive_a_kill_in_the_middle_of_a_line(tmp_path):
    path = tmp_path / "rows" / "items.jsonl"
    assert results.read_rows(path) == []
    for number in range(3):
        results.append_row(path, {"id": number, "text": "é\n"})
    whole = path.read_bytes()
    for cut in range(1, len(whole)):  # every possible torn file
        path.write_bytes(whole[:cut])
        kept = results.read_rows(path)
        assert [row["id"] for row in kept] == list(range(whole[:cut].count(b"\n")))
        results.append_row(path, {"id": 99})
        assert [row["id"] for row in results.read_rows(path)] == [*(row["id"] for row in kept), 99]


def test_a_broken_row_in_the_middle_is_named(tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_text('{"id": 1}\n{"id": \n{"id": 3}\n')
    with pytest.raises(ValueError, match=r"items\.jsonl, line 2: not JSON"):
        results.read_rows(path)


@pytest.mark.parametrize(("before", "after"), [
    ("**0.93**<!--a-->", "**0.51**<!--a-->"),
    ("**93.1**<!--100*a-->", "**51.2**<!--100*a-->"),
    ("**93 %**<!-- 100*a -->", "**51 %**<!-- 100*a -->"),
    ("**+1.0**<!--gain-->", "**-0.3**<!--gain-->"),
    ("**-1.00**<!--a-->", "**+0.51**<!--a-->"),
    ("**1.0**<!--tiny-->", "**0.0**<!--tiny-->"),
    ("**7**<!--n-->", "**12,345**<!--n-->"),
    ("**1,000**<!--small-->", "**42**<!--small-->"),
    ("**papers**<!--best-->", "**books**<!--best-->"),
    ("**?**<!--a-->", "**0.51**<!--a-->"),
    ("**0.9**<!--none-->", "**n/a**<!--none-->"),
    ("**Answer.** no number, **1.5** without a name", "**Answer.** no number, **1.5** without a name"),
    ("**1.0**<!--a--> and **1.0**<!--a-->", "**0.5**<!--a--> and **0.5**<!--a-->"),
])
def test_bold_numbers_take_the_findings(before, after):
    findings = {"a": 0.5118, "gain": -0.3, "tiny": -0.01, "n": 12345, "small": 42, "best": "books", "none": None}
    assert results.fill_answer(before, findings) == after
    assert results.fill_answer(after, findings) == after


def test_a_quoted_finding_must_exist():
    with pytest.raises(ValueError, match="'recall', but save_findings wrote only precision"):
        results.fill_answer("**0.5**<!--recall-->", {"precision": 1})


def test_paths_of_the_machine_are_hidden(places, monkeypatch):
    home = str(results.Path.home())
    staging = results.results_root() / ".staging-01_trial-12-ab"
    text = (f'{results.REPOSITORY}/lib "\\n{results.REPOSITORY}" {results.REPOSITORY}er {home}/.cache {staging}/tables '
            f"/tmp/ipykernel_12/34.py:3 https://example.org{home}/a")
    assert results.hide_paths(text) == (f'./lib "\\n." {results.REPOSITORY}er ~/.cache results/<this run>/tables '
                                        f"<cell>:3 https://example.org{home}/a")


def test_secrets_are_found_and_never_named(monkeypatch):
    monkeypatch.setenv("MY_SERVICE_PASSWORD", "correct horse")
    for text in ("hf_" + "a1B2" * 8, "sk-" + "x" * 30, "AKIA" + "ABCD" * 4, "ghp_" + "a" * 36, "the correct horse ran"):
        found = results.find_secret(f"before {text} after")
        assert found
        assert text not in found
    for text in ("risk-adjusted-mortality-in-thirty-days", "half_time", "AKIA", "sk-1", "no horse"):
        assert results.find_secret(text) is None


def test_numbers_of_the_index_are_parted_and_to_the_right(places):
    """A column is of numbers if all its cells are, or nothing; a notebook that was run by hand only has no executed copy to link to."""
    run = results.start_run("01_trial", {"PROFILE": "small"})
    cells = {"a\nb": ["x", "2|3", "4"], "n": ["1234567", "", "12"], "flops": ["2.2167560192277094e+21", "-1466.5", "0.0001"], "2024": ["x", "n", "inf"]}
    results.save_table(run, "scores", pd.DataFrame(cells))
    results.save_findings(run, {"value": 1}, main_table="scores")
    (run.folder / "01_trial.ipynb").write_text(json.dumps({"cells": [{"cell_type": "markdown", "source": ["# 01 · Why?"]}]}))
    results.save_findings(results.start_run("02_by_hand", {"PROFILE": "small"}), {"value": 1})
    results.write_index()
    index = (results.results_root() / "README.md").read_text()
    assert ("\n| a b | n | flops | 2024 |\n| --- | ---: | ---: | --- |\n| x | 1,234,567 | 2.22e+21 | x |\n" in index)
    assert "\n| 2\\|3 |  | -1,466.5 | n |\n| 4 | 12 | 0.0001 | inf |\n" in index
    assert "02_by_hand" not in index
    assert '<td style="text-align:right">1,234,567</td>' in (results.results_root() / "index.html").read_text()


def test_places_in_memory_are_hidden():
    text = "<pandas.io.formats.style.Styler at 0x7f6281e578d0> and <object object at 0x1>, 0x12, a <b> at 0x12"
    assert results.hide_paths(text) == "<pandas.io.formats.style.Styler> and <object object>, 0x12, a <b> at 0x12"


def test_index_shows_answer_figure_and_table(places):
    run = results.start_run("01_trial", {"PROFILE": "small"})
    results.save_table(run, "scores", pd.DataFrame({"a|b": ["x|y"] * 40}))
    results.save_findings(run, {"value": 1}, main_table="scores")
    first = ["# 01 · Why?\n", "\n", "**Question.** Q?\n", "**Answer.** **1**<!--value-->."]
    (run.folder / "01_trial.ipynb").write_text(json.dumps({"cells": [{"cell_type": "markdown", "source": first}]}))
    results.write_index()
    index = (results.results_root() / "README.md").read_text()
    assert "### 01 · Why?\n\n**1**.\n\nBackend: controlled-world.\n\n| a\\|b |\n| --- |\n| x\\|y |" in index
    assert "10 more rows" in index
    assert "[scores](small/01_trial/tables/scores.csv)" in index
    page = (results.results_root() / "index.html").read_text()
    assert page.count("<td>x|y</td>") == 30
    assert '<a href="small/01_trial/tables/scores.csv">scores</a>' in page
    assert "addEventListener" in page, "its tables can be sorted"
    assert not [word for word in ("http://", "https://", "src=\"/") if word in page]
