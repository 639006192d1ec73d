"""The loaders against the public files where they are, and against small native files made by hand, good and broken."""

import csv
import gzip
import json
import random
import re
import shutil
import textwrap
from pathlib import Path

import datasets
import matplotlib as mpl
import pypdf
import pytest
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

from lib import filters, sources
from lib.results import REPOSITORY

TWINS = Path(__file__).parent / "assets" / "sources"  # invented records in the published forms of sets that are not at hand

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


def test_linked_folders_are_read(native, tmp_path_factory):
    """A set kept elsewhere and linked, and a folder that is linked inside a set: both as if they were there. A link to itself ends."""
    expected, elsewhere = list(sources.read_records(native, "medmcqa")), tmp_path_factory.mktemp("elsewhere")
    assert len(expected) == 9
    (native / "medmcqa_dev/data").rename(elsewhere / "data")
    (native / "medmcqa_dev/data").symlink_to(elsewhere / "data")
    assert list(sources.read_records(native, "medmcqa")) == expected
    (native / "medmcqa_dev").rename(elsewhere / "whole")
    (native / "medmcqa_dev").symlink_to(elsewhere / "whole")
    assert list(sources.read_records(native, "medmcqa")) == expected
    (elsewhere / "whole/again").symlink_to(elsewhere / "whole")
    with pytest.raises(ValueError, match="the id 'medmcqa-x0' occurs twice"):
        list(sources.read_records(native, "medmcqa"))


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


# --- text and split ---

def test_text_is_tidied_and_joined_again():
    assert sources.tidy("It may include:      -  Surgery.     - A trial.  \n\n Ask.") == "It may include:\n- Surgery.\n- A trial.\nAsk."
    assert sources.detokenise("We do n't use it ( GHS-R ) , the patient 's own .") == "We don't use it (GHS-R), the patient's own."


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


# --- the table ---

def test_every_entry_of_the_table_says_what_it_must():
    for name, source in sources.SOURCES.items():
        assert source.name == name
        assert source.kind in sources.KINDS
        assert all(source.entry[key] for key in ("title", "form", "obtain"))
        assert all({"files", "count"} <= set(split) for split in source.splits.values())
        assert source.usual in (*source.splits, "all")
        assert all(len(source.entry[key]["revision"]) == 40 for key in ("hub",) if key in source.entry)
        assert all([source.folder, source.licence, source.citation, source.languages])


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


# --- sets of which no public file is at hand: invented twins in the published form ---

def twin(name, split=None):
    problems = []
    return list(sources.read_records(TWINS, name, split=split, on_error="skip", problems=problems)), problems


def test_the_six_languages_of_mmedbench(tmp_path):
    """A file each; right letters in a list or a text; the flag of the checked rationales, where there is one."""
    exam, _ = twin("mmedbench")
    assert [(item["id"], item["language"], item["answer_idx"], item["answer"]) for item in exam] == [
        ("mmedbench-1", "en", "A", "Radius"), ("mmedbench-2", "fr", "A,C", "Le rein, Le poumon"), ("mmedbench-3", "fr", "A", "Le fémur"),
        ("mmedbench-4", "ja", "A,C", "一, 三"), ("mmedbench-5", "ru", "A", "да")]
    assert exam[1]["rationale"] == "Reins et poumons vont par deux."
    assert [item["meta_info"]["human_check_passed"] for item in exam] == [False, True, None, None, None]
    assert list(exam[0]) == ["id", "exam", "language", "question", "context", "options", "answer", "answer_idx", "rationale", "meta_info"]


@pytest.mark.parametrize(("name", "answer", "language"), [
    ("medqa_mainland", "维生素A", "zh"), ("medqa_taiwan", "攜帶氧氣", "zh"), ("pubmedqa_artificial", "yes", "en")])
def test_exam_twins(name, answer, language):
    exam = sources.load_exam(TWINS, name)
    assert (exam[0]["answer"], exam[0]["language"]) == (answer, language)


def test_corpus_twins():
    """Large corpora are read when named, keep their paragraphs, and take the language from the folder."""
    assert [(r["language"], r["text"]) for r in twin("mmedc")[0]] == [
        ("zh", "肝脏产生胆汁。"), ("en", "The liver makes bile.\n\nBile helps digestion.")]
    assert twin("redpajama_sample")[0][0]["text"] == "A town by a river.\n\n  Its bridge is old."
    assert [(r["id"], r["meta"]["kind"]) for r in twin("textbooks")[0]] == [("textbooks-anatomy", "book")]
    assert [r["source"] for r in sources.load_corpus(TWINS, ["textbooks"])] == ["textbooks"]
    with pytest.raises(FileNotFoundError, match="no set to read"):
        sources.load_corpus(TWINS)  # none of them unless named


def test_s2orc_shards_and_languages_of_inner_folders(tmp_path):
    paper = {"paper_id": "7", "abstract": [{"text": "We tried.", "section": "Abstract"}], "body_text": [{"text": "It helped."}, {"text": "So."}]}
    write(tmp_path / "s2orc_json/pdf_parses_0.jsonl", json.dumps(paper))
    (record,) = sources.load_corpus(tmp_path, ["s2orc"])
    assert (record["id"], record["text"]) == ("s2orc-7", "We tried.\nIt helped.\nSo.")
    write(tmp_path / "mmedc/Russian/part/a.txt", "Печень.")
    assert [(r["id"], r["language"]) for r in sources.read_records(tmp_path, "mmedc")] == [("mmedc-Russian/part/a", "ru")]


