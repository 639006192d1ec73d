"""Clinical tasks in the schema of MedS-Ins: made from lib/knowledge/tasks.yaml, written and read, sampled, and asked."""
import json
import random
from pathlib import Path
import jinja2
from lib import sources, world
from lib.results import write_atomically
from lib.text_metrics import entity_list
DECLARED = world.read_yaml("tasks.yaml")
FORMS = world.read_yaml("prompts.yaml")["few_shot"]
NAMES = {code: name for name, code in sources.LANGUAGES.items()}
JINJA = jinja2.Environment(undefined=jinja2.StrictUndefined)

@jinja2.pass_context
def _tell(context, pool):
    """One of the templates, with all that the task has named so far filled in."""
    slots = {name: value for name, value in context.get_all().items() if isinstance(value, str | int)}
    return world.fill(context["draw"].choice(pool), **slots)

JINJA.globals |= {"tell": _tell, "fill": world.fill, "bare": world.bare, "entity_list": entity_list, "lists": DECLARED["lists"]}

def world_tasks(known, diseases, *, instances, seed, split="train"):
    """{task id: task} of the controlled world on the given diseases alone, up to `instances` different ones of each task."""
    return {name: make_task(entry, _instances(known, diseases, name, instances, seed), source="controlled world", split=split)
            for name, entry in DECLARED["world"].items()}
def _instances(known, diseases, name, number, seed):
    """Instances of one task of the world; some tasks have fewer different ones than are wanted."""
    made, template, columns = {}, _template(DECLARED["world"][name]), ("name", *world.ATTRIBUTES)
    about = [{column.replace("name", "disease"): world.term(known, each, column, "en") for column in columns} for each in diseases]
    for i in range(3 * number):
        draw = random.Random(f"{name} {seed} {i}")
        place, sex = draw.randrange(len(diseases)), draw.choice("MF")
        age = draw.randint(int(diseases[place]["youngest"]), int(diseases[place]["oldest"]))
        patient = {"age": age, "sex": sex, "pronoun": "he" if sex == "M" else "she", "n": draw.randint(5, 400),
                   "patient": ("man" if age > 17 else "boy") if sex == "M" else "woman" if age > 17 else "girl",
                   "drug": world.agent_name(draw), "dose": f"{draw.randint(1, 50) * 5} mg"}
        slots = about[place] | patient | {"terms": about[place], "about": about, "draw": draw, "words": world.wordings("en")}
        case = _case(template, slots)
        made.setdefault(case, {"id": f"{name}-{diseases[place]['disease_id']}-{i}", "input": case[0], "output": [case[1]]})
        if len(made) == number:
            break
    return list(made.values())
def _template(entry):
    names = "".join(f"{{% set {name} = {expression} %}}" for name, expression in entry.get("let", {}).items())
    return JINJA.from_string(DECLARED["macros"] + names + entry["input"] + "\0" + entry["output"])
def _case(template, slots):
    """(input, output) that a task's template gives."""
    said, answer = template.render(slots).split("\0")
    return said.strip(), answer.strip()

def public_tasks(data_dir):
    """({task id: task} for training, the same for the test) of the annotated sets in data_dir, in the publishers' split or else 9:1."""
    parts = {}, {}
    for name, entry in DECLARED["public"].items():
        try:
            records = {split: [record for record in sources.read_records(data_dir, entry["from"], split=split, on_error="skip", problems=[])
                               if record["language"] in NAMES] for split in sources.splits(data_dir, entry["from"])}
        except FileNotFoundError:  # another set, maybe
            continue
        test = [record for split in records if split.startswith("test") for record in records[split]]
        train = [record for split in records if not split.startswith("test") for record in records[split]]
        both = (train, test) if test else sources.split_documents(train, test_share=0.1, seed=0)
        template, source = _template(entry), entry["from"]
        for tasks, some, split in zip(parts, both, ("train", "test")):
            cases = [(record["id"], _case(template, record)) for record in some]
            instances = [{"id": each, "input": said, "output": [answer]} for each, (said, answer) in cases if answer]
            tasks.update({name: make_task(entry, instances, source=source, split=split)} if instances else {})
    return parts

def make_task(entry, instances, *, source, split):
    """A task in the published schema, from what tasks.yaml says of it and instances {id, input, output: [text]}."""
    about = sources.SOURCES.get(source)
    return {"Contributors": [about.citation if about else source], "Source": [source], "URL": [about.entry["obtain"] if about else ""],
            "Categories": [entry["category"]], "Reasoning": [], "Definition": [entry["definition"]], "Input_language": ["English"],
            "Output_language": ["English"], "Instruction_language": ["English"], "Domains": ["Healthcare", entry["domain"]],
            "Split Type": split, "Positive Examples": [], "Negative Examples": [], "Instances": instances}

def write_tasks(folder, tasks):
    """One JSON file a task, named as in MedS-Ins: <task id>_<title>.json."""
    for name, task in tasks.items():
        title = next((DECLARED[part][name]["title"] for part in ("world", "public") if name in DECLARED[part]), "task")
        write_atomically(Path(folder) / f"{name}_{title}.json", json.dumps(task, ensure_ascii=False, indent=1))

def read_tasks(data_dir, name="meds_ins"):
    """{task id: task} of a folder with task files in the published schema, checked; ValueError names file and field."""
    return {record["id"].split("-", 1)[1].split("_")[0]: record for record in sources.read_records(data_dir, name)}

def shares(sizes, *, total, cap=None, temperature=1.0):
    """How many instances to take of each task: in proportion to min(size, cap) ** (1 / temperature), never more than there are.
    >>> shares({"a": 900, "b": 100}, total=100), shares({"a": 900, "b": 100}, total=100, cap=100), shares({"a": 900, "b": 100}, total=100, temperature=2)
    ({'a': 90, 'b': 10}, {'a': 50, 'b': 50}, {'a': 75, 'b': 25})"""
    weights = {name: min(size, cap or size) ** (1 / temperature) for name, size in sizes.items()}
    return {name: min(sizes[name], round(total * weight / sum(weights.values()))) for name, weight in weights.items()}

def definitions(task, *, unseen=False):
    """The definition of a task and its rewrites: those for training, or those that no training record carries."""
    frames, cut = DECLARED["rewrites"], len(DECLARED["rewrites"]) * 2 // 3
    return [frame.format(definition=task["Definition"][0]) for frame in (frames[cut:] if unseen else frames[:cut])]

def records(tasks, training, *, seed, num_fewshot=0, unseen=False, form="paper"):
    """{task id: instruction records}, one for each instance, under a definition drawn by seed and after `num_fewshot` solved cases.
    Cases are drawn from the same task of `training`, never one with the same input. form: how cases are joined, one of prompts.yaml's."""
    made, layout = {}, JINJA.from_string(FORMS[form])
    for name, task in tasks.items():
        made[name] = []
        for instance in task["Instances"]:
            draw = random.Random(f"{name} {instance['id']} {seed}")
            instruction, pool = draw.choice(definitions(task, unseen=unseen)), training[name]["Instances"] if num_fewshot else ()
            others = [case for case in draw.sample(pool, min(len(pool), num_fewshot + 9)) if case["input"] != instance["input"]][:num_fewshot]
            if len(others) < num_fewshot:
                raise ValueError(f"{name}: {num_fewshot} few-shot cases are wanted, the training split has {len(others)} other than the item")
            instruction = layout.render(cases=others, instruction=instruction) if num_fewshot else instruction
            made[name].append({"instruction": instruction, "input": instance["input"], "output": instance["output"][0]})
    return made
