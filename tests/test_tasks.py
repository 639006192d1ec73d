"""Clinical tasks: nothing of the test in training, gold that can be checked by hand, the published schema, few-shot cases from training alone."""

import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib import results, sources, tasks, world
from lib.text_metrics import NO_ENTITY, entity_list, item_scores, read_entities
from tests.conftest import SHARED_DATA

CATEGORIES = {"Multiple choice", "Text summarization", "Information extraction", "Concept explanation", "Rationale", "Named entity recognition",
              "Diagnosis", "Treatment planning", "Clinical outcome prediction", "Text classification", "Fact verification",
              "Natural language inference"}


@pytest.fixture(scope="module")
def known():
    return world.load_world(number_of_diseases=30)


@pytest.fixture(scope="module")
def parts(known):
    """(training, test) tasks on the training and the held-out diseases."""
    train, test = world.split_diseases(known, test_share=0.5)
    return tasks.world_tasks(known, train, instances=30, seed=0), tasks.world_tasks(known, test, instances=20, seed=1, split="test")


# --- the tasks -----------------------------------------------------------------------------------------------------------

def test_every_category_of_the_bench_is_there(parts):
    """All categories of MedS-Bench, at least 24 tasks, and some that are never trained on."""
    training, test = parts
    entries = tasks.DECLARED["world"]
    assert {entry["category"] for entry in entries.values()} == CATEGORIES
    assert len(entries) == len(training) == len(test) >= 24
    assert {entry["metric"] for entry in entries.values()} == {"accuracy", "entities", "labels", "text"}
    held_out = [name for name, entry in entries.items() if entry.get("held_out")]
    assert 3 <= len(held_out) <= 8
    official = [name for name in entries if re.fullmatch(r"task\d+", name)]
    known = {name for names in tasks.DECLARED["submissions"].values() for name in names}
    assert len(official) >= 18
    assert len(set(official) & known) >= 18, "ids that the released scorers know"
    assert all(len(task["Instances"]) >= 15 for part in parts for task in part.values())


def test_no_test_disease_and_no_test_fact_in_training(known, parts):
    """By the names of diseases, and by every finding, test and treatment that only held-out diseases have."""
    train, test = world.split_diseases(known, test_share=0.5)
    def said(diseases):
        return {world.term(known, each, column, "en").casefold() for each in diseases for column in ("name", "cause", "symptom", "test", "treatment")}
    own = said(test) - said(train)
    text = "\n".join(case["input"] + "\n" + case["output"][0] for task in parts[0].values() for case in task["Instances"]).casefold()
    assert len(own) > 50
    assert not {term for term in own if re.search(rf"\b{re.escape(term)}\b", text)
                and not any(term in other for other in said(train))}
    tested = "\n".join(case["input"] + "\n" + case["output"][0] for task in parts[1].values() for case in task["Instances"]).casefold()
    assert len([term for term in own if term in tested]) > 30, "the search finds what is there"


def test_the_same_seed_gives_the_same_tasks(known):
    again = [tasks.world_tasks(known, known.diseases, instances=4, seed=seed) for seed in (3, 3, 4)]
    assert again[0] == again[1] != again[2]


def cases(parts, name):
    return [(case["input"], case["output"][0]) for part in parts for case in part[name]["Instances"]]


def test_gold_that_stands_in_the_input(parts):
    """What is to be read off the text is there, and nothing else of its kind is."""
    for said, answer in cases(parts, "task74"):
        sex, age = re.fullmatch(r"Gender: ([MF]) Age: (\d+)", answer).groups()
        assert age in re.findall(r"\d+", said)
        assert bool(re.search(r"\b([Ww]oman|[Gg]irl)\b", said)) == (sex == "F")
    for name in ("task29", "task1", "task2", "task3"):
        assert all(answer in said for said, answer in cases(parts, name))
    for name in ("task126", "task127", "taskW04"):
        listed = [(said, read_entities(answer)) for said, answer in cases(parts, name)]
        assert all(entity in said for said, entities in listed for entity in entities)
        assert len({len(entities) for _, entities in listed}) > 1
    for said, answer in cases(parts, "task126"):
        assert set(re.findall(r"\b[A-Z]{2}-\d{3}\b", said)) == set(read_entities(answer))


def test_gold_of_verdicts(parts):
    """Vital signs by the rule that the definition states, sexes that agree or not, options that hold the answer."""
    for said, answer in cases(parts, "task119"):
        pressure, saturation = (int(re.search(rf"(?i){name} (\d+)", said)[1]) for name in ("systolic pressure", "saturation"))
        assert answer == str(pressure < 90 or saturation < 90)
    for said, answer in cases(parts, "taskW07"):
        assert answer == str(int(re.search(r"(?i)temperature (\d+)", said)[1]) > 38)
    for name in ("task117", "task119", "task12", "task16", "task41"):
        counts = Counter(answer for _, answer in cases(parts, name))
        assert min(counts.values()) > 5, f"{name}: {counts}"
    for name in CHOICES:
        letters = Counter(answer for _, answer in cases(parts, name))
        assert set(letters) == set("ABCD")
        assert max(letters.values()) < 0.5 * sum(letters.values()), f"{name}: one letter is right most of the time, {letters}"
        assert all(len(set(listed(said).values())) == 4 for said, _ in cases(parts, name))


