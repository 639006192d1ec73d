"""Packed shards against the rows that are packed in memory, and the pipeline that makes them: complete, resumable, killed and started again."""

import gzip
import hashlib
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from lib import corpora, distributed, filters, shards, training, world
from lib.results import REPOSITORY

SETS = ["textbooks", "web_pages"]


@pytest.fixture(scope="module")
def tokenizer():
    known = world.load_world(number_of_diseases=10)
    return corpora.train_tokenizer([record["text"] for record in world.books(known, "en", copies=1, seed=0)], 600)


# --- shards ---

@pytest.mark.parametrize(("vocabulary_size", "width"), [(600, 2), (128_256, 4)])
def test_a_shard_holds_the_rows_that_are_packed_in_memory(tmp_path, vocabulary_size, width):
    draw = np.random.default_rng(0)
    documents = [draw.integers(3, min(vocabulary_size, 70_000) if width == 4 else 600, draw.integers(1, 40)).tolist() for _ in range(50)]
    parts = {"web/00000": documents[:20], "web/00001": documents[20:]}
    said = [{"source": "web", "name": name} | shards.write_shard(tmp_path / name, part, 16, bos=1, eos=2, vocabulary_size=vocabulary_size)
            for name, part in parts.items()]
    (tmp_path / "manifest.json").write_text(json.dumps({"sequence_length": 16, "vocabulary_size": vocabulary_size, "shards": said}))
    found = shards.load_shards(tmp_path)["web"]
    packed = [corpora.pack_documents(part, 16, bos=1, eos=2) for part in parts.values()]
    for name in ("input_ids", "labels", "position_ids"):
        rows, expected = getattr(found, name), np.concatenate([getattr(each, name) for each in packed])
        assert rows.shape == expected.shape
        assert (len(rows), rows.size) == (len(expected), expected.size)
        assert np.array_equal(np.stack([rows[row] for row in range(len(rows))]), expected)
    assert found.tokens == sum(each.tokens for each in packed) == sum(len(document) + 2 for document in documents)
    assert (tmp_path / "web/00000.tokens").stat().st_size == width * packed[0].input_ids.size
    with pytest.raises(IndexError):
        found.input_ids[len(found.input_ids)]


def test_a_missing_or_cut_shard_is_named(tmp_path):
    said = shards.write_shard(tmp_path / "web" / "00000", [[5, 6, 7]], 4, bos=1, eos=2, vocabulary_size=10)
    assert said == {"rows": 2, "documents": 1, "tokens": 5, "sha256": hashlib.sha256(np.array([1, 5, 6, 7, 2, 0, 0, 0], np.uint16).tobytes()).hexdigest()}
    manifest = {"sequence_length": 4, "vocabulary_size": 10, "shards": [{"source": "web", "name": "web/00000"} | said]}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with open(tmp_path / "web" / "00000.tokens", "rb+") as stream:
        stream.truncate(15)
    with pytest.raises(ValueError, match=r"00000.tokens: missing, or not the 16 bytes"):
        shards.load_shards(tmp_path)


def test_training_reads_the_same_batches_from_shards_as_from_memory(tmp_path):
    """15:4:1 of three sources over several epochs: every batch is equal, whether the rows lie in memory or on the disk."""
    draw, memory, said = np.random.default_rng(1), {}, []
    for source in ("book", "paper", "general"):
        documents = [draw.integers(3, 600, draw.integers(5, 60)).tolist() for _ in range(30)]
        memory[source] = corpora.pack_documents(documents, 16, bos=1, eos=2)
        said.append({"source": source, "name": f"{source}/0"} | shards.write_shard(
            tmp_path / source / "0", documents, 16, bos=1, eos=2, vocabulary_size=600))
    (tmp_path / "manifest.json").write_text(json.dumps({"sequence_length": 16, "vocabulary_size": 600, "shards": said}))
    weights, disk = {"book": 15, "paper": 4, "general": 1}, shards.load_shards(tmp_path)
    stage = training.Stage("toy", steps=40, rows_per_step=20, micro_batch_size=4, peak_learning_rate=1e-2, seed=3)
    for step in range(40):
        one, other = (training.global_batch(step, stage, {name: (data[name], weight) for name, weight in weights.items()}) for data in (memory, disk))
        assert one["count"] == other["count"]
        assert all(torch.equal(one[name], other[name]) for name in ("input_ids", "labels", "position_ids"))


