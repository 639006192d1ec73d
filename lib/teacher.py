"""An OpenAI-compatible chat client that is bounded in time, tries and concurrency, and asks nothing twice."""
import concurrent.futures
import contextlib
import hashlib
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from lib.results import append_row, read_rows
KEY_VARIABLE = "OPENAI_API_KEY"  # of the environment; never a parameter, never written down
ANSWER_BYTES = 4_000_000  # the longest reply that is read
PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds before the second try, doubled for each further one

class Refused(Exception):
    """The endpoint will not answer this or any other request (wrong key, unknown model, malformed call)."""

def ask(prompts, *, url, model, cache, max_tokens=512, temperature=0.0, sample=0, timeout=60.0, tries=4, concurrency=8, progress=None):
    """(texts, problems): the answer to each prompt, None where every try failed, and {prompt number: the last reason}.
    url: the address up to /v1 (vLLM, `transformers serve`, an API). prompts: texts, or lists of {role, content} messages. cache: a JSONL file; an
    answer is appended as soon as it is there, so a rerun asks only for what is missing. sample: the number of a repeated draw at a temperature
    above 0, or a list with one for each prompt. timeout: seconds for one try as a whole. Raises Refused when the endpoint rejects the call itself;
    answers stay in the cache."""
    bodies = [{"model": model, "messages": [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt,
               "max_tokens": max_tokens, "temperature": temperature} for prompt in prompts]
    numbers = sample if isinstance(sample, list) else [sample] * len(bodies)
    keys = [hashlib.sha256(json.dumps([url, *call], sort_keys=True).encode()).hexdigest()[:24] for call in zip(bodies, numbers, strict=True)]
    known = {row["key"]: row["text"] for row in read_rows(cache)}
    missing = {key: body for key, body in zip(keys, bodies, strict=True) if key not in known}  # equal prompts are asked once
    reasons = {}
    with concurrent.futures.ThreadPoolExecutor(concurrency) as pool:
        asked = {pool.submit(_ask_once, url, body, timeout, tries): key for key, body in missing.items()}
        try:
            for done, answered in enumerate(concurrent.futures.as_completed(asked), start=1):
                key = asked[answered]
                text, reasons[key] = answered.result()
                if text is not None:
                    known[key] = text
                    append_row(cache, {"key": key, "model": model, "text": text})
                if progress:
                    progress(done, len(missing))
        except BaseException:  # refused, or interrupted: nobody waits for the requests that have not begun
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [known.get(key) for key in keys], {number: reasons[key] for number, key in enumerate(keys) if reasons.get(key)}
def _ask_once(url, body, timeout, tries):
    """(text, None) or (None, why the last try failed)."""
    pause, reason = 0.0, ""
    for _ in range(tries):
        time.sleep(min(pause, LONGEST_PAUSE))
        pause = max(2 * pause, PAUSE)
        try:
            return _text(_post(f"{url.rstrip('/')}/chat/completions", body, timeout)), None
        except urllib.error.HTTPError as error:
            reason = f"HTTP {error.code}"
            if error.code not in (408, 409, 425, 429) and error.code < 500:
                raise Refused(f"{url}: {reason} ({error.reason}); check address, model name and {KEY_VARIABLE}") from None
            with contextlib.suppress(TypeError, ValueError):  # no header, or a date
                pause = max(pause, float(error.headers.get("Retry-After")))
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = f"{type(error).__name__}: {str(error)[:200]}"
    return None, f"{reason}, {tries} tries"
def _post(address, body, timeout):
    """The bytes of the reply, within `timeout` seconds as a whole: a server that sends a byte a minute does not hold us."""
    key = os.environ.get(KEY_VARIABLE)
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request, ends, read = urllib.request.Request(address, json.dumps(body).encode(), headers), time.monotonic() + timeout, b""
    with urllib.request.urlopen(request, timeout=timeout) as reply:
        while part := reply.read1(65536):
            read += part
            if time.monotonic() > ends or len(read) > ANSWER_BYTES:
                raise ValueError(f"the reply was not complete after {timeout:g} s or {ANSWER_BYTES:,} bytes")
    return read
def _text(reply):
    """The message of a chat completion; ValueError when it is not one, or empty."""
    try:
        text = json.loads(reply)["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise ValueError(f"not a chat completion: {reply[:120]!r}") from None
    if not isinstance(text, str) or not text.strip():
        raise ValueError("an empty answer")
    return text
