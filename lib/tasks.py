"""Clinical tasks in the schema of MedS-Ins, as lib/knowledge/tasks.yaml declares them: made, read and asked."""
import random
from functools import cache
import jinja2
from lib import world
from lib.text_metrics import entity_list
DECLARED, SEEDS = world.read_yaml("tasks.yaml"), world.read_yaml("seeds.yaml")

@jinja2.pass_context
def _tell(context, pool):
    """One of the templates, with all that the task has named so far filled in."""
    return world.fill(context["draw"].choice(pool), **{name: value for name, value in context.get_all().items() if isinstance(value, str | int)})

JINJA = world.JINJA.overlay()
JINJA.globals |= {"tell": _tell, "entity_list": entity_list, "lists": DECLARED["lists"]}

def world_tasks(known, diseases, *, instances, seed, split="train"):
    """{task id: task} of the controlled world on the given diseases alone, up to `instances` different ones of each task."""
    about = [row | {part.replace("name", "disease"): world.term(known, row, part, "en") for part in ("name", *world.ATTRIBUTES)} for row in diseases]
    made = {}
    for name, entry in DECLARED["world"].items():
        cases = {}
        for number in range(3 * instances):
            if len(cases) < instances:  # some tasks have fewer different instances than are wanted
                said, answer, of = render(name, {"draw": random.Random(f"{name} {seed} {number}"), "about": about, "words": world.wordings("en")})
                cases.setdefault((said, answer), {"id": f"{name}-{of}-{number}", "input": said, "output": [answer]})
        made[name] = make_task(entry, list(cases.values()), source="controlled world", split=split)
    return made

def render(name, slots, part="world"):
    """(input, output, id) that the templates of a declared task give: of a world's disease, or of a record of a public set."""
    return [text.strip() for text in _template(name, part).render(slots).split("\0")]
@cache
def _template(name, part):
    entry = DECLARED[part][name]
    names = "".join(f"{{% set {name} = {expression} %}}" for name, expression in entry.get("let", {}).items())
    begin = (DECLARED["patient"] if part == "world" else "") + DECLARED["macros"] + names
    return JINJA.from_string(begin + entry["input"] + "\0" + entry["output"] + "\0" + ("{{ terms.disease_id }}" if part == "world" else "{{ id }}"))

def make_task(entry, instances, *, source, split):
    """A task in the published schema, from what tasks.yaml says of it, its seed instructions, and instances {id, input, output: [text]}."""
    wordings = SEEDS.get(entry["title"]) or [frame.format(definition=entry["definition"]) for frame in DECLARED["rewrites"]]
    return DECLARED["schema"] | {"Contributors": [source], "Source": [source], "Categories": [entry["category"]], "Definition": wordings,
                                 "Domains": ["Healthcare", entry["domain"]], "Split Type": split, "Instances": instances}

def ask(name, task, instance, training, *, seed, num_fewshot=0, unseen=False, form="paper"):
    """The instruction record of one instance, under one of its definitions, drawn by seed, and after `num_fewshot` solved cases.
    Cases are drawn from the same task of `training`, never one with the same input. form: how cases are joined, one of prompts.yaml's."""
    draw = random.Random(f"{name} {instance['id']} {seed}")
    instruction = draw.choice(task["Definition"][10:] if unseen else task["Definition"][:10])  # of fifteen; the last five are never trained on
    pool = training[name]["Instances"] if num_fewshot else ()
    cases = [case for case in draw.sample(pool, min(len(pool), num_fewshot + 9)) if case["input"] != instance["input"]][:num_fewshot]
    if len(cases) < num_fewshot:
        raise ValueError(f"{name}: {num_fewshot} few-shot cases are wanted, the training split has {len(cases)} other than the item")
    layout = world.read_yaml("prompts.yaml")["few_shot"][form] if cases else "{{ instruction }}"
    instruction = JINJA.from_string(layout).render(cases=cases, instruction=instruction)
    return {"instruction": instruction, "input": instance["input"], "output": instance["output"][0]}