def test_liveqa_training_files_have_their_own_elements(tmp_path):
    write(tmp_path / "liveqa_medical_trec2017/TREC-2017-LiveQA-Medical-Train-1.xml", """<LiveQA><NLM-QUESTION questionid="Q1"><SUBJECT>feet</SUBJECT>
        <MESSAGE></MESSAGE><SUB-QUESTIONS><SUB-QUESTION subqid="Q1-S1"><ANSWERS><ANSWER answerid="1">Rest   them.</ANSWER></ANSWERS></SUB-QUESTION>
        <SUB-QUESTION subqid="Q1-S2"><ANSWERS><ANSWER answerid="2">Wash them.</ANSWER></ANSWERS></SUB-QUESTION></SUB-QUESTIONS></NLM-QUESTION>
        <NLM-QUESTION questionid="Q2"><SUBJECT>hands</SUBJECT><MESSAGE>Why?</MESSAGE></NLM-QUESTION></LiveQA>""")
    problems = []
    (question,) = sources.read_records(tmp_path, "liveqa", on_error="skip", problems=problems)
    assert question | {"meta": ""} == {"id": "liveqa-train_1-Q1", "source": "liveqa", "language": "en", "question": "feet",
                                       "references": ["Rest them.", "Wash them."], "meta": ""}
    assert "NLM-QUESTION 2, field 'ANSWER': no reference answer" in problems[0]


def test_instruction_twins():
    assert [(r["meta"]["part"], r["output"]) for r in twin("pmc_llama_instructions")[0]] == [
        ("medqa_train", "###Answer: OPTION A IS CORRECT."), ("umls", "It is a made-up fever.")]
    assert [(r["id"], r["input"], r["output"]) for r in twin("umls")[0]] == [
        ("umls-1", "Blue fever", 'A made-up fever, "blue" by name.'), ("umls-relations-1", 'Red "moss"\nBlue fever', "causative agent of")]


def test_umls_rows_by_hand(tmp_path):
    """Preferred, English, current names alone; bars end every cell; a relation reads from the second concept to the first; bad lines are named."""
    shutil.copytree(TWINS / "umls", tmp_path / "umls")
    relations = tmp_path / "umls" / "MRREL.RRF"
    relations.write_text("C0000001|cut short\n" + relations.read_text().replace("causative_agent_of", "caused_by") + "\n")
    problems = []
    (found,) = sources.read_records(tmp_path, "umls", split="relations", on_error="skip", problems=problems)
    assert (found["input"], found["output"]) == ('Red "moss"\nBlue fever', "caused by")
    assert [re.search(r"MRREL.RRF, line (\d): '.*' lacks CUI1, CUI2, RELA, SUPPRESS at their places", text)[1] for text in problems] == ["1", "5"]
    with pytest.raises(ValueError, match=r"MRREL\.RRF, line 1: 'C0000001\|cut short\\n' lacks CUI1, .*; fetch the file again"):
        list(sources.read_records(tmp_path, "umls", split="relations"))
    (tmp_path / "umls" / "MRCONSO.RRF").unlink()
    with pytest.raises(FileNotFoundError, match=r"MRCONSO\.RRF"):
        list(sources.read_records(tmp_path, "umls"))


def test_other_domains_of_super_natural_instructions_are_left_out(tmp_path):
    """MedS-Ins keeps the tasks of Healthcare and of Medicine; a task may have several domains."""
    native = json.loads((TWINS / "superni_task181/tasks/task901_invented.json").read_text())
    for number, domains in enumerate((["Sports"], ["News", "Healthcare"], [], ["Medicine"], ["Medicine of cars"])):
        write(tmp_path / f"superni_task181/tasks/task{number}.json", native | {"Domains": domains})
    assert [record["id"] for record in sources.read_records(tmp_path, "super_natural_instructions", split="tasks")] == [
        "super_natural_instructions-tasks-tasks-task1", "super_natural_instructions-tasks-tasks-task3"]


def test_tasks_are_kept_as_they_are_and_checked(tmp_path):
    native = json.loads((TWINS / "meds_ins/task900_heart_text_classification_train.json").read_text())
    (task,), _ = twin("meds_ins")
    assert task == {"id": "meds_ins-task900_heart_text_classification_train", "source": "meds_ins", "language": "en"} | native
    assert len(native) == 14
    assert len(twin("meds_bench")[0][0]["Instances"]) == 1
    for name, key in (("meds_ins", "Domains"), ("superni_task181/tasks", "Instance License")):
        path = write(tmp_path / name / "task1.json", {field: value for field, value in native.items() if field != key})
        with pytest.raises(ValueError, match=rf"task1\.json, record 1, field '{key}': missing; a task needs Contributors"):
            list(sources.read_records(tmp_path, "meds_ins" if name == "meds_ins" else "super_natural_instructions"))
        write(path, native | {"Instances": [{"id": "1", "input": "The heart beats.", "output": ""}]})
        with pytest.raises(ValueError, match=r"task1\.json, record 1, field 'Instances', 1: input and output are needed"):
            list(sources.read_records(tmp_path, "meds_ins" if name == "meds_ins" else "super_natural_instructions"))


