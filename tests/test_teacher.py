"""A real server on this machine that answers well, slowly, wrongly or not at all; waiting is bounded and nothing is asked twice."""

import json
import math
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jsonschema
import pandas as pd
import pytest
from transformers.utils.import_utils import is_serve_available

from lib import ablations, benchmarks, instructions, prompting, tables, teacher, training
from lib.profiles import get_profile
from lib.results import REPOSITORY, read_rows
from tests.test_evaluation import metal_items, parrot  # noqa: F401  (a fixture)


def completion(text):
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


class Server(ThreadingHTTPServer):
    """Answers by the first word of the last message; remembers what it was asked and how many at a time."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked, self.headers_seen, self.lock, self.now, self.most = [], [], threading.Lock(), 0, 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request, client_address):
        """A client that gave up is no news."""


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_POST(self):
        self.body = body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = body["messages"][-1]["content"]
        with self.server.lock:
            self.server.asked.append(said)
            self.server.headers_seen.append(dict(self.headers) | {"path": self.path, "body": body})
            times = self.server.asked.count(said)
        getattr(self, said.split()[0])(said, times)

    def reply(self, status, content, headers=()):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def good(self, said, times):
        with self.server.lock:
            self.server.now += 1
            self.server.most = max(self.server.most, self.server.now)
        time.sleep(0.02)
        with self.server.lock:  # before the reply: it lets the client send the next request at once
            self.server.now -= 1
        self.reply(200, completion(f"answer to {said}"))

    def busy(self, said, times):
        if times < 3:
            self.reply(429, b"slow down", [("Retry-After", "0.01")])
        else:
            self.good(said, times)

    def broken(self, said, times):
        self.reply(500, b"oops")

    def empty(self, said, times):
        self.reply(200, completion("  "))

    def malformed(self, said, times):
        self.reply(200, b"<html>not JSON</html>")

    def other(self, said, times):
        self.reply(200, b'{"choices": []}')

    def slow(self, said, times):
        time.sleep(5)

    def drip(self, said, times):
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        for _ in range(50):
            self.wfile.write(b" ")
            self.wfile.flush()
            time.sleep(0.1)

    def torn(self, said, times):
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b'{"choices"')

    def hang_up(self, said, times):
        self.connection.close()

    def usage(self, said, times):
        """usage READ WRITTEN: what the reply says of its cost."""
        read, written = map(float, said.split()[1:3])
        self.reply(200, json.dumps(json.loads(completion("so")) | {"usage": {"prompt_tokens": read, "completion_tokens": written}}).encode())

    def deep(self, said, times):
        self.reply(200, b'{"choices": ' + b"[" * 200_000)

    def mends(self, said, times):
        self.reply(200, completion("yes, I think so"))

    def stubborn(self, said, times):
        self.reply(200, completion('{"ok": "perhaps", "why": "seen"}'))

    def object(self, said, times):
        self.reply(200, completion('Here it is:\n```json\n{"ok": true, "why": "seen", "more": 1}\n```'))

    def That(self, said, times):
        """The second request, which says what was wrong with the first reply."""
        good = self.body["messages"][0]["content"].startswith("mends")
        self.reply(200, completion('{"ok": false, "why": "heard"}' if good else '{"ok": "no"}'))

    def refuse(self, said, times):
        self.reply(401, f"bad key {self.headers['Authorization']}".encode())


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(teacher, "PAUSE", 0.01)
    monkeypatch.delenv(teacher.KEY_VARIABLE, raising=False)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()


@pytest.fixture
def ask(server, tmp_path):
    def call(prompts, **more):
        return teacher.ask(prompts, **{"url": server.url, "model": "m", "cache": tmp_path / "answers.jsonl", "timeout": 1.0} | more)
    return call


def test_answers_come_in_the_order_of_the_prompts(ask, server):
    prompts = [f"good {number}" for number in range(20)]
    texts, problems = ask(prompts, concurrency=4)
    assert texts == [f"answer to {prompt}" for prompt in prompts]
    assert problems == {}
    assert 1 < server.most <= 4
    assert server.headers_seen[0]["path"] == "/v1/chat/completions"
    assert server.headers_seen[0]["body"] == {"model": "m", "messages": [{"role": "user", "content": server.asked[0]}],
                                              "max_tokens": 512, "temperature": 0.0}


def test_nothing_is_asked_twice(ask, server, tmp_path):
    """Not a prompt that stands twice in a list, nor one that an earlier call has had answered; another sample is another draw."""
    texts, _ = ask(["good a", "good b", "good a"])
    assert texts == ["answer to good a", "answer to good b", "answer to good a"]
    assert sorted(server.asked) == ["good a", "good b"]
    ask(["good b", "good c"])
    assert sorted(server.asked) == ["good a", "good b", "good c"]
    ask(["good a"], temperature=0.7, sample=1)
    ask(["good a", "good a"], temperature=0.7, sample=[2, 1])
    assert len(server.asked) == 5
    assert len(read_rows(tmp_path / "answers.jsonl")) == 5


def test_messages_may_be_given(ask):
    assert ask([[{"role": "system", "content": "Be short."}, {"role": "user", "content": "good day"}]])[0] == ["answer to good day"]


def test_a_busy_server_is_asked_again(ask, server):
    assert ask(["busy now"]) == (["answer to busy now"], {})
    assert len(server.asked) == 3


@pytest.mark.parametrize(("prompt", "reason"), [
    ("broken x", "HTTP 500, 3 tries"), ("empty x", "an empty answer, 3 tries"), ("deep x", "3 tries"),
    ("usage inf 1", "not a chat completion"), ("usage nan 1", "3 tries"), ("malformed x", "JSONDecodeError"),
    ("other x", "not a chat completion"), ("slow x", "ReadTimeout"), ("drip x", "not complete after 1 s"), ("torn x", ", 3 tries"),
    ("hang_up x", ", 3 tries")])
def test_a_bad_answer_is_none_with_a_reason_and_the_others_are_kept(ask, server, tmp_path, prompt, reason):
    """Bounded waiting; then a rerun asks for the missing one only."""
    started = time.monotonic()
    texts, problems = ask(["good 1", prompt, "good 2"], tries=3, timeout=1.0)
    assert time.monotonic() - started < 30
    assert texts == ["answer to good 1", None, "answer to good 2"]
    assert list(problems) == [1]
    assert reason in problems[1]
    assert server.asked.count(prompt) == 3
    before = len(server.asked)
    assert ask(["good 1", prompt, "good 2"], tries=1, timeout=1.0)[0][1] is None
    assert server.asked[before:] == [prompt]
    kept = [row["text"] for row in read_rows(tmp_path / "answers.jsonl")]  # None: a failure, for its cost
    assert sorted(filter(None, kept)) == ["answer to good 1", "answer to good 2"]
    assert kept.count(None) == 2


def test_no_server_at_all_is_a_reason_too(ask):
    texts, problems = ask(["good 1"], url="http://127.0.0.1:9/v1", tries=2, timeout=0.5)
    assert texts == [None]
    assert "2 tries" in problems[0]


def test_a_refused_call_stops_at_once_and_names_what_to_check(ask, server, monkeypatch, tmp_path):
    """A wrong key would fail for every prompt: it is not tried again, and the key is in no message and no file."""
    monkeypatch.setenv(teacher.KEY_VARIABLE, "secret-key-123")
    ask(["good 1"])
    assert server.headers_seen[0]["Authorization"] == "Bearer secret-key-123"
    with pytest.raises(teacher.Refused, match=r"HTTP 401 \(Unauthorized\); check address, model name and OPENAI_API_KEY") as caught:
        ask(["refuse me", *(f"good {number}" for number in range(2, 200))], concurrency=2)
    assert "secret-key-123" not in str(caught.value)
    assert "secret-key-123" not in (tmp_path / "answers.jsonl").read_text()
    assert server.asked.count("refuse me") == 1
    assert len(server.asked) < 60, "the rest was asked all the same"
    assert ask(["good 1"])[0] == ["answer to good 1"]


# --- what it costs, and where it stops -----------------------------------------------------------------------------------

PRICE = (2.0, 10.0)  # for a million tokens read, written


def spent(cache):
    """{model: [answers, requests, tokens read, tokens written]} of all tries, as notebook 07 reports them."""
    rows = pd.DataFrame(read_rows(cache))
    lines = rows.assign(answers=rows["text"].notna()).groupby("model")[["answers", *teacher.COST]].sum()
    return {model: line.tolist() for model, line in lines.iterrows()}


def test_costs_are_what_the_endpoint_counted(ask, tmp_path):
    """100 + 300 tokens read, 10 + 20 written. A failed try is a request, too; a rerun costs nothing."""
    cache = tmp_path / "answers.jsonl"
    for _ in range(2):
        assert ask(["usage 100 10", "usage 300 20", "broken x"], tries=2)[0] == ["so", "so", None]
    assert spent(cache) == {"m": [2, 2 + 2 + 2, 400, 30]}
    ask(["usage 7 1"], model="other")
    assert spent(cache) == {"m": [2, 6, 400, 30], "other": [1, 1, 7, 1]}


def test_without_a_count_the_most_is_taken(ask, tmp_path):
    """A token is a byte at least, and a reply that never came may have been written in full."""
    ask(["good é", "torn x"], tries=1, max_tokens=50)
    sizes = [len(json.dumps([{"role": "user", "content": text}], ensure_ascii=False).encode()) for text in ("good é", "torn x")]
    assert spent(tmp_path / "answers.jsonl") == {"m": [1, 2, sum(sizes) + 2 * teacher.TEMPLATE, 100]}


@pytest.mark.parametrize("concurrency", [1, 8])
@pytest.mark.parametrize(("budget", "price", "most"), [(0.002, (1, 1), 18), (0.004, PRICE, 13), (0, PRICE, 0)])
def test_a_budget_is_never_exceeded_and_what_is_there_stays(ask, server, tmp_path, budget, price, most, concurrency):
    """110 tokens a request, at PRICE 0.0003; before it is known a request may cost 300 tokens or so. A rerun with the same budget asks for no more
    than still fits; without one the rest is answered, and nothing twice."""
    prompts = [f"usage 100 10 {number}" for number in range(40)]
    for _ in range(3):
        texts, problems = ask(prompts, budget=budget, price=price, max_tokens=20, concurrency=concurrency, timeout=30.0)
        done = sum(text is not None for text in texts)
        assert done * (100 * price[0] + 10 * price[1]) / 1e6 <= budget
        assert len(server.asked) == done <= most
        assert set(problems.values()) == {"the budget is spent"}
        assert len(problems) == 40 - done
    assert done >= most - 3 - concurrency // 2, "near the end of the budget one request after the other still fits"
    assert ask(prompts, max_tokens=20, timeout=30.0)[1] == {}
    assert len(server.asked) == 40


def test_tries_count_against_the_budget(ask, server):
    """A try that never comes back may have cost all that it could: two of some 260 millionths fit, a third does not."""
    most = (len(json.dumps([{"role": "user", "content": "torn x"}]).encode()) + teacher.TEMPLATE + 20) / 1e6
    assert ask(["torn x"], tries=9, budget=2.5 * most, max_tokens=20)[1] == {0: "the budget is spent"}
    assert len(server.asked) == 2


# --- replies that must be objects -----------------------------------------------------------------------------------------

SCHEMA = {"ok": {"type": "boolean"}, "why": {"enum": ["seen", "heard"]}}


def test_replies_are_objects_of_the_schema_or_none(ask, server, tmp_path):
    """One fits, one is mended when asked again, one never is, one has no answer at all; the second round tells the model what was wrong."""
    def call():
        return teacher.ask_json(["object 1", "mends it", "stubborn x", "broken x"], SCHEMA, url=server.url, model="m", tries=1,
                                cache=tmp_path / "answers.jsonl", timeout=1.0)
    objects, problems = call()
    assert objects == [{"ok": True, "why": "seen", "more": 1}, {"ok": False, "why": "heard"}, None, None]
    assert set(problems) == {2, 3}
    assert problems[2] == "$: 'why' is a required property", "of the second reply"
    assert problems[3] == "HTTP 500, 1 tries"
    again = [each["body"]["messages"] for each in server.headers_seen if len(each["body"]["messages"]) == 3]
    assert [[message["role"] for message in talk] for talk in again] == [["user", "assistant", "user"]] * 2
    assert {talk[1]["content"] for talk in again} == {"yes, I think so", '{"ok": "perhaps", "why": "seen"}'}
    before = len(server.asked)
    assert call() == (objects, problems)
    assert set(server.asked[before:]) == {"broken x"}, "what was answered is in the cache"


TEXT, NUMBER, YES_OR_NO = {"type": "string", "minLength": 1}, {"type": "number"}, {"type": "boolean"}


@pytest.mark.parametrize(("text", "schema", "expected"), [
    ('{"a": 1}', NUMBER, {"a": 1}), ('{"a": 1.5, "b": 2}', NUMBER, {"a": 1.5, "b": 2}), ('x {"a": "y"} {"a": "z"}', TEXT, {"a": "y"}),
    ('{"a": [1, "b"]}', {"type": "array"}, {"a": [1, "b"]}), ('{"a": "B"}', {"enum": ["A", "B"]}, {"a": "B"}), ('{"a": true}', NUMBER, "$.a: True"),
    ('{"a": 1}', YES_OR_NO, "$.a: 1 is not"), ('{"a": "1"}', NUMBER, "$.a: '1' is not"), ('{"a": ""}', TEXT, "$.a: ''"), ('{"a": null}', TEXT, "$.a: None"),
    ('{"b": 1}', NUMBER, "$: 'a' is a required property"), ('{"a": "C"}', {"enum": ["A", "B"]}, "$.a: 'C' is not one of ['A', 'B']"),
    ("[1]", TEXT, "no JSON object"), ("", TEXT, "no JSON object"), ('{"a": "x"', TEXT, "no JSON object"), ('{"a":' * 100_000, TEXT, "no JSON object")])
def test_an_object_is_read_or_what_is_wrong_is_said(text, schema, expected):
    found = teacher.read_object(text, {"a": schema})
    assert found == expected if isinstance(expected, dict) else found.startswith(expected)


def test_prompts_of_the_papers_ask_for_what_their_schema_wants():
    """Every prompt can be filled in, names each field of its reply, and its schema is one."""
    names = {"seeds", "cases", "question", "options", "answer", "language", "rationale", "instruction"}
    tasks = {name: task for name, task in teacher.TASKS.items() if name != "repair"}
    assert {"paraphrase", "rationale", "rationale_by_option", "mmedbench_rationale", "task_rewrite"} <= set(tasks)
    for task in tasks.values():
        filled = task["prompt"].format(**{name: f"<{name}>" for name in names})
        assert "<" in filled
        assert all(f'"{field}"' in filled for field in task["schema"])
        jsonschema.Draft202012Validator.check_schema({"properties": task["schema"]})
    assert "Option A is TRUE" in tasks["rationale_by_option"]["prompt"]
    assert "no field" in teacher.TASKS["repair"].format("no field")


def test_notebook_03_tunes_on_what_a_teacher_wrote(monkeypatch, tmp_path):
    """Its tagged cell: paraphrased instructions, the teacher's rationale before the right answer, every tenth question without a usable reply left out."""
    cells = json.loads((REPOSITORY / "notebooks" / "03_instruction_tuning.ipynb").read_text(encoding="utf-8"))["cells"]
    (cell,) = (cell for cell in cells if "teacher" in cell["metadata"].get("tags", ()))
    profile, seen = get_profile("smoke"), []
    items = ablations.training_items(profile, seed=0)

    def reply(prompt):
        if not isinstance(prompt, str):
            return "still no object"
        seen.append(prompt)
        if '"instructions"' in prompt:
            return json.dumps({"instructions": [f"Way {number}." for number in range(10)]})
        return "no object" if len(seen) % 10 == 0 else json.dumps({"rationale": f"Since {len(seen)}."})
    monkeypatch.setattr(teacher, "ask", lambda prompts, **how: ([reply(prompt) for prompt in prompts], {}))
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path))
    names = {"ENDPOINT": "http://nowhere/v1", "ENDPOINT_MODEL": "m", "BUDGET": 0.0, "PRICE": [1.0, 1.0], "SEED": 0, "profile": profile, "records": {},
             "training": training, "teacher": teacher, "ablations": ablations, "instructions": instructions, "tables": tables, "math": math,
             "random": random, "display": lambda _: None}
    exec("".join(cell["source"]), names)
    records = names["records"]["rationale by a teacher"]
    left_out = sum(number % 10 == 0 for number in range(2, len(items) + 2))
    assert left_out > 3
    assert len(records) == 2 * (len(items) - left_out), "each with and without its reason"
    assert {record["instruction"] for record in records} == {f"Way {number}." for number in range(10)}
    assert [record["output"].startswith("Since ") for record in records[:4]] == [False, True, False, True]
    assert all(items[0]["question"] in prompt for prompt in seen[1:]), "two solved cases stand before each question"
    names["ENDPOINT"], names["records"] = "", {}
    exec("".join(cell["source"]), names)
    assert names["records"] == {}, "without an endpoint nothing is asked"


