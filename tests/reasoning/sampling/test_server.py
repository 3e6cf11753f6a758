"""A server that misbehaves as it is told: what passes is asked again, what does not is one sentence."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import mnemonist
from mnemonist.errors import UserError
from mnemonist.reasoning.attempts import Decoding, draw_numbers
from mnemonist.reasoning.ledger import Ledger
from mnemonist.reasoning.sampling import SamplingFailed, ServerSampler

DECODING = Decoding(max_tokens=9)
SOURCE = Path(mnemonist.__file__).parent.parent


def reply(text="fine", *, finish="stop", prompt=5, completion=3, **fields):
    choice = {"index": 0, "text": text, "finish_reason": finish, **fields}
    return {"choices": [choice], "usage": {"prompt_tokens": prompt, "completion_tokens": completion}}


@pytest.fixture
def server():
    """`answer(path, body)` gives JSON values, bytes, or ``(status, values, headers)``; `asked` has what came.

    `models` is its list of models, which is no such answer.
    """
    told = SimpleNamespace(answer=lambda path, body: reply(), models={"data": []}, asked=[], headers=[], most=0, now=0)
    lock = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                told.asked.append((self.path, body))
                told.headers.append(dict(self.headers))
                told.now += 1
                told.most = max(told.most, told.now)
            given = told.answer(self.path, body)
            with lock:  # once it is answered, whoever asked may ask again before this thread goes on
                told.now -= 1
            self._answer(given)

        def do_GET(self):
            self._answer(told.models)

        def _answer(self, given):
            status, values, headers = given if isinstance(given, tuple) else (200, given, {})
            content = values if isinstance(values, bytes) else json.dumps(values).encode()
            try:
                self.send_response(status)
                for name, value in {"Content-Length": len(content), **headers}.items():
                    self.send_header(name, str(value))
                self.end_headers()
                self.wfile.write(content)
            except OSError:
                pass  # whoever asked has gone

        def log_message(self, *_):
            pass

    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    told.url = f"http://127.0.0.1:{made.server_port}"
    yield told
    made.shutdown()
    thread.join()
    made.server_close()


def asking(server, **settings):
    return ServerSampler(server.url, "small", **{"patience": 0.001, "timeout": 5, **settings})


def test_prompts_and_attempts_in_their_order(server):
    def answer(path, body):
        time.sleep(0.05 if body["prompt"] == "a" else 0)  # the first one is the last to come back
        return reply(body["prompt"].upper(), prompt=len(body["prompt"]), completion=2)

    server.answer = answer
    ledger = Ledger()
    attempts = asking(server, flops_per_token=10).sample(["a", "bb", "ccc", "bb"], DECODING, ledger)
    assert [attempt.text for attempt in attempts] == ["A", "BB", "CCC", "BB"]
    assert [attempt.prompt for attempt in attempts] == ["a", "bb", "ccc", "bb"]
    assert {(a.finish, a.tokens, a.ids, a.prompt_ids) for a in attempts} == {("end", 2, (), ())}
    assert (ledger.prompt_tokens, ledger.generated_tokens, ledger.calls) == (8, 8, 4)
    assert ledger.flops == 160 and ledger.seconds > 0.04


def test_what_is_asked(server):
    decoding = Decoding(max_tokens=7, temperature=0.7, top_p=0.9, top_k=5, stop=("x", "y"), seed=3)
    server.answer = lambda path, body: reply(stop_reason=None)
    asking(server, api_key="secret", more={"min_p": 0.1}, concurrency=1).sample(["a", "a"], decoding)
    (path, first), (_, second) = server.asked
    seed = first.pop("seed")
    assert path == "/v1/completions" and 0 <= seed < 2**31 and second["seed"] != seed
    assert first == {
        "model": "small", "prompt": "a", "max_tokens": 7, "temperature": 0.7, "top_p": 0.9, "top_k": 5,
        "stop": ["x", "y"], "min_p": 0.1,
    }  # fmt: skip
    assert server.headers[0]["Authorization"] == "Bearer secret"
    server.asked.clear()
    asking(server, concurrency=1).sample(["b", "a", "a"], Decoding(seed=3))
    assert server.asked[2][1]["seed"] == second["seed"]  # of the seed, the prompt and its repetition alone
    assert server.asked[0][1]["logprobs"] == 1 and not {"top_k", "stop"} & set(server.asked[0][1])
    assert "secret" not in repr(asking(server, api_key="secret").client)


def test_limits_and_numbers_of_their_own(server):
    server.answer = lambda path, body: reply(f"{body['seed']}")
    plain = asking(server).sample(["a", "b", "c"], Decoding(seed=3))
    each = asking(server, concurrency=1).sample_each(["c", "a"], Decoding(seed=3), [5, 7], draw_numbers(["c", "a"]))
    assert [attempt.text for attempt in each] == [plain[2].text, plain[0].text]
    assert [body["max_tokens"] for _, body in server.asked[3:]] == [5, 7]


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/"])
def test_addresses(server, path):
    ServerSampler(server.url + path, "small").sample(["a"], DECODING)
    assert server.asked[0][0] == "/v1/completions"


@pytest.mark.parametrize(
    "given",
    [
        {"token_logprobs": [-0.5, -1.5], "tokens": ["a", "b"]},
        {"content": [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -1.5}]},
    ],
)
def test_log_probs_in_the_forms_that_servers_have(server, given):
    server.answer = lambda path, body: reply(logprobs=given)
    (attempt,) = asking(server).sample(["a"], DECODING)
    assert attempt.log_probs == (-0.5, -1.5) and attempt.log_prob == -2


def test_what_a_cache_spared_is_not_charged(server):
    def answer(path, body):
        values = reply(prompt=50)
        values["usage"]["prompt_tokens_details"] = {"cached_tokens": 48}
        return values

    server.answer, ledger = answer, Ledger()
    asking(server).sample(["a"], DECODING, ledger)
    assert ledger.prompt_tokens == 2


# --- where attempts end


@pytest.mark.parametrize(
    ("fields", "text", "finish"),
    [
        ({"stop_reason": "\n"}, "one\n", "stop"),  # vLLM
        ({"stop_reason": None}, "one", "end"),
        ({"matched_stop": "\n"}, "one\n", "stop"),  # SGLang
        ({"matched_stop": 151643}, "one", "end"),
        ({"finish": "length", "stop_reason": None}, "one", "length"),
        ({"finish": "content_filter"}, "one", "length"),
    ],
)
def test_stop_strings_that_a_server_tells_of(server, fields, text, finish):
    server.answer = lambda path, body: reply("one", **fields)
    (attempt,) = asking(server).sample(["a"], Decoding(stop=("\n", "zz")))
    assert (attempt.text, attempt.finish) == (text, finish)


def test_stop_strings_that_a_server_leaves_in(server):
    server.answer = lambda path, body: reply("one\n")
    (attempt,) = asking(server).sample(["a"], Decoding(stop=("zz", "\n")))
    assert (attempt.text, attempt.finish) == ("one\n", "stop")


def test_stop_strings_that_a_server_does_not_tell_of(server):
    server.answer = lambda path, body: reply("one\ntwo" if "stop" not in body else "one", completion=7)
    with pytest.raises(SamplingFailed, match="does not say whether .* stops='client'"):
        asking(server, stops="server").sample(["a"], Decoding(stop=("\n",)))
    (attempt,) = asking(server, stops="client").sample(["a"], Decoding(stop=("\n",)))
    assert (attempt.text, attempt.finish, attempt.tokens) == ("one\n", "stop", 7)
    (attempt,) = asking(server, stops="client").sample(["a"], Decoding(stop=("zz",)))
    assert (attempt.text, attempt.finish) == ("one\ntwo", "end")


def test_from_the_first_untold_stop_string_on_texts_are_cut_here(server):
    server.answer = lambda path, body: reply("one\ntwo" if "stop" not in body else "one", prompt=5, completion=7)
    sampler, ledger = asking(server, concurrency=1), Ledger()
    attempts = sampler.sample(["a", "b"], Decoding(stop=("\n",)), ledger)
    assert [(a.text, a.finish, a.tokens) for a in attempts] == [("one\n", "stop", 7)] * 2
    assert ["stop" in body for _, body in server.asked] == [True, False, False]
    assert (ledger.generated_tokens, ledger.prompt_tokens) == (21, 15)  # what was written for nothing is counted


@pytest.mark.parametrize(("word", "text", "finish"), [("\n", "one\n", "stop"), ("", "one", "end")])
def test_a_server_of_llama_cpp_is_asked_why_it_stopped(server, word, text, finish):
    server.models = {"data": [{"id": "small", "owned_by": "llamacpp"}]}
    server.answer = lambda path, body: reply("one") | {"__verbose": {"stopping_word": word}}
    (attempt,) = asking(server).sample(["a"], Decoding(stop=("\n",)))
    assert (attempt.text, attempt.finish) == (text, finish)
    assert server.asked[0][1]["verbose"] is True


@pytest.mark.parametrize(("owner", "off"), [("llamacpp", 0), ("vllm", -1), ("sglang", -1)])
def test_a_server_that_says_what_it_is_draws_as_it_is_told(server, owner, off):
    server.models = {"data": [{"id": "small", "owned_by": owner}]}
    asking(server, more={"min_p": 0.2}).sample(["a"], DECODING)
    asking(server).sample(["a"], Decoding(top_k=7))
    (_, first), (_, second) = server.asked
    assert (first["top_k"], first["min_p"]) == (off, 0.2)
    assert (second["top_k"], second["min_p"]) == (7, 0.0)


@pytest.mark.parametrize("models", [b"<html>", {}, {"data": []}, {"data": [{"id": "m"}]}, {"data": [None]}])
def test_a_server_that_does_not_say_what_it_is_is_told_what_the_protocol_has(server, models):
    server.models = models
    asking(server).sample(["a"], DECODING)
    assert not {"top_k", "min_p", "verbose"} & set(server.asked[0][1])


def test_a_server_that_cannot_say_what_it_is_yet_is_asked_again(server):
    server.models = (503, {"error": "loading"}, {})
    sampler = asking(server, concurrency=1)
    sampler.sample(["a"], DECODING)
    server.models = {"data": [{"id": "small", "owned_by": "vllm"}]}
    sampler.sample(["a"], DECODING)
    server.models = (503, {"error": "busy"}, {})
    sampler.sample(["a"], DECODING)
    assert [body.get("top_k") for _, body in server.asked] == [None, -1, -1]


def test_a_chat_server(server):
    message = {"role": "assistant", "content": "4", "reasoning_content": "2 and 2"}
    server.answer = lambda path, body: reply(message=message)
    (attempt,) = asking(server, chat=True).sample(["2 + 2?"], DECODING)
    path, body = server.asked[0]
    assert path == "/v1/chat/completions" and body["messages"] == [{"role": "user", "content": "2 + 2?"}]
    assert attempt.text == "2 and 2</think>\n4"
    message["reasoning_content"] = None
    assert asking(server, chat=True).sample(["2 + 2?"], DECODING)[0].text == "4"
    message["content"] = ["4"]
    with pytest.raises(SamplingFailed, match="not what the OpenAI protocol says"):
        asking(server, chat=True).sample(["2 + 2?"], DECODING)


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("<think>\n2 and 2\n</think>\n4", "2 and 2\n</think>\n4"),
        ("\n<think>2 and 2</think>4", "2 and 2</think>4"),
        ("so <think>\n</think>", "so <think>\n</think>"),
        ("<think>\n<think>\n", "<think>\n"),
    ],
)
def test_a_thought_that_the_prompt_has_opened_is_not_opened_twice(server, said, kept):
    server.answer = lambda path, body: reply(said, message={"content": said})
    prompts = ["Question: 2 + 2?\n<think>\n", "2 + 2?\n"]
    opened, bare = asking(server, chat=True).sample(prompts, DECODING)
    assert (opened.text, bare.text) == (kept, said)
    assert asking(server).sample(prompts, DECODING)[0].text == said  # what goes on after the prompt is as it is
    assert asking(server, chat=True, open_thought="").sample(prompts, DECODING)[0].text == said


# --- what passes


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_what_passes_is_asked_again(server, status):
    tries = iter(range(100))
    server.answer = lambda path, body: (status, {"error": "busy"}, {}) if next(tries) < 2 else reply()
    ledger = Ledger()
    (attempt,) = asking(server).sample(["a"], DECODING, ledger)
    assert attempt.text == "fine" and len(server.asked) == 3 and ledger.calls == 1


def test_what_does_not_pass_is_told_after_some_tries(server):
    server.answer = lambda path, body: (503, {"error": {"message": "out of\nmemory"}}, {})
    sentence = "answers 503: out of memory; the server is busy or broken, so look at its log .0 of 1 attempts are done"
    with pytest.raises(SamplingFailed, match=sentence):
        asking(server, retries=2).sample(["a"], DECODING)
    assert len(server.asked) == 3


def test_waits_grow_and_are_as_long_as_the_server_wants(server, monkeypatch):
    waits, own, wait = [], threading.get_ident(), threading.Event.wait

    def noted(self, timeout=None):
        return waits.append(timeout) if threading.get_ident() == own else wait(self, timeout)

    monkeypatch.setattr(threading.Event, "wait", noted)  # other tests' threads may be waiting for something too
    asked = iter(["", "", "7", "1e9", "Fri, 31 Dec 2027 23:59:59 GMT"])
    sampler = ServerSampler("http://127.0.0.1:1", "small", patience=1.0, retries=5)

    def once(path, body):
        from mnemonist.reasoning.sampling import json_over_http

        wanted = next(asked, None)
        if wanted is None:
            return reply()
        raise json_over_http._Passing(UserError("busy"), json_over_http._seconds(wanted))

    object.__setattr__(sampler.client, "_once", once)
    sampler.client.ask("/completions", {})
    assert 0.5 <= waits[0] <= 1.5 and 1 <= waits[1] <= 3
    assert waits[2] == 7 and waits[3] == 60 and 8 <= waits[4] <= 24


def test_a_reply_that_breaks_off_is_asked_for_again(server):
    tries = iter(range(100))
    whole = json.dumps(reply()).encode()
    server.answer = lambda path, body: (200, whole[:9], {"Content-Length": 99}) if next(tries) == 0 else whole
    assert asking(server).sample(["a"], DECODING)[0].text == "fine"
    server.answer = lambda path, body: (200, whole[:9], {"Content-Length": 99})
    with pytest.raises(SamplingFailed, match="breaks off in the middle of its reply"):
        asking(server, retries=1).sample(["a"], DECODING)


def test_a_server_that_is_slow(server):
    def answer(path, body):
        time.sleep(0.3)
        return reply()

    server.answer = answer
    with pytest.raises(SamplingFailed, match="does not answer within 0.05 s; allow it a longer timeout"):
        asking(server, timeout=0.05, retries=5).sample(["a"], DECODING)
    assert len(server.asked) == 2  # one that hangs would otherwise be waited for six times


def test_a_server_that_is_not_there(server):
    free = http.server.HTTPServer(("127.0.0.1", 0), None)
    free.server_close()
    with pytest.raises(
        SamplingFailed, match=rf"nothing answers at http://127.0.0.1:{free.server_port}.*start the server"
    ):
        ServerSampler(f"http://127.0.0.1:{free.server_port}", "m", retries=1, patience=0.001).sample(["a"], DECODING)


# --- what does not


def test_a_wrong_name_is_told_with_the_right_ones(server):
    server.models = {"data": [{"id": "smol"}, {"id": "large"}]}
    server.answer = lambda path, body: (404, {"error": {"message": "no such model"}}, {})
    with pytest.raises(SamplingFailed, match=r"no model 'small' \(did you mean 'smol'\?\); it has smol, large"):
        asking(server).sample(["a"], DECODING)
    assert len(server.asked) == 1  # not asked again


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((404, b"<html>nothing here</html>", {}), "answers 404: <html>nothing here</html>; check the address"),
        ((401, {"error": "no key"}, {}), "answers 401: no key; give its key: as api_key, or .* OPENAI_API_KEY"),
        ((400, {"object": "error", "message": "too long"}, {}), "prompt 0: .* answers 400: too long"),
        ((422, b"", {}), "answers 422: without a reason"),
        (b"<html>Welcome</html>", "not answer with a JSON object but '<html>Welcome</html>'; check that it speaks"),
        (b"[1]", "not answer with a JSON object"),
        (b'{"choices": [', "not answer with a JSON object"),
        ({}, "not what the OpenAI protocol says .KeyError..choices"),
        ({"choices": []}, "not what the OpenAI protocol says"),
        ({"choices": None}, "not what the OpenAI protocol says"),
        ({"choices": [{"text": "a", "finish_reason": "stop"}]}, "does not say how many tokens it has read and written"),
        (reply() | {"usage": None}, r"does not say how many tokens it has read and written \(usage\), which"),
        (reply() | {"usage": {"completion_tokens": 3}}, "does not say how many tokens"),
        ({"error": {"message": "no such adapter", "code": 400}}, "answers with an error: no such adapter; change what"),
        ({"error": "asleep", "choices": []}, "answers with an error: asleep; change what"),
        (reply(logprobs={"token_logprobs": ["x"]}), "not what the OpenAI protocol says"),
        (reply(None), "not what the OpenAI protocol says .*the text is None"),
    ],
)
def test_what_does_not_pass_is_one_sentence(server, given, message):
    server.answer = lambda path, body: given
    with pytest.raises(SamplingFailed, match=message) as caught:
        asking(server).sample(["a"], DECODING)
    assert len(server.asked) == 1 and caught.value.attempts == {}
    assert "\n" not in str(caught.value)


def test_what_is_done_is_not_lost(server):
    def answer(path, body):
        return (400, {"error": "bad"}, {}) if body["prompt"] == "c" else reply(body["prompt"], completion=4)

    server.answer = answer
    told, ledger, prompts = [], Ledger(), ["a", "b", "c", "d", "e"]
    with pytest.raises(SamplingFailed, match="prompt 2: .*2 of 5 attempts are done") as caught:
        asking(server, concurrency=1).sample_each(
            prompts,
            DECODING,
            [9] * 5,
            draw_numbers(prompts),
            ledger,
            lambda number, one: told.append((number, one.text)),
        )
    assert {number: attempt.text for number, attempt in caught.value.attempts.items()} == {0: "a", 1: "b"}
    assert told == [(0, "a"), (1, "b")] and ledger.generated_tokens == 8
    assert len(server.asked) == 3  # nothing is begun after a failure


def test_what_is_under_way_at_a_failure_is_finished(server):
    begun = threading.Barrier(2, timeout=5)

    def answer(path, body):
        begun.wait()
        if body["prompt"] == "bad":
            return 400, {"error": "bad"}, {}
        time.sleep(0.1)
        return reply("late")

    server.answer = answer
    with pytest.raises(SamplingFailed) as caught:
        asking(server, concurrency=2).sample(["good", "bad"], DECODING)
    assert caught.value.attempts[0].text == "late"


def test_no_more_than_so_many_at_a_time(server):
    def answer(path, body):
        time.sleep(0.02)
        return reply()

    server.answer = answer
    asking(server, concurrency=3).sample(["a"] * 12, DECODING)
    assert server.most == 3


def test_a_caller_that_breaks_off_is_not_held(server):
    def broken(number, attempt):
        raise KeyboardInterrupt

    threads = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        asking(server, concurrency=1).sample_each(["a"] * 50, DECODING, [9] * 50, range(50), None, broken)
    assert len(server.asked) < 10
    for _ in range(100):
        if threading.active_count() <= threads:
            break
        time.sleep(0.01)
    assert threading.active_count() <= threads


def test_asking_a_server_needs_no_torch():
    code = (
        "import sys, mnemonist.reasoning.sampling as s; s.ServerSampler('http://h', 'm'); print('torch' in sys.modules)"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": str(SOURCE)}, timeout=60
    )
    assert told.stdout == "False\n", told.stderr


def test_bad_settings():
    for url in ("localhost:8000", "", "ftp://host", "http://"):
        with pytest.raises(UserError, match="is no address of a server"):
            ServerSampler(url, "m")
    with pytest.raises(UserError, match="concurrency is 0"):
        ServerSampler("http://h", "m", concurrency=0)
    with pytest.raises(UserError, match="stops 'nobody'"):
        ServerSampler("http://h", "m", stops="nobody")
    with pytest.raises(UserError, match="timeout is 0"):
        ServerSampler("http://h", "m", timeout=0)
    with pytest.raises(UserError, match="prompt 1 is empty"):
        ServerSampler("http://h", "m").sample(["a", ""], DECODING)
    assert ServerSampler("http://h", "m").sample([], DECODING) == []
    assert (ServerSampler("http://h", "m").name, ServerSampler("http://h", "m", name="n").name) == ("m", "n")