def test_annotation_twins():
    assert [r["entities"] for r in twin("bc4chemd")[0]] == [
        [{"start": 0, "end": 7, "type": "Chemical", "text": "Aspirin"}],
        [{"start": 0, "end": 15, "type": "Chemical", "text": "Sodium chloride"}, {"start": 16, "end": 25, "type": "Chemical", "text": "potassium"}]]
    assert [e["text"] for r in twin("species800")[0] for e in r["entities"]] == ["E. coli", "Homo sapiens"]
    assert [r["labels"] for r in twin("healthfact")[0]] == [["false"], ["true"]]
    assert "test.tsv, line 5, field 'label'" in twin("healthfact")[1][0]
    assert twin("ddxplus")[0][0] | {"id": ""} == {
        "id": "", "source": "ddxplus", "language": "en", "labels": ["Sprain"],
        "text": "Age: 40. Sex: F.\nDo you have a fever? yes\nWhere is the pain? knee\nHow strong is it (0-10)? 4"}
    assert (twin("seer")[0][0]["text"], twin("seer")[0][0]["labels"]) == (
        "Age recode: 50-54 years\nPrimary Site: C50", ["Radiation after surgery"])


def test_a_mention_that_is_not_at_its_span_is_named(tmp_path):
    write(tmp_path / "bc5cdr_pubtator/CDR_TestSet.PubTator.txt", "7|t|Red moss.\n7|a|It grows.\n7\t0\t4\tmoss\tChemical\tD1\n")
    with pytest.raises(ValueError, match="document 7, field 'mention': 'moss' is not the text at 0 to 4"):
        list(sources.read_records(tmp_path, "bc5cdr"))


# --- traps that the public files show only in parts ---

def test_igakuqa_takes_every_kind_of_answer(tmp_path):
    """One to three letters, either of two, a number without choices, eight choices, a typo in the key, pictures without text."""
    item = {"problem_id": "1A1", "problem_text": "どれか。", "choices": list("いろはにほ"), "text_only": True, "answer": ["e"], "points": "1"}
    rows = [item, item | {"problem_id": "1A2", "answer": ["c", "a"]}, item | {"problem_id": "1A3", "answer": ["a or d"]},
            item | {"problem_id": "1A4", "answer": ["146"], "choices": []}, item | {"problem_id": "1A5", "choices": list("いろはにほへとち"), "answer": ["h"]},
            {key: value for key, value in item.items() if key != "answer"} | {"problem_id": "1A6", "asnwer": ["b"]},
            item | {"problem_id": "1A7", "choices": ["\u3000"] * 5, "text_only": False}]
    write(tmp_path / "igakuqa/data/2021/115-A.jsonl", "\n".join(map(json.dumps, rows)))
    write(tmp_path / "igakuqa/data/2021/115-A_metadata.jsonl", "{}")
    exam = sources.load_exam(tmp_path, "igakuqa")
    assert [item["answer_idx"] for item in exam] == ["E", "A,C", "A", "", "H", "B", "E"]
    assert [item["answer"] for item in exam] == ["ほ", "い, は", "い", "146", "ち", "ろ", "E"]
    assert exam[2]["meta_info"]["accepted"] == ["A", "D"]
    assert (exam[3]["options"], exam[3]["meta_info"]["open"]) == ({}, True)


def test_frenchmedmcqa_letters_are_small_and_the_type_may_be_missing(tmp_path):
    item = {"id": "f1", "question": "Lesquels ?", "answers": {"a": "Un", "c": "Trois", "b": "Deux"}, "correct_answers": ["c", "a"]}
    write(tmp_path / "frenchmedmcqa/test.json", [item, item | {"type": "multiple"}])
    exam = sources.load_exam(tmp_path, "frenchmedmcqa")
    assert exam[0]["options"] == {"A": "Un", "B": "Deux", "C": "Trois"}
    assert (exam[0]["answer_idx"], exam[0]["answer"], exam[1]["meta_info"]["type"]) == ("A,C", "Un, Trois", "multiple")
    write(tmp_path / "frenchmedmcqa/test.json", [item | {"correct_answers": []}])
    with pytest.raises(ValueError, match=r"test\.json, record 1, field 'correct_answers': no right answer among A, B, C"):
        sources.load_exam(tmp_path, "frenchmedmcqa")


def test_a_table_may_have_semicolons_and_a_byte_order_mark(tmp_path):
    path = write(tmp_path / "healthfc/Datensatz.csv", "")
    path.write_text("en_claim;de_claim;label;en_explanation\nIt, helps;Es hilft;0;Yes\n", encoding="utf-8-sig")
    records = list(sources.read_records(tmp_path, "healthfc"))
    assert [(r["id"], r["language"], r["text"], r["labels"]) for r in records] == [
        ("healthfc-1", "en", "It, helps", ["supported"]), ("healthfc-de-1", "de", "Es hilft", ["supported"])]


# --- bad records: stop, or skip and list ---