CHOICES = ("task64", "taskW01", "task130", "task131", "taskW06")


def listed(said):
    """{letter: option} of an input that ends with a list."""
    return dict(option.split(". ", 1) for option in re.split(r"(?:Options|List): ", said)[1].split("; "))


def test_facts_of_the_answer_are_those_of_the_world(known, parts):
    """The right option is the disease's own, and no other of the four is."""
    names, seen = {world.term(known, each, "name", "en"): each for each in known.diseases}, Counter()
    for name, column in (("task131", "treatment"), ("taskW06", "warning")):
        for said, answer in cases(parts, name):
            disease = names[re.search(r"Diagnosis: (.*?)\. List", said)[1]]
            right = world.bare(world.term(known, disease, column, "en"), "en")
            assert [letter for letter, option in listed(said).items() if option == right] == [answer]
            seen[name] += 1
    for said, answer in cases(parts, "task130"):
        assert world.term(known, names[listed(said)[answer]], "symptom", "en") in said
        seen["task130"] += 1
    assert min(seen.values()) > 30


# --- schema --------------------------------------------------------------------------------------------------------------

def test_written_and_read_back_in_the_published_schema(parts, tmp_path):
    for name, task in parts[1].items():
        results.write_atomically(tmp_path / "meds_ins" / f"{name}_{tasks.DECLARED['world'][name]['title']}.json", results.to_json(task))
    back = {record["id"].split("-", 1)[1].split("_")[0]: record for record in sources.read_records(tmp_path, "meds_ins")}
    assert set(back) == set(parts[1])
    for name, task in parts[1].items():
        assert {key: back[name][key] for key in task} == task
        assert len({case["id"] for case in task["Instances"]}) == len(task["Instances"])
    broken = {key: value for key, value in task.items() if key != "Definition"}
    results.write_atomically(tmp_path / "meds_ins" / "task999_broken.json", results.to_json(broken))
    with pytest.raises(ValueError, match=r"task999_broken.json.*'Definition': missing"):
        list(sources.read_records(tmp_path, "meds_ins"))


# --- few-shot -----------------------------------------------------------------------------------------------------------

def test_few_shot_cases_are_never_the_item_nor_of_the_test(parts):
    """Every task, both forms: the cases are instances of training, none has the item's input, and there are as many as wanted."""
    training, test = parts
    for name, task in test.items():
        seen = {case["input"]: case["output"][0] for case in training[name]["Instances"]}
        for split in (test, training):
            for instance in split[name]["Instances"][:8]:
                asked = tasks.ask(name, task, instance, training, seed=5, num_fewshot=3)["instruction"]
                shown = re.findall(r"Case\d: Input: (.*?), Output: ", asked, re.DOTALL)
                assert len(shown) == 3
                assert all(said in seen for said in shown), f"{name}: a case is not of training"
                assert instance["input"] not in shown
    one = {"task64": training["task64"] | {"Instances": training["task64"]["Instances"][:1]}}
    with pytest.raises(ValueError, match="task64: 3 few-shot cases are wanted, the training split has 0"):
        tasks.ask("task64", one["task64"], one["task64"]["Instances"][0], one, seed=0, num_fewshot=3)


def test_forms_by_hand():
    """As the paper prints them and as the released code joins them; a brace in a text is no template."""
    task = {"Definition": ["Name it."], "Instances": [{"id": "a-b-1", "input": "x {{ 1 }}", "output": ["y"]}]}
    item = {"id": "a-c-2", "input": "q", "output": ["r"]}
    zero = tasks.ask("t", task, item, {}, seed=0)
    assert zero == {"instruction": "Name it.", "input": "q", "output": "r"}
    paper = tasks.ask("t", task, item, {"t": task}, seed=0, num_fewshot=1)["instruction"]
    assert paper == (f"Case1: Input: x {{{{ 1 }}}}, Output: y\n{zero['instruction']} "
                     "Please learn from the few-shot cases to see what content you have to output.")
    released = tasks.ask("t", task, item, {"t": task}, seed=0, num_fewshot=1, form="released")["instruction"]
    assert released.startswith("Input:\nx {{ 1 }}\n\nOutput:\ny\n\n\n")


