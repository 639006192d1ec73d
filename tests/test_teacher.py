"""A real server on this machine that answers well, slowly, wrongly or not at all; waiting is bounded and nothing is asked twice."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lib import teacher
from lib.results import read_rows


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
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
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
    ("broken x", "HTTP 500, 3 tries"), ("empty x", "ValueError: an empty answer, 3 tries"), ("malformed x", "JSONDecodeError"),
    ("other x", "not a chat completion"), ("slow x", "TimeoutError"), ("drip x", "not complete after 1 s"), ("torn x", ", 3 tries"),
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
    assert [row["text"] for row in read_rows(tmp_path / "answers.jsonl")] == ["answer to good 1", "answer to good 2"] or \
        [row["text"] for row in read_rows(tmp_path / "answers.jsonl")] == ["answer to good 2", "answer to good 1"]


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


def test_progress_counts_what_was_missing(ask):
    seen = []
    ask(["good 1"])
    ask(["good 1", "good 2", "good 3"], progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]