# --- a real server ----------------------------------------------------------------------------------------------------------

@pytest.mark.slow
@pytest.mark.skipif(not is_serve_available(), reason="`transformers serve` needs fastapi, uvicorn and openai, which are not installed")
def test_transformers_serve_answers_and_counts(parrot, tmp_path, monkeypatch):  # noqa: F811
    """A model of this project behind the endpoint that transformers brings: texts, usage, cache, and a strategy from end to end."""
    monkeypatch.delenv(teacher.KEY_VARIABLE, raising=False)
    folder = shutil.copytree(training.model_folder(parrot), tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, stdout=log, stderr=log)
    try:
        ends = time.monotonic() + 240
        while time.monotonic() < ends and process.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(1)
        assert process.poll() is None, (tmp_path / "log").read_text()[-2000:]
        items = metal_items(2, seed=5)
        prompts = [benchmarks.make_exam("metals", items).prompt(item) for item in items]
        how = {"url": f"http://127.0.0.1:{port}/v1", "model": str(folder), "cache": tmp_path / "answers.jsonl"}
        texts, problems = teacher.ask(prompts, **how, max_tokens=24, timeout=60.0, tries=2)
        assert problems == {}, (tmp_path / "log").read_text()[-2000:]
        assert all("answer is" in text for text in texts), "the parrot says one thing"
        answers, requests, read, written = spent(how["cache"])[str(folder)]
        assert answers == requests == 2
        assert 0 < written <= 48, "as the server counts"
        assert read < sum(map(len, prompts)), "not the bytes that are taken where it does not"
        sampler = prompting.endpoint_sampler(how["url"], how["model"], cache=how["cache"])
        strategy = prompting.Strategy("voted", "med_palm_2", samples=3, max_new_tokens=8)
        (row,) = prompting.solve(sampler, strategy, prompting.make_exams(strategy, "metals", items[:1])[0], tmp_path)
        assert len(row["sample_texts"]) == 3
    finally:
        process.terminate()
        process.wait(30)