def test_every_task_has_fifteen_wordings_of_its_own(parts):
    """The first is its definition, no two are the same, none is of another task, and each says what form of answer is wanted where there are two."""
    entries, training = tasks.DECLARED["world"], parts[0]
    assert set(tasks.SEEDS) == {entry["title"] for entry in entries.values()}
    for name, entry in entries.items():
        assert training[name]["Definition"] == tasks.SEEDS[entry["title"]]
        assert training[name]["Definition"][0] == entry["definition"]
    pooled = [text for pool in tasks.SEEDS.values() for text in pool]
    assert len(pooled) == len({re.sub(r"\W", "", text).casefold() for text in pooled}) == 15 * len(entries)
    answers = {name: {answer for _, answer in cases(parts, name)} for name in entries}
    for name in (name for name, some in answers.items() if some <= {"True", "False"}):
        assert all("True" in text or "False" in text for text in training[name]["Definition"])
    for name in CHOICES:
        assert all("letter" in text.casefold() for text in training[name]["Definition"])
    for name in ("task41", "task16"):
        assert all(answer in text.casefold() for text in training[name]["Definition"] for answer in answers[name])
    public = tasks.make_task(tasks.DECLARED["public"]["task114"], [], source="meqsum", split="train")["Definition"]
    assert len(set(public)) == 15
    assert public[0] == tasks.DECLARED["public"]["task114"]["definition"]


def test_wordings_for_training_are_never_asked_as_unseen(parts):
    training, test = parts
    for name in ("task41", "task64", "task114"):
        asked = [{tasks.ask(name, test[name], case, training, seed=seed, unseen=unseen)["instruction"] for seed in range(9)
                  for case in test[name]["Instances"]} for unseen in (False, True)]
        assert not asked[0] & asked[1]
        assert [len(each) for each in asked] == [10, 5]


# --- entity lists ------------------------------------------------------------------------------------------------------------

@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12) | st.sampled_from(
    ["2,4-D", "a, b", '"quoted"', 'say ""', "N,N'-dimethyl", "E. coli.", "鉄、亜鉛", "β-blocker", '"', ", ", "a,", "I, II", " x "])))
def test_entity_lists_come_back_as_they_were(entities):
    """Commas, quotes, points, spaces and any script; only the sentence that says "none" cannot be the single entity."""
    if len(entities) == 1 and entities[0].casefold() in (NO_ENTITY[:-1].casefold(), "there is no related enetity"):
        return
    assert read_entities(entity_list(entities)) == entities


def test_scores_of_short_answers_by_hand():
    assert item_scores([("iron, zinc.", "Zinc, copper."), ("iron.", "There is no related enetity."), ("There is no related entity.", "none.")],
                       "entities").tolist() == [0.5, 0, 0]
    assert item_scores([(NO_ENTITY, NO_ENTITY), ("a, a.", "a."), (" ", NO_ENTITY)], "labels").tolist() == [1, 1, 0]
    assert item_scores([("Yes.", "yes"), ("yes\nno", "Yes"), ("yes and no", "yes"), ("", "yes")], "accuracy").tolist() == [1, 1, 0, 0]
    assert item_scores([("the cat sat", "the cat sat")], "text").tolist() == pytest.approx([1])


# --- public sets -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("name", "split", "kind"), [
    ("task126", "test", "Chemical"), ("task127", "test", "Disease"), ("task27", "test", "Disease"), ("task1", "test", "Participant"),
    ("task2", "test", "Intervention"), ("task3", "test", "Outcome")])
def test_entities_of_real_sets_are_all_there(name, split, kind):
    """As many in the outputs as annotations in the files, in their order, each of them in the input."""
    entry = tasks.DECLARED["public"][name]
    if not SHARED_DATA.is_dir() or entry["from"] not in sources.available(SHARED_DATA):
        pytest.skip("needs the public data sets")
    records = list(sources.read_records(SHARED_DATA, entry["from"], split=split, on_error="skip", problems=[]))[:1500]
    total = 0
    for record in records:
        said, answer, _ = tasks.render(name, record, "public")
        wanted = [each["text"] for each in record["entities"] if each["type"] == kind]
        assert read_entities(answer) == wanted
        assert all(each in said for each in wanted)
        total += len(wanted)
    assert total > 300


@pytest.mark.parametrize(("name", "number"), [("task106", 1852), ("task114", 1000), ("taskP02", 750)])
def test_labels_and_summaries_of_real_sets(name, number):
    entry = tasks.DECLARED["public"][name]
    if not SHARED_DATA.is_dir() or entry["from"] not in sources.available(SHARED_DATA):
        pytest.skip("needs the public data sets")
    split = sources.SOURCES[entry["from"]].usual
    records = list(sources.read_records(SHARED_DATA, entry["from"], split=split))
    made = [tasks.render(name, record, "public") for record in records]
    assert len(made) == number
    assert all(said for said, _, _ in made)
    if name == "task106":
        assert [read_entities(answer) for _, answer, _ in made] == [record["labels"] for record in records]
        assert 8 <= len({label for record in records for label in record["labels"]}) <= 10
    else:
        assert all(answer for _, answer, _ in made)


def test_super_natural_instructions_are_filtered_by_domain():
    """Task 181 of the collection is medical; the papers keep what is of Healthcare or Medicine."""
    if not SHARED_DATA.is_dir() or "super_natural_instructions" not in sources.available(SHARED_DATA):
        pytest.skip("needs the public data sets")
    found = list(sources.read_records(SHARED_DATA, "super_natural_instructions", split="test"))
    assert [len(task["Instances"]) for task in found] == [43]
    assert all({"Healthcare", "Medicine"} & set(task["Domains"]) for task in found)