def test_bad_records_are_skipped_and_listed(native):
    """Line 3 is no JSON, line 5 has no right answer, line 7 repeats an id; the count is wrong, too."""
    rows = [json.dumps(MEDMCQA | {"id": f"x{n}"}) for n in range(1, 10)]
    rows[2], rows[4], rows[6] = '{"id', json.dumps(MEDMCQA | {"cop": 0}), json.dumps(MEDMCQA | {"id": "x1"})
    write(native / MEDMCQA_FILE, "\n".join(rows))
    problems = []
    exam = sources.load_exam(native, "medmcqa", on_error="skip", problems=problems)
    assert [item["id"] for item in exam] == ["medmcqa-x1", "medmcqa-x2", "medmcqa-x4", "medmcqa-x6", "medmcqa-x8", "medmcqa-x9"]
    assert [next(part for part in ("line 3: broken JSON", "line 5, field 'cop'", "line 7: the id 'medmcqa-x1' occurs twice",
                                   "6 records, 4,183 are published") if part in problem) for problem in problems]
    assert len(problems) == 4


def test_without_a_list_the_screen_is_told(native, capsys):
    assert len(sources.load_exam(native, "medmcqa")) == 9
    assert "medmcqa, split validation: 9 records, 4,183 are published" in capsys.readouterr().err


def test_a_broken_file_among_good_ones_is_skipped_and_listed(native):
    write(native / "medquad/6_NINDS_QA/0000002.xml", "<Document><QAPair>")
    problems = []
    assert len(sources.load_corpus(native, ["medquad"], on_error="skip", problems=problems)) == 1
    assert "0000002.xml, line 1: broken XML" in problems[0]


def test_records_in_another_form_are_named(native):
    write(native / MEDMCQA_FILE, "[1, 2]")
    with pytest.raises(ValueError, match=r"dev\.json, line 1, field 'question': a non-empty text is needed"):
        sources.load_exam(native, "medmcqa")
    write(native / "medlfqa_olaph/live_qa_test_MedLFQA.jsonl", '{"Question": "Why?", "Free_form_answer": 3}')
    with pytest.raises(FileNotFoundError, match=r"medlfqa_olaph/healthsearch_qa_test\.jsonl is missing.*From: https"):
        list(sources.read_records(native, "healthsearchqa"))


def test_splits_are_read_by_name_and_have_ids_of_their_own(native):
    write(native / "medmcqa_dev/data/train.json", json.dumps(MEDMCQA))
    assert [item["id"] for item in sources.load_exam(native, "medmcqa", split="train")] == ["medmcqa-train-x1"]
    assert len(sources.load_exam(native, "medmcqa")) == 9
    assert len(list(sources.read_records(native, "medmcqa"))) == 10
    assert [item["id"] for item in sources.load_exam(native, "pubmedqa", split="train")] == ["pubmedqa-train-111"]
    with pytest.raises(ValueError, match="medmcqa: unknown split 'test'; there are validation, train"):
        sources.load_exam(native, "medmcqa", split="test")


# --- the hub: the same records through the same declarations ---

@pytest.fixture
def hub(monkeypatch):
    """Stands for the hub: {(id, configuration, split): rows}; every call must name the pinned revision and run no code."""
    shelves, asked = {}, []

    def load_dataset(path, name=None, *, split, revision):
        asked.append((path, name, split, revision))
        return shelves[path, name, split]
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return shelves, asked


def test_native_records_from_the_hub_become_the_same_items(hub, native):
    shelves, asked = hub
    shelves["GBaker/MedQA-USMLE-4-options", None, "test"] = datasets.Dataset.from_list([MEDQA] * 9)
    shelves["openlifescienceai/medmcqa", None, "validation"] = datasets.Dataset.from_list([MEDMCQA | {"id": f"x{n}"} for n in range(9)])
    for name in ("medqa_us_4opt", "medmcqa"):
        assert sources.load_exam("hub", name) == sources.load_exam(native, name)
    assert all(len(revision) == 40 for *_, revision in asked)


def test_class_labels_and_the_names_of_the_hub_are_understood(hub):
    """MedMCQA's answer counts from 0 there, as a class label; PubMedQA has other names; MMLU has a list of choices."""
    shelves, _ = hub
    pmid = sorted((REPOSITORY / "lib/knowledge/pubmedqa_test.txt").read_text().split())[0]
    labels = datasets.ClassLabel(names=["a", "b", "c", "d"])
    rows = datasets.Dataset.from_list([MEDMCQA | {"cop": 3}])
    shelves["openlifescienceai/medmcqa", None, "validation"] = rows.cast_column("cop", labels)
    assert sources.load_exam("hub", "medmcqa")[0]["answer"] == "Axillary"
    entry = {"pubid": int(pmid), "question": "Does it help?", "context": {"contexts": ["It was tried."], "labels": ["A"]},
             "long_answer": "It does help.", "final_decision": "maybe"}
    shelves["qiaojin/PubMedQA", "pqa_labeled", "train"] = datasets.Dataset.from_list([entry, entry | {"pubid": 1}])
    (item,) = sources.load_exam("hub", "pubmedqa")
    assert (item["id"], item["answer_idx"], item["context"], item["rationale"]) == (f"pubmedqa-{pmid}", "C", "It was tried.", "It does help.")
    assert [item["id"] for item in sources.load_exam("hub", "pubmedqa", split="train")] == ["pubmedqa-train-1"]
    assert [r["id"] for r in sources.load_corpus("hub", ["pubmedqa_abstracts"])] == ["pubmedqa_abstracts-1"]
    question = {"question": "Which?", "choices": list("wxyz"), "answer": 2}
    letters = datasets.ClassLabel(names=list("ABCD"))
    for subject in sources.SOURCES["mmlu_medical"].entry["hub"]["splits"]["dev"]:
        name = subject.split("/")[0]
        shelves["cais/mmlu", name, "dev"] = datasets.Dataset.from_list([question | {"subject": name}]).cast_column("answer", letters)
    exam = sources.load_exam("hub", "mmlu_medical", split="dev")
    assert [item["answer"] for item in exam] == ["y"] * 6
    assert exam[0]["meta_info"] == {"subject": "anatomy"}


