"""An OpenAI-compatible chat client that is bounded in time, tries, concurrency and cost, and asks nothing twice."""
import concurrent.futures
import hashlib
import json
import math
import os
import threading
import time
from collections import Counter
import httpx
import pandas as pd
from lib.results import append_row, read_rows
from lib.world import read_yaml
KEY_VARIABLE = "OPENAI_API_KEY"  # of the environment; never a parameter, never written down
PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds before the second try, doubled for each further one
COST = ("requests", "tokens_read", "tokens_written")
ANSWER_BYTES, TEMPLATE = 4_000_000, 200  # of the longest reply that is read; tokens that a server may add to a prompt
TASKS = read_yaml("teacher.yaml")  # what the papers had a model write: prompt, and JSON Schema of the reply's fields

class Refused(Exception):
    """The endpoint will not answer this or any other request (wrong key, unknown model, malformed call)."""

def ask(prompts, *, url, model, cache, max_tokens=512, temperature=0.0, sample=0, timeout=60, tries=4, concurrency=8, budget=math.inf, price=(1, 1)):
    """(texts, problems): the answer to each prompt, None where every try failed, and {prompt number: the last reason}.
    url: the address up to /v1 (vLLM, `transformers serve`, an API). prompts: texts, or lists of {role, content} messages. cache: a JSONL file; an
    answer is appended as soon as it is there, so a rerun asks only for what is missing. sample: the number of a repeated draw at a temperature
    above 0, or a list with one for each prompt. timeout: seconds for one try as a whole. budget: the most that everything in this cache may cost,
    at `price` for a million tokens (read, written), or the number of millions at (1, 1); a request that could exceed it is not sent. Raises Refused
    when the endpoint rejects the call itself; answers stay in the cache."""
    bodies = [{"model": model, "messages": [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt,
               "max_tokens": max_tokens, "temperature": temperature} for prompt in prompts]
    numbers = sample if isinstance(sample, list) else [sample] * len(bodies)
    keys = [hashlib.sha256(json.dumps([url, *call], sort_keys=True).encode()).hexdigest()[:24] for call in zip(bodies, numbers, strict=True)]
    rows = read_rows(cache)
    known = {row["key"]: row["text"] for row in rows if row["text"]}
    missing = {key: body for key, body in zip(keys, bodies, strict=True) if key not in known}  # equal prompts are asked once
    purse = _Purse(budget, price, rows)
    def once(key, body):
        text, reason, cost = _ask_once(url, body, timeout, tries, purse)
        if cost:  # a failure is kept, too, for what it cost
            append_row(cache, {"key": key, "model": model, "text": text} | cost)
        return text, reason
    with concurrent.futures.ThreadPoolExecutor(concurrency) as pool:  # refused, or interrupted: map cancels what has not begun
        answered = dict(zip(missing, pool.map(once, missing, missing.values()), strict=True))
    known |= {key: text for key, (text, _) in answered.items()}
    return [known[key] for key in keys], {number: answered[key][1] for number, key in enumerate(keys) if known[key] is None}
class _Purse:
    """What may still be spent: the most that a request can cost is taken before it is sent, and the rest comes back when its cost is known."""
    def __init__(self, budget, price, rows):
        self.money = lambda cost: sum(each * cost.get(part, 0) for each, part in zip(price, COST[1:])) / 1e6
        self.lock, self.left = threading.Lock(), budget - sum(map(self.money, rows))
    def take(self, money):
        with self.lock:
            allowed = money <= max(self.left, 0)  # what comes back is less than nothing
            self.left -= money * allowed
        return allowed
def _ask_once(url, body, timeout, tries, purse):
    """(text or None, None or why the last try failed, what all tries cost); one that never came back may have cost the most."""
    pause, reason, words, total = 0.0, "", json.dumps(body["messages"], ensure_ascii=False).encode(), Counter()
    most = Counter(dict(zip(COST, (1, len(words) + TEMPLATE, body["max_tokens"]))))  # a token is a byte at least
    for _ in range(tries):
        time.sleep(min(pause, LONGEST_PAUSE))
        pause, cost, text = max(2 * pause, PAUSE), most, None
        if not purse.take(purse.money(most)):
            return None, "the budget is spent", total
        try:
            reason, (text, cost) = "an empty answer", _completion(_post(f"{url.rstrip('/')}/chat/completions", body, timeout), most)
        except httpx.HTTPStatusError as error:
            code, reason, cost = error.response.status_code, f"HTTP {error.response.status_code}", Counter(requests=1)
            if code not in (408, 409, 425, 429) and code < 500:
                raise Refused(f"{url}: {reason} ({error.response.reason_phrase}); check address, model name and {KEY_VARIABLE}") from None
            wait = error.response.headers.get("Retry-After", "")
            pause = max(pause, float(wait)) if wait.replace(".", "", 1).isdecimal() else pause  # else there is none, or a date
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            reason = f"{type(error).__name__}: {str(error)[:200]}"
        purse.take(purse.money(cost) - purse.money(most))
        total += cost
        if text:
            return text, None, total
    return None, f"{reason}, {tries} tries", total
def _post(address, body, timeout):
    """The bytes of the reply, within `timeout` seconds as a whole: a server that sends a byte a minute does not hold us."""
    key, ends, read = os.environ.get(KEY_VARIABLE), time.monotonic() + timeout, b""
    with httpx.stream("POST", address, json=body, timeout=timeout, headers={"Authorization": f"Bearer {key}"} if key else None) as reply:
        for part in reply.raise_for_status().iter_bytes():
            read += part
            if time.monotonic() > ends or len(read) > ANSWER_BYTES:
                raise ValueError(f"the reply was not complete after {timeout:g} s or {ANSWER_BYTES:,} bytes")
    return read
def _completion(reply, most):
    """(message of a chat completion, None for an empty one, what it cost: by its usage, else the most); ValueError when it is none."""
    try:
        content = json.loads(reply)
        text, usage = content["choices"][0]["message"]["content"] or "", content.get("usage") or {}
        read, written = (max(0, int(usage.get(f"{part}_tokens", most[at]))) for part, at in zip(("prompt", "completion"), COST[1:]))
        return text if text.strip() else None, Counter(dict(zip(COST, (1, read, written))))
    except (AttributeError, LookupError, TypeError, OverflowError, RecursionError):
        raise ValueError(f"not a chat completion: {reply[:120]!r}") from None

def costs(cache, price=(1, 1)):
    """A line for each model that was ever asked: answers, requests, tokens read and written in all tries, and their cost at `price` (see `ask`)."""
    lines = pd.DataFrame(read_rows(cache), columns=["model", "text", *COST]).groupby("model").agg({"text": "count"} | dict.fromkeys(COST, "sum"))
    return lines.assign(cost=lines[[*COST[1:]]].mul(price).sum(axis=1) / 1e6).rename(columns={"text": "answers"}).reset_index()

def ask_json(prompts, schema, **settings):
    """As `ask`, of texts, for replies that are objects (see read_object): (objects, problems). One that does not fit is shown to the model once more,
    with what is wrong with it; what does not fit then is None and a problem."""
    texts, problems = ask(prompts, **settings)
    found = {number: read_object(text, schema) for number, text in enumerate(texts) if text}
    wrong = [number for number, read in found.items() if isinstance(read, str)]
    talks = [(("user", prompts[number]), ("assistant", texts[number]), ("user", TASKS["repair"].format(found[number]))) for number in wrong]
    mended, _ = ask([[{"role": role, "content": said} for role, said in talk] for talk in talks], **settings)
    found |= {number: read_object(text, schema) for number, text in zip(wrong, mended) if text}
    problems |= {number: read for number, read in found.items() if isinstance(read, str)}
    return [None if number in problems else found.get(number) for number in range(len(prompts))], problems

def read_object(text, schema):
    """The first JSON object of a reply, or (text) what is wrong with it; schema: {field that it must have: its JSON Schema}.
    >>> read_object('Well: {"ok": true}.', {"ok": {"type": "boolean"}}), read_object('{"ok": 1}', {"ok": {"type": "boolean"}})
    ({'ok': True}, "$.ok: 1 is not of type 'boolean'")"""
    import jsonschema  # takes a second, and few ask a teacher
    try:
        found, _ = json.JSONDecoder().raw_decode(text[text.index("{"):])
        jsonschema.validate(found, {"properties": schema, "required": list(schema)})
        return found
    except (ValueError, RecursionError, jsonschema.ValidationError) as error:
        return f"{getattr(error, 'json_path', 'no JSON object')}: {getattr(error, 'message', error)}"