def test_rows_are_given_to_processes_by_the_names_of_their_files(tmp_path, monkeypatch):
    """Each process maps the files itself: what is sent does not grow with them; and rows are plain arrays, which are read four times as fast."""
    said = shards.write_shard(tmp_path / "web" / "0", [list(range(3, 500))] * 200, 16, bos=1, eos=2, vocabulary_size=600)
    manifest = {"sequence_length": 16, "vocabulary_size": 600, "shards": [{"source": "web", "name": "web/0"} | said]}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    found, sent = shards.load_shards(tmp_path)["web"], []
    monkeypatch.setattr(distributed.subprocess, "run",
                        lambda *_, **__: sent.append((tmp_path / "job.pickle").read_bytes()) or SimpleNamespace(returncode=0))
    distributed.launch(len, (found,), tmp_path, processes=2)
    assert len(sent[0]) < 2_000 < said["tokens"]
    _, (again,) = pickle.loads(sent[0])
    for name in ("input_ids", "labels", "position_ids"):
        one, other = getattr(found, name), getattr(again, name)
        assert all(np.array_equal(one[row], other[row]) for row in range(0, len(one), 500))
        assert {type(array) for pair in other.plain for array in pair} == {np.ndarray}


# --- the pipeline ---

@pytest.fixture(scope="module")
def raw(tmp_path_factory, tokenizer):
    """A folder of native files: books, and a crawl whose pages hold several of the world's, with copies, other languages and broken lines."""
    folder, known = tmp_path_factory.mktemp("native"), world.load_world(number_of_diseases=30)
    (folder / "textbooks").mkdir()
    for number, book in enumerate(world.books(known, "en", copies=1, seed=0)):
        (folder / "textbooks" / f"book{number:02d}.txt").write_text(book["text"], encoding="utf-8")
    for name, language in (("English", "en"), ("French", "fr"), ("Chinese", "zh")):
        (folder / "web_pages" / name).mkdir(parents=True)
        medical = [page["text"] for page in world.web_pages(known, language, documents=120, seed=1)]
        pages = ["\n".join(medical[start:start + 12]) for start in range(0, 108, 6)]
        pages += pages[:3] + [pages[4] + "\n" + medical[0]]  # copies, and nearly one
        pages += [page["text"] for page in world.general_text(known, language, documents=5, seed=1)]
        lines = [json.dumps({"text": text, "url": f"https://example.org/{n}"}).encode() + b"\n" for n, text in enumerate(pages)]
        half = len(lines) // 2
        (folder / "web_pages" / name / "0.jsonl").write_bytes(b"".join(lines[:half]))
        (folder / "web_pages" / name / "1.jsonl.gz").write_bytes(gzip.compress(b"".join(lines[half:])))
    tokenizer.save_pretrained(folder / "tokenizer")
    keywords = [f"{language},{word}" for language, words in filters.world_keywords().items() for word in words]
    (folder / "keywords.csv").write_text("\n".join(["language,keyword", *keywords]) + "\n", encoding="utf-8")
    return folder


def settings(raw, output, **changed):
    """The settings file of a small corpus."""
    own = {"data_dir": str(raw), "output": str(output), "sets": SETS, "tokenizer": str(raw / "tokenizer"), "keywords": str(raw / "keywords.csv"),
           "sequence_length": 64, "exams": [], "window": 512, "tasks": 3, "engine": "local", "options": {"workers": 2}} | changed
    path = output.with_name(f"{output.name}.yaml")
    path.write_text(yaml.safe_dump(own), encoding="utf-8")
    return path


def command(raw, output, **changed):
    return [sys.executable, "-m", "lib.shards", str(settings(raw, output, **changed))]


def run(raw, output, **changed):
    return subprocess.run(command(raw, output, **changed), capture_output=True, text=True, cwd=REPOSITORY)