def test_a_bad_row_of_the_hub_is_named_and_a_set_without_rows_says_how_to_obtain_it(hub):
    shelves, _ = hub
    shelves["openlifescienceai/medmcqa", None, "validation"] = datasets.Dataset.from_list([MEDMCQA, MEDMCQA | {"id": "x2", "cop": 9}])
    with pytest.raises(ValueError, match="openlifescienceai/medmcqa, validation, record 2, field 'cop': no right answer"):
        sources.load_exam("hub", "medmcqa")
    with pytest.raises(FileNotFoundError, match="mmedbench.*From: .*MMedBench.zip"):
        sources.load_exam("hub", "mmedbench")
    assert {"medqa_us_4opt", "medmcqa", "pubmedqa", "mmlu_medical", "pmc_llama_instructions"} <= set(sources.available("hub"))


# --- the table on screen and the cards ---

def test_the_table_of_what_is_there(native, capsys):
    sources.main([str(native)])
    lines = capsys.readouterr().out.split("\n")
    assert lines[0].split() == ["set", "split", "records", "expected"]
    assert [line.split()[:4] for line in lines if line.startswith("medmcqa ")] == [["medmcqa", "validation", "9", "4183"]]
    assert "    medmcqa, split validation: 9 records, 4,183 are published; is the download complete?" in lines
    for arguments in ([], [str(native / "nowhere")]):
        with pytest.raises(SystemExit, match="usage: python -m lib.sources DATA_DIR"):
            sources.main(arguments)


def test_the_committed_cards_are_those_of_the_table(places):
    sources.main(["--cards"])
    written = (places / "results_root/data_cards.md").read_text()
    assert written == (REPOSITORY / "results/data_cards.md").read_text()
    assert written.count("\n## ") == len(sources.SOURCES)
    for word in ("Title", "Licence", "Citation", "Languages", "Records", "Restrictions", "Obtain"):
        assert written.count(f"\n- **{word}:** ") == len(sources.SOURCES)


# --- every set that is among the public files (counts: the README of the data folder) ---

COUNTS = {
    "medquad": 2646, "medical_meadow": 5942, "pubmedqa_abstracts": 1000, "hoc": 1852, "chatdoctor": 5452, "mts_dialog": 300,
    "aci_bench": 60, "s2orc": 8, "s2orc_metadata": 1000, "pmc_oa": 8, "medqa_us_4opt": 1273, "medqa_us_5opt": 1273, "medmcqa": 4183,
    "pubmedqa": 1000, "mmlu_medical": 1089 + 123 + 30, "headqa": 1366 + 1366 + 2742, "frenchmedmcqa": 2171 + 312, "igakuqa": 1200,
    "rumeddanet": 1052 + 256, "casimedicos": 553 * 2,  # the README counts the cases of the paper, the files have five fewer
    "liveqa": 104, "medicationqa": 690, "healthsearchqa": 3173,  # of 4,436 lines 1,263 are empty
    "medlfqa": 967, "medquad_questions": 2646, "chatdoctor_instructions": 5452, "medical_meadow_instructions": 5942,
    "super_natural_instructions": 338 + 43 + 43, "bc5cdr": 1000, "bc5cdr_sentences": 4581 + 4797, "ncbi_disease": 200,
    "ncbi_disease_sentences": 923 + 940, "hoc_labels": 1852, "ebm_nlp": 191, "ebm_nlp_sentences": 1368, "meqsum": 1000, "healthfc": 750 * 2,
    "mediqa_question_summaries": 150, "mediqa_impressions": 2000, "icd10cm": 95358, "mts_dialog_notes": 300, "aci_bench_notes": 60}


def test_every_public_set_loads_with_its_count_and_nothing_to_report(shared_data):
    """Only MedQuAD is known to be there in part."""
    counts, problems = {}, []
    for row in sources.inventory(shared_data):
        counts[row["set"]] = counts.get(row["set"], 0) + row["records"]
        problems += row["problems"]
    assert counts == COUNTS
    assert [problem for problem in problems if not problem.startswith("medquad")] == []


