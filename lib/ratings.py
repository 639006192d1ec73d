"""Answers rated by people, by models as judges and in published studies: forms, blinded studies, the rating page, one tidy table.

A row of it (COLUMNS) is a score of an item (question), answer, system, rater and axis. Of pairs the system reads "x against y", and the score is 1
where x was chosen, -1 where y was, 0 for a tie. A score that was not given has no row; a judge's that cannot be read is NaN."""
import contextlib
import hashlib
import itertools
import json
import random
import re
from pathlib import Path
import numpy as np
import pandas as pd
from lib import results, teacher
from lib.world import KNOWLEDGE, read_yaml
COLUMNS = ["item", "answer", "system", "rater", "axis", "score"]
FORMS, PUBLISHED = read_yaml("forms.yaml"), read_yaml("ratings.yaml")  # what people are asked; what others have published

def _named(known, name):
    if name not in known:
        raise ValueError(f"{name!r} is not known; choose one of {', '.join(known)}")
    return known[name]

def tasks(questions, form):
    """What is judged at a time, as (question, systems): one answer, a pair, or all answers of a question.
    questions: [{"id", "question", "answers": {system: text}}]."""
    size = {"single": 1, "pair": 2, "ranking": None}[_named(FORMS, form)["kind"]]
    systems = sorted({system for question in questions for system in question["answers"]})
    groups = list(itertools.combinations(systems, size or len(systems)))
    if not groups or any(set(question["answers"]) != set(systems) for question in questions):
        raise ValueError(f"form {form!r}: every question needs an answer of each of the same {size or 2} or more systems, got {systems}")
    return [(question, list(group)) for group in groups for question in questions]

def make_study(folder, form, questions, raters, *, ratings_per_answer=3, seed=0):
    """Write study.json, from which raters are served: each task goes to `ratings_per_answer` raters, whose loads differ by one at most; the order
    of tasks, and of answers within one, is drawn for each rater. It names the systems: raters must not read the file. A study is never replaced."""
    if not 1 <= ratings_per_answer <= len(set(raters)) == len(raters) or not all(re.fullmatch(r"[\w-]+", rater) for rater in raters):
        raise ValueError(f"{ratings_per_answer} ratings an answer need as many raters, each once, named by letters, digits, - or _: got {raters}")
    draw, assigned = random.Random(f"study {seed}"), {rater: [] for rater in raters}
    for question, systems in tasks(questions, form):
        key = hashlib.sha256(f"{seed} {question['id']} {systems}".encode()).hexdigest()[:12]  # tells a rater nothing
        for rater in sorted(draw.sample(raters, len(raters)), key=lambda name: len(assigned[name]))[:ratings_per_answer]:
            assigned[rater].append({"task": key, "question": question["id"], "systems": draw.sample(systems, len(systems))})
    for own in assigned.values():
        draw.shuffle(own)
    study = {"form": form, "seed": seed, "ratings_per_answer": ratings_per_answer, "questions": questions, "assigned": assigned}
    path = Path(folder) / "study.json"
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != study:
        raise ValueError(f"{path} holds another study; give a new folder")
    results.write_atomically(path, results.to_json(study))
    return study

def read_study(folder):
    """The study that `make_study` wrote."""
    return json.loads((Path(folder) / "study.json").read_text(encoding="utf-8"))

def exclude(folder, question, reason):
    """Leave a question out of the analysis, on the record: a line of exclusions.jsonl."""
    if question not in {each["id"] for each in read_study(folder)["questions"]} or not reason.strip():
        raise ValueError(f"exclude: {question!r} must be a question of the study, and a reason must be given")
    results.append_row(Path(folder) / "exclusions.jsonl", {"question": question, "reason": reason})

def clicks(folder, rater):
    """{task: {axis: value}}: the last click of a rater on each axis; "comment" and "skip" are kept as axes."""
    told = {}
    for row in results.read_rows(Path(folder) / "ratings" / f"{rater}.jsonl"):
        told.setdefault(row["task"], {})[row["axis"]] = row["value"]
    return told