def fingerprints(output):
    """Every file that training reads, and the manifest."""
    files = [path for path in sorted(output.rglob("*")) if path.suffix in (".tokens", ".starts") or path.name == "manifest.json"]
    return {str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def built(raw, tmp_path_factory):
    output = tmp_path_factory.mktemp("built")
    done = run(raw, output)
    assert done.returncode == 0, done.stderr[-2000:]
    return output


@pytest.mark.slow
def test_the_shards_hold_what_the_filters_keep(raw, built, tokenizer):
    """Against the same steps one after another in this process."""
    manifest = json.loads((built / "manifest.json").read_text())
    expected, reasons = {}, {}
    step = filters.duplicates(threshold=0.0)  # the engine takes candidates as duplicates, without comparing them
    for name in SETS:
        kind = {"textbooks": "book", "web_pages": "web"}[name]
        records = list(corpora.sources.read_records(raw, name))
        kept, dropped = filters.clean(records, filters.steps_for(kind, keywords=filters.read_keywords(raw / "keywords.csv")))
        for drop in dropped:
            key = f"{drop['source']}, {drop['language']}: {drop['reason']}"
            reasons[key] = reasons.get(key, 0) + 1
        expected[name] = filters.clean(kept, [step])[0]
    assert manifest["dropped"] == dict(sorted(reasons.items()))
    assert {"web_pages, en: not medical"} <= set(reasons)
    counts = {name: sum(shard["documents"] for shard in manifest["shards"] if shard["source"] == name) for name in SETS}
    assert counts == {name: len(records) for name, records in expected.items()}
    found, texts = shards.load_shards(built), {name: [] for name in SETS}
    for name, rows in found.items():
        for row in range(len(rows.input_ids)):
            ids = rows.input_ids[row].tolist()
            texts[name] += [[]] if ids[0] == tokenizer.bos_token_id else []
            for token in ids:
                if token == tokenizer.bos_token_id:
                    texts[name].append([])
                texts[name][-1].append(token)
    read = {name: sorted(filter(None, (tokenizer.decode(ids, skip_special_tokens=True) for ids in each))) for name, each in texts.items()}
    assert read["textbooks"] == sorted(record["text"] for record in expected["textbooks"])
    assert len(set(read["web_pages"]) & {record["text"] for record in expected["web_pages"]}) >= counts["web_pages"] - 9  # of two alike, one or the other
    languages = sum(sum(shard["languages"].values()) for shard in manifest["shards"])
    assert languages == sum(each.tokens for each in found.values()) - 2 * sum(counts.values())  # every document has a start and an end


@pytest.mark.slow
def test_killed_at_any_stage_and_started_again_the_shards_are_the_same(raw, built, tmp_path):
    """SIGKILL to the whole group as soon as each stage has begun, then a last call to the end; nothing that was done is done again."""
    for stage in ("clean", "pairs", "pack"):
        process = subprocess.Popen(command(raw, tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=REPOSITORY, start_new_session=True)
        deadline = time.monotonic() + 120
        while not (tmp_path / "logs" / stage / "logs").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "logs").rglob("completions/*")}
    last = run(raw, tmp_path)
    assert last.returncode == 0, last.stderr[-2000:]
    assert {path: path.stat().st_mtime_ns for path in done} == done
    ours, theirs = fingerprints(tmp_path), fingerprints(built)
    assert len(ours) > 4
    assert ours == theirs


@pytest.mark.slow
def test_bad_files_are_named_and_counted_and_nothing_else_is_lost(raw, tmp_path):
    """A truncated gzip, a broken line, invalid UTF-8, an empty document, a line too long: each beside good pages that stay."""
    folder, medical = tmp_path / "native" / "web_pages" / "English", None
    folder.mkdir(parents=True)
    known = world.load_world(number_of_diseases=30)
    pages = [page["text"] for page in world.web_pages(known, "en", documents=60, seed=5)]
    medical = ["\n".join(pages[start:start + 12]) for start in range(0, 48, 12)]
    good = [json.dumps({"text": text}).encode() + b"\n" for text in medical]
    (folder / "a.jsonl").write_bytes(b'{"text": "never closed\n' + good[0] + b'{"text": "\xff\xfe bad"}\n' + b'{"text": "  "}\n' + b"[1, 2]\n")
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(good[1] + os.urandom(9000).hex().encode())[:-4000])
    (folder / "c.jsonl").write_bytes(b'{"text": "' + b"word " * 12_000_000 + b'"}\n' + good[2])
    (folder / "d.jsonl").write_bytes(b"")
    (folder / "e.jsonl").write_bytes(good[3])
    done = run(raw, tmp_path / "out", data_dir=str(tmp_path / "native"), sets=["web_pages"])
    assert done.returncode == 0, done.stderr[-2000:]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert sum(shard["documents"] for shard in manifest["shards"]) == 4
    said = [json.loads(line)["sample"] for path in sorted((tmp_path / "out" / "dropped").glob("*.jsonl")) for line in path.open()]
    for place, reason in (("a.jsonl, line 1", "broken JSON"), ("a.jsonl, line 3", "not UTF-8"), ("a.jsonl, line 4", "non-empty text"),
                          ("a.jsonl, line 5", ""), ("b.jsonl.gz", ""), ("c.jsonl, line 1", "longer than"), ("d.jsonl", "empty")):
        assert [problem for problem in said if place in problem and reason in problem], (place, reason, said)
    assert manifest["dropped"][", : unreadable"] == 7