def test_public_exams_have_their_traps(shared_data):
    igakuqa = {item["id"]: item for item in sources.load_exam(shared_data, "igakuqa")}
    assert sum(not item["options"] for item in igakuqa.values()) == 7
    assert sorted({len(item["options"]) for item in igakuqa.values()}) == [0, 5, 6, 8]
    assert igakuqa["igakuqa-112B30"]["meta_info"]["accepted"] == ["A", "D"]
    assert [sum(len(item["answer_idx"].split(",")) == number and item["options"] != {} for item in igakuqa.values()) for number in (1, 2, 3)] == [1015, 148, 30]
    headqa = sources.load_exam(shared_data, "headqa")
    assert sum(bool(item["meta_info"]["image"]) for item in headqa) == 67
    french = sources.load_exam(shared_data, "frenchmedmcqa", split="train")
    assert sum("," in item["answer_idx"] for item in french) == 2171 - 595
    cases = sources.load_exam(shared_data, "casimedicos", split="train_en")
    assert {len(item["options"]) for item in cases} == {4, 5}
    assert all(item["rationale"] and item["question"] for item in cases)
    questions = list(sources.read_records(shared_data, "liveqa"))
    assert sum(len(question["references"]) for question in questions) == 167  # three of them below RefAnswer
    for name, split in (("mmlu_medical", "test"), ("medqa_us_5opt", None), ("rumeddanet", "train")):
        assert all(item["options"][item["answer_idx"]] == item["answer"] for item in sources.load_exam(shared_data, name, split=split))


def test_public_entities_are_the_text_at_their_span(shared_data):
    for name, kinds in (("bc5cdr", {"Chemical", "Disease"}), ("bc5cdr_sentences", {"Chemical", "Disease"}),
                        ("ncbi_disease", {"DiseaseClass", "SpecificDisease", "CompositeMention", "Modifier"}), ("ncbi_disease_sentences", {"Disease"}),
                        ("ebm_nlp", {"Participant", "Intervention", "Outcome"}), ("ebm_nlp_sentences", {"Participant", "Intervention", "Outcome"})):
        entities = [(record["text"][entity["start"]:entity["end"]], entity) for record in sources.read_records(shared_data, name)
                    for entity in record["entities"]]
        assert {entity["type"] for _, entity in entities} == kinds
        assert all(text == entity["text"] for text, entity in entities)
    assert {label for record in sources.read_records(shared_data, "hoc_labels") for label in record["labels"]} >= {"Resisting cell death"}


def test_public_papers_are_whole(shared_data):
    for name in ("s2orc", "pmc_oa"):
        papers = sources.load_corpus(shared_data, [name])
        assert len(papers) == 8
        assert all(len(paper["text"]) > 10_000 and paper["text"].count("\n") > 10 for paper in papers)


# --- papers: S2ORC in its three formats, PMC's XML ---

ABOUT = ("title", "pmc_id", "pubmed_id", "mag_field_of_study")


def in_three_formats(native, known):
    """(2019, 2020, 2021, metadata row of 2020) of one paper, whatever the format that it is published in."""
    parse = native.get("grobid_parse") or {part: native[part] for part in ("abstract", "body_text")}
    about, key = {name: (native.get("metadata") or known).get(name) for name in ABOUT}, native["paper_id"]
    row = {"paper_id": key, "authors": [], "abstract": None} | about | {"has_pdf_parse": True}
    return ({"paper_id": key, "metadata": about, "s2_pdf_hash": "", "grobid_parse": parse, "latex_parse": None},
            {"paper_id": key, "_pdf_hash": ""} | parse | {"bib_entries": {}, "ref_entries": {}},
            {"paper_id": key, "metadata": about, "back_matter": [{"text": "We thank the crew."}]} | parse, row)


def test_the_three_formats_of_s2orc_give_one_text(shared_data, tmp_path):
    """Every public paper, rewritten in each format: the same text, title first, and the same ids; back matter is left out."""
    folder = shared_data / "s2orc_json"
    rows = map(json.loads, (folder / "data/metadata/sample.jsonl").read_text(encoding="utf-8").splitlines())
    known = {row["paper_id"]: row for row in rows}
    paths = sorted(folder.glob("tests/s2orc/*/*.json"))
    assert {path.parent.name for path in paths} == {"20190928", "20200705", "20210101"}
    papers = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    formats = zip(*(in_three_formats(paper, known.get(paper["paper_id"], {})) for paper in papers))
    published = {record["id"]: record for record in sources.read_records(shared_data, "s2orc")}
    *releases, metadata = (list(records) for records in formats)
    for year, records in zip(("2019", "2020", "2021"), releases):
        root = tmp_path / year
        write(root / "s2orc_json/pdf_parses/pdf_parses_3.jsonl", records)
        if year == "2020":
            write(root / "s2orc_json/metadata/metadata_3.jsonl", metadata)
            write(root / "s2orc_json/metadata/metadata_4.jsonl", [row | {"title": "Of another shard"} for row in metadata])
        assert {record["id"]: record for record in sources.read_records(root, "s2orc")} == published
    assert all(record["text"].split("\n")[0] == sources.tidy(row["title"]) for record, row in zip(published.values(), metadata))
    assert len(published) == 8
    assert "thank the crew" not in "".join(record["text"] for record in published.values())


def test_papers_without_a_pmc_id_are_dropped_and_fields_of_study_are_told(shared_data):
    papers = sources.load_corpus(shared_data, ["s2orc", "pmc_oa"])
    kept, dropped = filters.clean(papers, [filters.without_pmc_id])
    assert {record["id"]: record["meta"]["pmc_id"] for record in kept if record["source"] == "s2orc"} == {
        "s2orc-10002293": "PMC5371592", "s2orc-10045593": "PMC5055573", "s2orc-18980463": "PMC1950857"}
    assert (len(kept), {drop["reason"] for drop in dropped}) == (3 + 8, {"no PMC id"})
    fields = {record["id"]: record["meta"]["field_of_study"] for record in papers}
    assert fields["s2orc-18980463"] == ["Biology", "Medicine"]
    assert fields["s2orc-10002293"] is None  # the release of 2019 does not tell it
    assert fields["pmc_oa-pntd.0002065"] == ["Veterinary Science"]
    metadata = list(sources.read_records(shared_data, "s2orc_metadata"))
    assert len(filters.clean(metadata, [filters.without_pmc_id])[0]) == 34
    assert sum(record["meta"]["field_of_study"] == ["Medicine"] for record in metadata) == 174