def read_ratings(folder):
    """(ratings, excluded): the tidy table of what was rated so far, and who left out which question, why (raters by skipping, or `exclude`)."""
    study = read_study(folder)
    excluded = [row | {"rater": "all"} for row in results.read_rows(Path(folder) / "exclusions.jsonl")]
    rows, out = [], {row["question"] for row in excluded}
    for rater, own in study["assigned"].items():
        told = clicks(folder, rater)
        for task in own:
            said = dict(told.get(task["task"], {}))
            comment = said.pop("comment", "")
            if said.pop("skip", False):
                excluded.append({"question": task["question"], "reason": comment or "skipped", "rater": rater})
            elif task["question"] not in out:
                rows += [(task["question"], f"{task['question']}/{system}", system, rater, axis, score)
                         for axis, value in said.items() for system, score in scores(study["form"], task["systems"], axis, value)]
    return pd.DataFrame(rows, columns=COLUMNS), pd.DataFrame(excluded, columns=["question", "reason", "rater"])

def scores(form, systems, axis, value):
    """[(system, score)] of one judgement, systems as they were shown; ValueError where the form has no such axis or option. A ranking's value
    is the place of each answer, and the best of n scores n.
    >>> scores("pairwise", ["y", "x"], "better reasoning", "A"), scores("ranking", ["x", "y"], "accuracy", [2, 1])
    ([('x against y', -1)], [('x', 1), ('y', 2)])"""
    kind, axes = FORMS[form]["kind"], {each["name"]: each for each in FORMS[form]["axes"]}
    if axis in axes and kind == "single" and value in list(axes[axis]["options"]):
        return [(systems[0], axes[axis]["options"][value])]
    if axis in axes and kind == "pair" and value in ("A", "B", "Tie"):
        first, second = sorted(systems)
        chosen = dict(zip("AB", systems)).get(value)
        return [(f"{first} against {second}", (chosen == first) - (chosen == second))]
    if axis in axes and kind == "ranking" and isinstance(value, list) and len(value) == len(systems):
        return [(system, len(systems) + 1 - place) for system, place in zip(systems, value) if place in range(1, len(systems) + 1)]
    raise ValueError(f"form {form!r}, axis {axis!r}: {value!r} is no answer to it")

def rating_page(folder, rater):
    """The page on which a rater works, as a widget of JupyterLab: goes on where the rater stopped; every click is a line of ratings/<rater>.jsonl
    before the page calls it saved. Clicks that could not be saved (full disk, dead kernel) stay in the browser and are sent again."""
    import anywidget  # only who rates needs the two
    import traitlets
    study = read_study(folder)
    own, asked = _named(study["assigned"], rater), {question["id"]: question for question in study["questions"]}
    shown = [{"task": task["task"], "question": asked[task["question"]]["question"],
              "answers": [asked[task["question"]]["answers"][system] for system in task["systems"]]} for task in own]  # and no names
    systems, path = {task["task"]: task["systems"] for task in own}, Path(folder) / "ratings" / f"{rater}.jsonl"
    key = hashlib.sha256(json.dumps([study, rater]).encode()).hexdigest()[:12]  # of what the browser remembers
    fixed = {"key": key, "rater": rater, "form": FORMS[study["form"]], "tasks": shown}
    parts = {"_esm": KNOWLEDGE / "rating_page.js", "_css": KNOWLEDGE / "rating_page.css", "study": traitlets.Dict(fixed).tag(sync=True)}
    page = type("RatingPage", (anywidget.AnyWidget,), parts | {"told": traitlets.Dict(clicks(folder, rater)).tag(sync=True)})()
    def keep(_, click, __):
        try:
            if click["axis"] not in ("comment", "skip"):
                scores(study["form"], systems[click["task"]], click["axis"], click["value"])
            results.append_row(path, {name: click[name] for name in ("task", "axis", "value")})
        except (OSError, ValueError, KeyError) as error:
            return page.send({"click": click.get("click"), "problem": f"{type(error).__name__}: {error}"})
        page.told = clicks(folder, rater)  # from the file: that is what a reloaded page shows
        return page.send({"click": click["click"]})
    page.on_msg(keep)
    return page

