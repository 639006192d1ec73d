"""The loaders against the public files where they are, and against small native files made by hand, good and broken."""

import csv
import json

import pytest

from lib import sources

MEDQA = {"question": "Which vitamin?", "options": {"A": "A", "B": "B12", "C": "C", "D": "D"}, "answer": "B12",
         "answer_idx": "B", "meta_info": "step1"}
MEDMCQA = {"id": "x1", "question": "Which nerve?", "opa": "Ulnar", "opb": "Radial", "opc": "Median", "opd": "Axillary",
           "cop": 4, "exp": None, "subject_name": "Anatomy", "topic_name": None, "choice_type": "multi"}
ABSTRACT = {"QUESTION": "Does it help?", "CONTEXTS": ["It was tried.", "It helped."], "LABELS": ["A", "B"],
            "LONG_ANSWER": "It does help.", "final_decision": "yes"}
XML = """<?xml version="1.0" encoding="UTF-8"?>
<Document id="1" source="NINDS"><Focus>Gout</Focus><QAPairs>
<QAPair pid="1"><Question qid="1-1">What is (are) Gout ?</Question><Answer>A disease:      -  of joints.</Answer></QAPair>
<QAPair pid="2"><Question qid="1-2">Who has it?</Question><Answer></Answer></QAPair>
</QAPairs></Document>"""