JATS = """<article xmlns:mml="m"><front><journal-meta><journal-title>J</journal-title></journal-meta><article-meta>
<article-id pub-id-type="pmid">7</article-id><article-id pub-id-type="pmcid">PMC8</article-id>
<article-categories><subj-group subj-group-type="heading"><subject>Research</subject></subj-group>
<subj-group subj-group-type="Discipline-v3"><subject>Medicine</subject><subj-group><subject>Livers</subject></subj-group></subj-group></article-categories>
<title-group><article-title>Of <italic>livers</italic></article-title></title-group>
<abstract><p>We looked.</p></abstract><abstract abstract-type="summary"><p>Again.</p></abstract></article-meta></front>
<body><sec><label>1.</label><title>Results</title><p>It has
10<sup>6</sup> cells<sup><xref ref-type="bibr" rid="b1">1</xref>,<xref ref-type="bibr" rid="b2">2</xref></sup> at 5 m<sup>-2</sup>,
in the 20<sup>th</sup> week<xref ref-type="bibr" rid="b1"><sup>1</sup></xref>:
<list><list-item><p>first,</p></list-item><list-item><p>second<fn><p>A note.</p></fn>,</p></list-item></list>
and so on.<table-wrap><caption><p>A table.</p></caption><table><tr><td>1</td></tr></table></table-wrap>
See <disp-formula><tex-math>\\documentclass{x}</tex-math></disp-formula>here.</p></sec></body>
<back><ref-list><ref><article-title>Other</article-title></ref></ref-list></back></article>"""


def test_xml_of_a_paper_by_hand(tmp_path):
    """A table within a paragraph, a list, raised numbers and raised citations, a formula: each has gone wrong in real papers."""
    write(tmp_path / "pmc_oa_nxml/a.nxml", JATS)
    (record,) = sources.read_records(tmp_path, "pmc_oa")
    assert record["text"] == ("Of livers\nWe looked.\nResults\nIt has 10^6 cells at 5 m^-2, in the 20th week:\nfirst,\nsecond,\n"
                              "and so on. See here.")
    assert record["meta"] | {"kind": "", "document": ""} == {
        "kind": "", "document": "", "split": "train", "pmc_id": "PMC8", "pmid": "7", "field_of_study": ["Medicine"]}


def test_public_papers_hold_no_table(shared_data):
    """mds526 has its tables within paragraphs: 10,000 of its 33,000 characters were numbers."""
    papers = {record["id"]: record["text"] for record in sources.read_records(shared_data, "pmc_oa")}
    assert len(papers["pmc_oa-mds526"]) < 24_000
    assert not [line for text in papers.values() for line in text.split("\n") if sum(map(str.isdigit, line)) > 0.3 * len(line)]


# --- bad shards ---

PAPER = {"abstract": [{"text": "We tried."}], "body_text": [{"text": "It helped."}]}


def shard(folder, papers, **broken):
    """Lines of a gzipped shard of S2ORC; broken: {_line: bytes}."""
    lines = [json.dumps(paper).encode() for paper in papers]
    for place, content in broken.items():
        lines[int(place[1:]) - 1] = content
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "pdf_parses_0.jsonl.gz"
    path.write_bytes(gzip.compress(b"\n".join(lines) + b"\n", mtime=0))
    return path


def read_with_problems(data_dir, name):
    problems = []
    return [record["id"] for record in sources.read_records(data_dir, name, on_error="skip", problems=problems)], problems


def test_bad_lines_of_a_gzipped_shard_are_named_and_nothing_else_is_lost(tmp_path):
    papers = [{"paper_id": str(number)} | PAPER for number in range(1, 8)]
    papers[4] |= {"abstract": [], "body_text": []}
    shard(tmp_path / "s2orc_json/pdf_parses", papers, _2=b'{"paper_id": "2", "abst', _4=b'{"paper_id": "4\xff"}', _7=b"[]")
    ids, problems = read_with_problems(tmp_path, "s2orc")
    assert ids == ["s2orc-1", "s2orc-3", "s2orc-6"]
    for number, said in enumerate(("line 2: broken JSON", "line 4: not UTF-8 at byte 15", "line 5, field 'body_text.text': a non-empty text", "line 7")):
        assert f"pdf_parses_0.jsonl.gz, {said}" in problems[number]
    assert len(problems) == 4