def judge(questions, form, *, models, endpoint):
    """The tidy table of one judge, or of a jury of several models; a missing or unreadable score is NaN. endpoint: url, cache and the like, as
    `teacher.ask` takes them. Every pair is asked twice, sides swapped; the score is the mean: a judge who always takes the first gives ties."""
    rows, shown_to = [], [(question, shown) for question, systems in tasks(questions, form)
                       for shown in ([systems, systems[::-1]] if FORMS[form]["kind"] == "pair" else [systems])]
    prompts = [results.fill_template("judge.md", form=FORMS[form], question=question["question"], answers=[question["answers"][s] for s in shown])
               for question, shown in shown_to]
    for model in models:
        for (question, shown), said in zip(shown_to, teacher.ask_json(prompts, {}, model=model, max_tokens=1024, **endpoint)[0]):
            for axis in (each["name"] for each in FORMS[form]["axes"]):
                judged = dict.fromkeys([" against ".join(sorted(shown))] if FORMS[form]["kind"] == "pair" else shown, np.nan)
                with contextlib.suppress(ValueError):
                    judged |= scores(form, shown, axis, (said or {}).get(axis))
                rows += [(question["id"], f"{question['id']}/{system}", system, model, axis, score) for system, score in judged.items()]
    return pd.DataFrame(rows, columns=COLUMNS).groupby(COLUMNS[:-1], sort=False)["score"].agg(lambda two: two.mean(skipna=False)).reset_index()

def rubric_score(points, met):
    """The points of the criteria that are met over all that can be won, from 0 to 1 (HealthBench, arXiv 2505.08775); NaN while a verdict is missing.
    >>> rubric_score([5, 3, -4], [True, False, True]), rubric_score([5, -4], [False, True])
    (0.125, 0.0)"""
    if not any(point > 0 for point in points):
        raise ValueError("a rubric needs at least one criterion with points to win")
    if any(verdict is None for verdict in met):
        return np.nan
    return min(max(sum(point for point, verdict in zip(points, met) if verdict) / sum(point for point in points if point > 0), 0.0), 1.0)

def grade_exactly(checklist, answer):
    """Which criteria of the controlled world's checklist an answer meets: those whose term it names in a sentence on that attribute."""
    return [any(said in answer for said in criterion["says"]) for criterion in checklist]

def grade_by_judge(graded, *, model, endpoint):
    """The same by a model (endpoint: as in `judge`): for each (question, checklist, answer) a list of True, False or, where it did not say, None."""
    prompts = [results.fill_template("rubric.md", question=question, answer=answer, checklist=checklist) for question, checklist, answer in graded]
    replies = zip(teacher.ask_json(prompts, {}, model=model, max_tokens=1024, **endpoint)[0], graded)
    said = [[(reply or {}).get(str(number)) for number, _ in enumerate(checklist, start=1)] for reply, (_, checklist, _) in replies]
    return [[verdict if isinstance(verdict, bool) else None for verdict in verdicts] for verdicts in said]

def simulated_panel(quality, *, raters, bias, noise, seed):
    """Scores (answers, raters) of people that do not exist: the quality of each answer + a bias of each rater + noise (standard deviations)."""
    draw = np.random.default_rng(seed)
    return np.asarray(quality, float)[:, None] + bias * draw.standard_normal(raters) + noise * draw.standard_normal((len(quality), raters))