@pytest.mark.slow
def test_another_setting_in_the_same_folder_and_a_missing_set_are_refused(raw, built):
    done = run(raw, built, window=120)
    assert done.returncode != 0
    assert re.search(r"refused: .*was begun with window = 512, now 120; take another folder", done.stderr)
    done = run(raw, built, sets=["pmc_oa"])
    assert re.search(r"refused: .*pmc_oa.* is missing", done.stderr)


@pytest.mark.slow
def test_exam_questions_are_kept_out(raw, tmp_path):
    """A page that holds a question of MedQA is dropped and counted."""
    native = tmp_path / "native"
    (native / "web_pages").mkdir(parents=True)
    (native / "medqa_us_4opt").mkdir()
    known = world.load_world(number_of_diseases=30)
    page = "\n".join(page["text"] for page in world.web_pages(known, "en", documents=60, seed=5)[:12])
    question = "A 3-year-old girl is brought to the physician because of a rash that appeared two days after the fever had gone. What is it?"
    item = {"question": question, "options": {"A": "Measles", "B": "Roseola"}, "answer_idx": "B", "answer": "Roseola", "meta_info": "step1"}
    (native / "medqa_us_4opt" / "phrases_no_exclude_test.jsonl").write_text(json.dumps(item) + "\n")
    lines = [json.dumps({"text": text}) for text in (page, page[:-1] + "\nQ: " + question.upper().replace(" ", "  "))]
    (native / "web_pages" / "a.jsonl").write_text("\n".join(lines) + "\n")
    done = run(raw, tmp_path / "out", data_dir=str(native), sets=["web_pages"], exams=["medqa_us_4opt"])
    assert done.returncode == 0, done.stderr[-2000:]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["dropped"] == {"web_pages, en: overlaps an exam": 1}
    assert [shard["documents"] for shard in manifest["shards"]] == [1]


def test_a_cluster_gets_the_same_stages(raw, tmp_path, monkeypatch):
    """Without a cluster here: the Slurm executor is given every stage, each after the one before."""
    from datatrove import executor
    launched = []

    class Recorded:
        def __init__(self, steps, *, tasks, logging_dir, depends, **options):
            self.told = (os.path.basename(logging_dir), tasks, options)
            self.depends = depends

        def run(self):
            launched.extend(([] if self.depends is None else self.depends.run() or []) or [])
            launched.append(self.told)

    monkeypatch.setattr(executor, "SlurmPipelineExecutor", Recorded)
    options = {"partition": "cpu", "mem_per_cpu_gb": 4}
    shards.main([str(settings(raw, tmp_path / "out", tasks=64, engine="slurm", options=options))])
    assert launched == [("clean", 64, options), ("pairs", filters.BANDS, options), ("clusters", 1, options), ("pack", 64, options), ("manifest", 1, options)]


def test_a_settings_file_is_checked(raw, tmp_path):
    for content, reason in (("sets: [web_pages]\nwindw: 512\n", "unknown or missing: .*windw"), ("[]", "unknown or missing"), ("a: [", "refused: .*expected")):
        (tmp_path / "own.yaml").write_text(content)
        done = subprocess.run([sys.executable, "-m", "lib.shards", str(tmp_path / "own.yaml")], capture_output=True, text=True, cwd=REPOSITORY)
        assert done.returncode != 0
        assert re.search(reason, done.stderr, re.S), done.stderr[-500:]