def test_a_gzipped_shard_that_was_cut_short_keeps_what_can_be_read(tmp_path):
    papers = [{"paper_id": str(number), "noise": random.Random(number).random()} | PAPER for number in range(4000)]
    path = shard(tmp_path / "s2orc_json", papers)
    whole = path.read_bytes()
    path.write_bytes(whole[:len(whole) // 2])
    ids, problems = read_with_problems(tmp_path, "s2orc")
    assert 1000 < len(ids) < 3000
    assert ids == [f"s2orc-{number}" for number in range(len(ids))]
    assert len(problems) == 1
    assert "pdf_parses_0.jsonl.gz: EOFError('Compressed file ended" in problems[0]
    path.write_bytes(b"no gzip at all")
    assert "BadGzipFile" in read_with_problems(tmp_path, "s2orc")[1][0]
    with pytest.raises(ValueError, match="pdf_parses_0.jsonl.gz: BadGzipFile"):
        sources.load_corpus(tmp_path, ["s2orc"])


def test_a_broken_line_of_the_metadata_costs_its_paper_only(tmp_path):
    papers = [{"paper_id": str(number)} | PAPER for number in (1, 2, 3)]
    shard(tmp_path / "s2orc_json/pdf_parses", papers)
    rows = [json.dumps({"paper_id": str(number), "title": f"Title {number}", "has_pdf_parse": True, "pmc_id": "PMC1"}) for number in (1, 2, 3)]
    rows[1] = rows[1][:-3]
    folder = tmp_path / "s2orc_json/metadata"
    folder.mkdir()
    (folder / "metadata_0.jsonl.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    ids, problems = read_with_problems(tmp_path, "s2orc")
    assert (ids, len(problems)) == (["s2orc-1", "s2orc-3"], 1)
    assert "pdf_parses_0.jsonl.gz, line 2: broken JSON" in problems[0]
    assert read_with_problems(tmp_path, "s2orc_metadata")[0] == ["s2orc_metadata-1", "s2orc_metadata-3"]


# --- textbooks as PDF ---

PAGES = [
    ["Contents", "1 Asthma ........ 3", "2 Gout ........ 9"],
    ["Okafor A, Moreau C, Wang G", "Chapter 1. Asthma",
     "Asthma is a chronic disease of the airways [3]. It is trea-", "ted with inhaled steroids (see Figure 5.1). See Figure 5.2."],
    ["Attacks are frequent in winter [4, 5]. More at", "https://www.example.org/asthma for doctors.", "Beta blockers are to be avoided."],
    ["Chapter 2. Gout", "Gout follows from uric acid (Wang et al., 2001).", "Allopurinol prevents attacks."],
    ["References", "1. Okafor A (2001). Of asthma. J Med 3:4.", "2. Wang G. Gout. Lancet 1999;3:4."]]


def book_pdf(path, pages):
    """A page of lines each, with a running head and a page number, as matplotlib writes them; its text can be read out again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"pdf.fonttype": 42}), PdfPages(path) as pdf:
        for number, lines in enumerate(pages, start=1):
            figure = Figure((6, 8))
            for row, line in enumerate([f"{number} PRINCIPLES OF MEDICINE", *lines, str(number)]):
                figure.text(0.1, 0.9 - 0.05 * row, line, fontsize=9)
            pdf.savefig(figure)
    return path


def test_a_book_as_pdf_is_cleaned_to_its_sentences(tmp_path):
    book_pdf(tmp_path / "textbooks/medicine.pdf", PAGES)
    write(tmp_path / "textbooks/anatomy.txt", "The liver makes bile.")
    raw = {record["id"]: record for record in sources.load_corpus(tmp_path, ["textbooks"])}
    assert list(raw) == ["textbooks-anatomy", "textbooks-medicine"]
    book = raw["textbooks-medicine"]
    assert book["text"].count("PRINCIPLES OF MEDICINE") == len(PAGES)
    cleaned = filters.clean_book(book)
    assert cleaned["text"] == textwrap.dedent("""\
        Chapter 1. Asthma
        Asthma is a chronic disease of the airways. It is treated with inhaled steroids.
        Attacks are frequent in winter. More at
        for doctors.
        Beta blockers are to be avoided.
        Chapter 2. Gout
        Gout follows from uric acid.
        Allopurinol prevents attacks.""")
    assert cleaned["meta"]["removed"] == {"URL": 1, "author line": 1, "citation mark": 3, "contents": 3, "figure reference": 2,
                                          "hyphenation": 1, "references": 3, "running head": 10}


def test_broken_locked_and_scanned_books_are_named(tmp_path):
    folder = tmp_path / "textbooks"
    whole = book_pdf(folder / "good.pdf", PAGES).read_bytes()
    blank = pypdf.PdfWriter()
    blank.add_blank_page(width=300, height=400)
    blank.write(folder / "scanned.pdf")
    writer = pypdf.PdfWriter(clone_from=folder / "good.pdf")
    writer.encrypt("secret", algorithm="RC4-128")
    writer.write(folder / "locked.pdf")
    (folder / "cut.pdf").write_bytes(whole[:600])
    (folder / "no.pdf").write_bytes(b"This is no PDF.")
    (folder / "empty.pdf").write_bytes(b"")
    ids, problems = read_with_problems(tmp_path, "textbooks")
    assert ids == ["textbooks-good"]
    said = {problem.partition(".pdf")[0].rpartition("/")[2]: problem.partition(".pdf")[2] for problem in problems}
    assert sorted(said) == ["cut", "empty", "locked", "no", "scanned"]
    assert "not been decrypted" in said["locked"]
    assert "the file is empty" in said["empty"]
    assert "field 'text': a non-empty text is needed" in said["scanned"]
    assert all("not in the published form" in said[name] for name in ("cut", "no"))