def published(data_dir, name):
    """(ratings, answers) of a study of lib/knowledge/ratings.yaml: the tidy table, and the texts {item, answer, system, text, reference}. A missing
    column, a wrong number of records or a cell without a known score is a ValueError that names study, record and column."""
    study, parts = _named(PUBLISHED, name), []
    frame = pd.concat([_table(Path(data_dir) / study["folder"], rater, study) for rater in study["files"]], ignore_index=True)
    if len(frame) != study["counts"]["records"]:
        raise ValueError(f"{name}: {len(frame)} records, {study['counts']['records']} are published; is the download complete? {study['obtain']}")
    frame["text"], frame["reference"] = frame[study["text"]], frame[study["reference"]]
    blocks = [f"system {number // study.get('system_block', 1) + 1}" for number in frame.index]
    frame["system"] = study.get("system_name") or (frame[study["system"]].replace(study.get("names", {})) if "system" in study else blocks)
    frame["item"] = frame[list(np.atleast_1d(study["item"]))].agg(" · ".join, axis=1)
    frame["answer"] = frame["item"] + "/" + frame["system"]
    for axis, asked in study["axes"].items():
        for rater, column in study["raters"].items() if "raters" in study else [(frame["rater"], asked)]:
            cells = [_scores(study, axis, frame, f"{each} {asked}" if "pattern" in study else each) for each in np.atleast_1d(column)]
            score = cells[0] if len(cells) == 1 else (cells[0] == cells[1]).astype(float).where(cells[0].notna() & cells[1].notna())
            parts.append(frame.assign(rater=rater, axis=axis, score=score)[COLUMNS])
    answers = frame[["item", "answer", "system", "text", "reference"]].drop_duplicates("answer", ignore_index=True)
    return pd.concat(parts).dropna(subset="score").reset_index(drop=True), answers
def _table(folder, rater, study):
    """The records of one rater's file, with those of the table beside it; what was written on numbered lines becomes columns."""
    frames = []
    for pattern in filter(None, (study["files"][rater], study.get("beside"))):
        found = sorted(folder.glob(pattern))
        if len(found) != 1:
            raise FileNotFoundError(f"{folder}: {pattern} should be one file, found {len(found)}; from {study['obtain']}")
        delimiter, lines = "\t" if found[0].suffix == ".tsv" else ",", found[0].suffix == ".jsonl"
        frames.append(pd.DataFrame(results.read_rows(found[0])) if lines else
                      pd.read_csv(found[0], sep=delimiter, dtype=str, keep_default_na=False, encoding="utf-8-sig"))
    frame = pd.concat(frames, axis=1).assign(rater=rater)
    for column in study["raters"].values() if "pattern" in study else ():
        said = frame[column].str.extractall(study["pattern"]).droplevel(1).reset_index().drop_duplicates(["index", 0])
        frame = frame.join(said.pivot(index="index", columns=0, values=1).add_prefix(f"{column} "))
    needed = [column for part in ("item", "system", "text", "reference") if part in study for column in np.atleast_1d(study[part])]
    if missing := [column for column in needed if column not in frame or frame[column].isna().any()]:
        raise ValueError(f"{folder}, {study['files'][rater]}: no column {str(missing[0])!r}, or a record without; {study['obtain']}")
    return frame
def _scores(study, axis, frame, column):
    """A column of judgements as numbers, NaN where none was made."""
    if column not in frame:
        raise ValueError(f"{study['title']}: no column {column!r}; {study['obtain']}")
    cells, known = frame[column].fillna("").str.strip(), study.get("scores")
    blank = (cells == "") | cells.str.startswith(tuple(study.get("missing", ())) + tuple(study.get("not_scored", {}).get(axis, ())))
    numbers = (cells.map(lambda cell: next((value for start, value in known.items() if cell.startswith(start)), np.nan)) if known
               else pd.to_numeric(cells, errors="coerce"))
    if (bad := ~blank & numbers.isna()).any():
        raise ValueError(f"{study['title']}, record {bad.idxmax() + 1}, column {column!r}: {cells[bad].iloc[0][:40]!r} is no score; expected "
                         f"{', '.join(known or ['a number'])}")
    return numbers.where(~blank)