def write(path, content):
    """Write text as it is, anything else as JSON; a list under a .jsonl name or dev.json as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, str):
        lines = path.suffix == ".jsonl" or path.name == "dev.json"
        content = "\n".join(map(json.dumps, content)) if lines else json.dumps(content)
    path.write_text(content, encoding="utf-8")
    return path


@pytest.fixture
def native(tmp_path):
    """A folder with a small native twin of every set."""
    qa = [{"instruction": "Answer.", "input": "What is it?", "output": "A disease."}]
    write(tmp_path / "medquad/6_NINDS_QA/0000001_2.xml", XML)
    write(tmp_path / "medical_meadow_small/medical_meadow_small.json", qa)
    write(tmp_path / "chatdoctor/chatdoctor5k.json", qa)
    write(tmp_path / "hoc/text/111.txt", "Cells grow ( fast ) .\nThey do n't stop .\n")
    write(tmp_path / "hoc/text/222.txt", "It helped .\n")
    write(tmp_path / "pubmedqa/data/ori_pqal.json", {"111": ABSTRACT, "222": ABSTRACT})
    write(tmp_path / "pubmedqa/data/test_ground_truth.json", {"222": "yes"})
    write(tmp_path / "mts_dialog/Main-Dataset/MTS-Dialog-ValidationSet.csv",
          'ID,section_header,section_text,dialogue\n0,CC,Pain.,"Doctor: Pain?\nPatient: Yes."\n')
    write(tmp_path / "mts_dialog/Main-Dataset/MTS-Dialog-TestSet-1.csv",
          "ID,section_header,section_text,dialogue\n0,CC,Cough.,Doctor: Cough?\n")
    write(tmp_path / "aci_bench/data/challenge_data/valid.csv",
          'dataset,encounter_id,dialogue,note\nv,D1,"[doctor] hi , i \'m here .\n[patient] hi .",NOTE\n')
    write(tmp_path / "aci_bench/data/challenge_data/valid_metadata.csv", "dataset,encounter_id\nv,D1\n")
    write(tmp_path / "medqa_us_4opt/phrases_no_exclude_test.jsonl", [MEDQA] * 9)
    write(tmp_path / "medmcqa_dev/data/dev.json", [MEDMCQA | {"id": f"x{n}"} for n in range(9)])
    return tmp_path


# --- what comes out of a native record ---

def test_corpus_records_by_hand(native):
    records = {record["id"]: record for record in sources.load_corpus(native)}
    assert {key: record["text"] for key, record in records.items()} == {
        "medquad-6_NINDS_QA-0000001_2-1": "What is (are) Gout?\nA disease:\n- of joints.",
        "medical_meadow-1": "What is it?\nA disease.",
        "chatdoctor-1": "Patient: What is it?\nDoctor: A disease.",
        "pubmedqa_abstracts-111": "Does it help?\nIt was tried.\nIt helped.\nIt does help.",
        "hoc-111": "Cells grow (fast). They don't stop.",
        "mts_dialog-MTS-Dialog-ValidationSet-0": "Doctor: Pain?\nPatient: Yes.\nPain.",
        "aci_bench-valid-D1": "Doctor: hi, i'm here.\nPatient: hi.\nNOTE"}
    assert records["medquad-6_NINDS_QA-0000001_2-1"] | {"text": ""} == {
        "text": "", "source": "medquad", "language": "en", "id": "medquad-6_NINDS_QA-0000001_2-1",
        "meta": {"kind": "web", "split": "train", "document": "medquad-6_NINDS_QA-0000001"}}


def test_test_splits_and_exam_abstracts_are_left_out(native):
    """222 is a test question of PubMedQA: its abstract is in neither PubMedQA's nor HoC's text; MTS-Dialog has a test file."""
    assert [r["meta"]["split"] for r in sources.read_records(native, "pubmedqa_abstracts")] == ["train", "test"]
    assert len(list(sources.read_records(native, "mts_dialog"))) == 2
    assert len(list(sources.read_records(native, "hoc"))) == 2
    assert not [r["id"] for r in sources.load_corpus(native) if "222" in r["id"] or "Test" in r["id"]]
    assert [r["id"] for r in sources.load_corpus(native, ["hoc"])] == ["hoc-111"]


def test_exam_items_by_hand(native):
    assert sources.load_exam(native, "medqa_us_4opt")[0] == {
        "id": "medqa_us_4opt-1", "exam": "medqa_us_4opt", "language": "en", "question": "Which vitamin?", "context": "",
        "options": MEDQA["options"], "answer": "B12", "answer_idx": "B", "rationale": "", "meta_info": {"step": "step1"}}
    assert sources.load_exam(native, "medmcqa")[0] == {
        "id": "medmcqa-x0", "exam": "medmcqa", "language": "en", "question": "Which nerve?", "context": "",
        "options": {"A": "Ulnar", "B": "Radial", "C": "Median", "D": "Axillary"}, "answer": "Axillary",
        "answer_idx": "D", "rationale": "",
        "meta_info": {"subject_name": "Anatomy", "topic_name": "", "choice_type": "multi"}}
    assert sources.load_exam(native, "pubmedqa") == [{
        "id": "pubmedqa-222", "exam": "pubmedqa", "language": "en", "question": "Does it help?",
        "context": "It was tried.\nIt helped.", "options": {"A": "yes", "B": "no", "C": "maybe"}, "answer": "yes",
        "answer_idx": "A", "rationale": "It does help.", "meta_info": {"pmid": "222"}}]


def test_a_draw_of_items_is_seeded_and_nested(native):
    def ids(number, seed):
        return [item["id"] for item in sources.load_exam(native, "medmcqa", items=number, seed=seed)]
    assert ids(4, 0) == ids(4, 0) == sorted(ids(4, 0))
    assert set(ids(4, 0)) < set(ids(6, 0))
    assert len({tuple(ids(4, seed)) for seed in range(8)}) > 1
    assert len(ids(99, 0)) == 9


# --- what is missing ---

def test_a_missing_folder_is_named_with_what_it_should_hold(tmp_path):
    write(tmp_path / "hoc/text/1.txt", "Cells grow.")
    with pytest.raises(FileNotFoundError, match=r"medquad/ is missing; for medquad it should hold \*\.xml\. .* there: hoc"):
        sources.load_corpus(tmp_path, ["medquad"])
    with pytest.raises(FileNotFoundError, match=r"medmcqa_dev/ is missing; for medmcqa it should hold dev\.json"):
        sources.load_exam(tmp_path, "medmcqa")
    assert [record["id"] for record in sources.load_corpus(tmp_path)] == ["hoc-1"]


def test_a_missing_file_is_named(native):
    (native / "pubmedqa/data/test_ground_truth.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"pubmedqa/test_ground_truth\.json is missing"):
        sources.load_corpus(native, ["hoc"])  # without it nobody knows which abstracts are test abstracts


def test_nothing_there_and_unknown_names(tmp_path, native):
    with pytest.raises(FileNotFoundError, match="no set to read.*medquad.*hoc"):
        sources.load_corpus(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="unknown set 'hock'; known of this kind: medquad"):
        sources.load_corpus(native, ["hock"])
    with pytest.raises(ValueError, match="unknown set 'medquad'; known of this kind: medqa_us_4opt"):
        sources.load_exam(native, "medquad")


# --- what is broken: (file, content, set, what the error names) ---

def lines(record, **changed):
    """Nine JSON lines of which the seventh is changed."""
    records = [record | ({"id": f"x{n}"} if "id" in record else {}) for n in range(1, 10)]
    records[6] |= changed
    return records


MEDQA_FILE, MEDMCQA_FILE = "medqa_us_4opt/phrases_no_exclude_test.jsonl", "medmcqa_dev/data/dev.json"
PQAL, TRUTH = "pubmedqa/data/ori_pqal.json", "pubmedqa/data/test_ground_truth.json"
BROKEN_LINE = "\n".join([json.dumps(MEDQA)] * 6 + ['{"question": "Which'] + [json.dumps(MEDQA)])
BROKEN = [
    (MEDQA_FILE, BROKEN_LINE, "medqa_us_4opt", r"test\.jsonl, line 7: broken JSON"),
    (MEDQA_FILE, "", "medqa_us_4opt", r"test\.jsonl: the file is empty"),
    (MEDQA_FILE, lines(MEDQA, answer_idx="E"), "medqa_us_4opt", "line 7, field 'answer_idx': no right answer among A, B"),
    (MEDQA_FILE, lines(MEDQA, answer_idx=None), "medqa_us_4opt", "line 7, field 'answer_idx': no right answer"),
    (MEDQA_FILE, lines(MEDQA, answer="C"), "medqa_us_4opt", "line 7, field 'answer': 'C' is not option B"),
    (MEDQA_FILE, lines(MEDQA, question=" "), "medqa_us_4opt", "line 7, field 'question': a non-empty text"),
    (MEDQA_FILE, lines(MEDQA, options={"A": "", "B": "B12"}), "medqa_us_4opt", "line 7, options: at least two non-empty"),
    (MEDQA_FILE, lines(MEDQA, options=["A", "B12"]), "medqa_us_4opt", "line 7, options: at least two"),
    (MEDMCQA_FILE, lines(MEDMCQA, cop=0), "medmcqa", r"dev\.json, line 7, field 'cop': no right answer"),
    (MEDMCQA_FILE, lines(MEDMCQA, opc=None), "medmcqa", "line 7, options"),
    (MEDMCQA_FILE, lines(MEDMCQA, id="x3"), "medmcqa", "the id 'medmcqa-x3' occurs twice"),
    (TRUTH, {"222": "perhaps"}, "pubmedqa", r"ground_truth\.json, record 222, field 'label': no right answer"),
    (TRUTH, {"333": "yes"}, "pubmedqa", r"record 333: not in ori_pqal\.json"),
    (PQAL, {"222": ABSTRACT | {"CONTEXTS": []}}, "pubmedqa", r"ori_pqal\.json, record 222, field 'CONTEXTS'"),
    (PQAL, "{\n\n}", "pubmedqa", r"ori_pqal\.json: a JSON list or object with at least one record"),
    (PQAL, '{\n"222":\n oops}', "pubmedqa_abstracts", r"ori_pqal\.json, line 3: broken JSON"),
    ("chatdoctor/chatdoctor5k.json", [{"input": "a", "output": ""}], "chatdoctor", "record 1, field 'output'"),
    ("chatdoctor/chatdoctor5k.json", ["text"], "chatdoctor", "record 1, field 'input'"),
    ("hoc/text/222.txt", "\n", "hoc", r"222\.txt: the file is empty"),
    ("medquad/6_NINDS_QA/0000001_2.xml", XML.replace("</QAPair>", ""), "medquad", r"_2\.xml, line 5: broken XML"),
    ("medquad/6_NINDS_QA/0000001_2.xml", XML.replace("Who has it?", ""), "medquad", "QAPair 2, field 'Question'"),
    ("aci_bench/data/challenge_data/valid.csv", "encounter_id,note\nD1,x\n", "aci_bench", "line 2, field 'dialogue'")]


@pytest.mark.parametrize(("file", "content", "name", "message"), BROKEN, ids=lambda value: str(value)[:24])
def test_bad_data_is_named(native, file, content, name, message):
    write(native / file, content)
    with pytest.raises(ValueError, match=message):
        sources.load_exam(native, name) if sources.SOURCES[name].kind == "exam" else sources.load_corpus(native, [name])


def test_a_file_that_is_not_utf8_is_named(native):
    (native / "hoc/text/111.txt").write_bytes(b"Caf\xe9")
    with pytest.raises(ValueError, match=r"111\.txt: not UTF-8 at byte 3"):
        sources.load_corpus(native, ["hoc"])


def test_a_byte_order_mark_is_no_part_of_a_column(native):
    path = native / "mts_dialog/Main-Dataset/MTS-Dialog-ValidationSet.csv"
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert len(sources.load_corpus(native, ["mts_dialog"])) == 1


# --- split and fingerprint ---

def documents(number):
    return [{"id": f"d{n}", "text": f"text {n}", "meta": {"document": f"topic{n // 3}"}} for n in range(number)]


def test_split_is_by_document_and_stable():
    records = documents(3000)
    train, test = sources.split_documents(records, test_share=0.2, seed=1)
    assert len(train) + len(test) == 3000
    assert abs(len(test) / 3000 - 0.2) < 0.04
    topics = [{r["meta"]["document"] for r in part} for part in (train, test)]
    assert topics[0].isdisjoint(topics[1])
    other = sources.split_documents(records[:100:-1], test_share=0.2, seed=1)[1]
    assert {r["id"] for r in other} == {r["id"] for r in test} & {r["id"] for r in records[101:]}
    assert {r["id"] for r in sources.split_documents(records, test_share=0.2, seed=2)[1]} != {r["id"] for r in test}
    assert sources.split_documents(records, test_share=0, seed=1)[1] == []


def test_fingerprint_sees_every_change():
    records = documents(5)
    assert sources.fingerprint(records) == sources.fingerprint(documents(5))
    changed = [records[:4], records[::-1], [*records[:4], records[4] | {"text": "x"}], documents(6)]
    assert len({sources.fingerprint(each) for each in [records, *changed]}) == 5


# --- the table ---

def test_every_entry_of_the_table_says_what_it_must():
    for name, source in sources.SOURCES.items():
        assert source.name == name
        assert source.kind in (*sources.TEXTS, "exam")
        assert all([source.folder, source.files, source.licence, source.citation, source.languages])


# --- the public files (counts: the README of the data folder) ---

@pytest.mark.parametrize(("name", "all_records", "training_records"), [
    ("medquad", 2646, 2646), ("medical_meadow", 5942, 5942), ("pubmedqa_abstracts", 1000, 500), ("hoc", 1852, 1852),
    ("chatdoctor", 5452, 5452), ("mts_dialog", 300, 100), ("aci_bench", 60, 20)])
def test_public_corpora_have_their_counts(shared_data, name, all_records, training_records):
    records = list(sources.read_records(shared_data, name))
    assert len(records) == all_records
    assert sum(r["meta"]["split"] == "train" for r in records) == training_records
    assert all(set(r) == {"text", "source", "language", "id", "meta"} and len(r["text"]) > 20 for r in records)


@pytest.mark.parametrize(("name", "count", "right"), [
    ("medqa_us_4opt", 1273, {"A": 353, "B": 309, "C": 346, "D": 265}),
    ("medmcqa", 4183, {"A": 1348, "B": 1085, "C": 925, "D": 825}), ("pubmedqa", 500, {"A": 276, "B": 169, "C": 55})])
def test_public_exams_have_their_counts(shared_data, name, count, right):
    exam = sources.load_exam(shared_data, name)
    letters = [item["answer_idx"] for item in exam]
    assert (len(exam), {letter: letters.count(letter) for letter in sorted(set(letters))}) == (count, right)
    assert all(item["options"][item["answer_idx"]] == item["answer"] for item in exam)


def test_no_test_abstract_is_in_the_training_corpus(shared_data):
    """Neither by PubMed id nor by paragraph; the same search does find the training abstracts, so it can find."""
    corpus, exam = sources.load_corpus(shared_data), sources.load_exam(shared_data, "pubmedqa")
    assert {item["meta_info"]["pmid"] for item in exam}.isdisjoint({r["meta"].get("pmid") for r in corpus})
    paragraphs = {line for record in corpus for line in record["text"].split("\n") if len(line) > 60}
    tested = {sources.tidy(line) for item in exam for line in [*item["context"].split("\n"), item["rationale"]]}
    abstracts = [r for r in sources.read_records(shared_data, "pubmedqa_abstracts") if r["meta"]["split"] == "train"]
    assert {line for r in abstracts for line in r["text"].split("\n") if len(line) > 60} <= paragraphs
    assert sum(len(line) > 60 for line in tested) > 1000
    assert tested.isdisjoint(paragraphs)


def test_native_rows_of_the_public_dialogues_are_all_there(shared_data):
    """An independent count of the csv rows: a quoted line end must not make two rows of one."""
    for folder, name in (("mts_dialog", "mts_dialog"), ("aci_bench/data/challenge_data", "aci_bench")):
        paths = [path for path in (shared_data / folder).rglob("*.csv") if "_metadata" not in path.name]
        rows = 0
        for path in paths:
            with open(path, encoding="utf-8", newline="") as stream:
                rows += sum(1 for _ in csv.reader(stream)) - 1
        assert rows == len(list(sources.read_records(shared_data, name)))
