"""Endpoints that drip, hang, flood, redirect or hang up, and interrupts while they do."""

import email.utils
import gzip
import json
import os
import signal
import socketserver
import threading
import time
import zlib
from contextlib import contextmanager, suppress

import pytest

from slime_ray.errors import InputError, RunError
from slime_ray.evaluation.judges import asking, endpoint
from slime_ray.evaluation.judges.endpoint import Endpoint, seconds_of

from .judge_server import KEY, VARIABLE, Response, completion, pairs, serving, settings

PROMPTS = [[{"role": "user", "content": f"question {n}"}] for n in range(2)]
OURS, THEIRS = ["a good answer", "a"], ["an answer", "an answer"]
PAIRS = pairs(PROMPTS, OURS, THEIRS)
LATE = r"no answer within 0\.3 s"


class _Raw(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


@contextmanager
def raw_server(send):
    """The address of a server that has read a request's head when it calls send(connection, released)."""
    released = threading.Event()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            head = b""
            while b"\r\n\r\n" not in head and (part := self.request.recv(65536)):
                head += part
            with suppress(OSError):
                send(self.request, released)

    with _Raw(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        finally:
            released.set()
            server.shutdown()
            thread.join()


def dripped(connection, released, parts):
    """Send one part after another, each well within any time that one read may take."""
    for part in parts:
        connection.sendall(part)
        if released.wait(0.05):
            return


def drip_body(connection, released):
    body = json.dumps(completion("[[A>B]]")).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body) + 60}\r\n\r\n"
    dripped(connection, released, [head.encode(), *[b" "] * 60, body])


def drip_chunks(connection, released):
    body = json.dumps(completion("[[A>B]]")).encode()
    last = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    dripped(
        connection, released, [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", *[b"1\r\n \r\n"] * 60, last]
    )


def drip_head(connection, released):
    body = json.dumps(completion("[[A>B]]")).encode()
    rest = b"\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    dripped(connection, released, [b"HTTP/1.1 200 OK\r\nx-slow: ", *[b"a"] * 60, rest])


def drip_refusal(connection, released):
    dripped(connection, released, [b"HTTP/1.1 400 Bad Request\r\ncontent-length: 60\r\n\r\n", *[b" "] * 60])


def hang(connection, released):
    released.wait(3)


@pytest.mark.parametrize("send", [drip_body, drip_chunks, drip_head, drip_refusal, hang])
def test_a_request_ends_at_its_deadline_whatever_comes_meanwhile(llm, send):
    """Each byte comes in time; all of them take ten times as long as a request may."""
    with raw_server(send) as url, pytest.raises(RunError, match=LATE):
        llm(url, timeout_seconds=0.3, retries=0).compare(PAIRS)


def hang_up(connection, released):
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{")


def say_nothing(connection, released):
    pass


def speak_otherwise(connection, released):
    connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")


@pytest.mark.parametrize("send", [hang_up, say_nothing, speak_otherwise])
def test_a_connection_that_breaks_is_a_sentence_and_may_have_been_paid_for(llm, send):
    with raw_server(send) as url:
        judged = llm(url, retries=0, on_failure="continue").compare(PAIRS)
    ((reason, count),) = judged.summary.missing.items()
    assert (reason.startswith("no connection: "), count) == (True, 4)
    assert judged.summary.requests == 4


def test_an_endpoint_that_does_not_speak_tls_is_a_sentence_and_costs_nothing(llm):
    with serving() as server:
        judge = llm(server.url.replace("http:", "https:"), retries=0, on_failure="continue")
        judged = judge.compare(PAIRS)
    ((reason, _),) = judged.summary.missing.items()
    assert "SSL" in reason
    assert judged.summary.requests == 0


BODY = json.dumps(completion("[[A>B]]")).encode()


def packed(encoding, body):
    return Response(body=body, headers={"content-encoding": encoding})


@pytest.mark.parametrize(
    "response",
    [packed("gzip", gzip.compress(BODY)), packed("deflate", zlib.compress(BODY)), packed("identity", BODY)],
    ids=["gzip", "deflate", "identity"],
)
def test_a_compressed_judgment_is_read(llm, response):
    with serving(lambda *_: response) as server:
        assert llm(server).compare(PAIRS).comparisons[0].ab == "A>B"


FLOOD = b" " * (endpoint.LARGEST + 1) + BODY


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (packed("gzip", gzip.compress(FLOOD)), "an answer of more than 16 MB"),
        (Response(400, gzip.compress(FLOOD), {"content-encoding": "gzip"}), "an answer of more than 16 MB"),
        (Response(body=FLOOD), "an answer of more than 16 MB"),
        # Each layer may be a thousand times as large as the one around it.
        (packed("gzip, gzip", gzip.compress(gzip.compress(FLOOD))), "an answer that cannot be decompressed: gzip, gzip"),
        (packed("br", BODY), "an answer that cannot be decompressed: br"),
        (packed("gzip", b"no gzip"), "an answer that cannot be decompressed: Error -3"),
    ],
    ids=["bomb", "refusal", "plain", "nested", "unknown", "broken"],
)  # fmt: skip
def test_no_answer_takes_more_room_than_a_judgment_may(llm, response, reason):
    with serving(lambda *_: response) as server:
        judged = llm(server, retries=0, on_failure="continue", concurrency=1).compare(PAIRS[:1])
    ((said, count),) = judged.summary.missing.items()
    assert (said.startswith(reason), count) == (True, 2)


def test_decompression_stops_at_the_limit(llm, monkeypatch):
    """What comes out of one part is bounded, too, not only their sum."""
    seen = []
    real = zlib.decompressobj

    class Unpack:
        def __init__(self, *given):
            self.own = real(*given)

        def decompress(self, part, most):
            seen.append(len(made := self.own.decompress(part, most)))
            return made

    monkeypatch.setattr(endpoint.zlib, "decompressobj", Unpack)
    with serving(lambda *_: packed("gzip", gzip.compress(b" " * (2 * endpoint.LARGEST)))) as server:
        judge = llm(server, retries=0, concurrency=1)
        with pytest.raises(RunError, match="16 MB"):
            judge.compare(PAIRS)
    assert sum(seen) == endpoint.LARGEST + 1


@pytest.mark.parametrize("status", [301, 308])
def test_a_redirect_is_refused_and_nothing_is_sent_there(llm, caplog, status):
    with serving() as other, serving() as server:
        place = f"{other.url.replace('http://', 'http://bob:secret@')}/chat/completions?token=abc"
        server.behave = lambda *_: Response(status, {}, {"location": place})
        with pytest.raises(RunError, match=rf"redirects to {other.url}/chat.*\({status}\).*base_url") as stopped:
            llm(server, on_failure="continue", concurrency=1).compare(PAIRS)
        assert (len(server.requests), other.requests) == (1, [])
    for secret in (KEY, "secret", "abc"):
        assert secret not in str(stopped.value) + caplog.text


def test_a_redirect_to_nowhere_is_a_sentence(llm):
    with serving() as server:
        for headers in ({}, *({"location": place} for place in ("", "/elsewhere", "http://[broken", "//"))):
            server.behave = lambda *_, headers=headers: Response(307, {}, headers)
            with pytest.raises(RunError, match=r"redirects to .*307"):
                llm(server, concurrency=1).compare(PAIRS)


def test_an_interrupt_ends_a_hanging_judge_and_what_had_arrived_is_kept(llm, monkeypatch):
    """The second request hangs for as long as the test lasts, and is not waited for."""
    monkeypatch.setattr(asking, "GRACE", 0.05)
    release = threading.Event()

    def behave(number, judgment):
        if number == 1:
            os.kill(os.getpid(), signal.SIGINT)
            release.wait(10)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with serving(behave) as server:
            with pytest.raises(KeyboardInterrupt):
                llm(server, concurrency=1).compare(PAIRS)
            assert len(server.requests) == 2
            release.set()
            server.behave = lambda *_: None
            judged = llm(server).compare(PAIRS)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (judged.summary.cached, judged.summary.new) == (1, 3)
    # The one that was not waited for may have been paid for.
    assert judged.summary.requests == 5


class Leave(Exception):
    """What an order to leave raises."""


def test_a_judge_that_hangs_hears_an_order_to_leave(llm, monkeypatch):
    monkeypatch.setattr(asking, "GRACE", 0.05)
    monkeypatch.setattr(asking, "HEARTBEAT", 0.05)
    release = threading.Event()

    def progress(done, of):
        assert (done, of) == (0, 4)
        raise Leave

    with serving(lambda *_: release.wait(10) and None) as server:
        judge = llm(server)
        judge.asker.progress = progress
        with pytest.raises(Leave):
            judge.compare(PAIRS)
        release.set()
    assert judge.asker.verdicts.find([]) == {}


def test_threads_and_connections_end_with_the_judging(llm):
    with serving() as server:
        for _ in range(3):
            llm(server).compare(PAIRS)
    assert not [thread for thread in threading.enumerate() if thread.name == "endpoint"]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None), ("", None), ("soon", None), ("nan", None), ("-1", None), ("-inf", None), ("1e400", float("inf")),
        ("0", 0.0), ("2.5", 2.5), ("86400", 86400.0), ("Fri, 31 Dec 1999 23:59:59 GMT", None),
        ("Fri, 99 Dec 9999 99:99:99 GMT", None),
    ],
)  # fmt: skip
def test_a_wait_is_a_number_that_can_be_waited(value, seconds):
    assert seconds_of(value) == seconds


def test_a_wait_may_be_a_date():
    assert 3000 < seconds_of(email.utils.formatdate(time.time() + 3600, usegmt=True)) <= 3600


def test_who_asks_for_hours_is_not_waited_for_and_the_sentence_says_so(llm):
    with (
        serving(lambda *_: Response(429, {}, {"retry-after": "86400"})) as server,
        pytest.raises(RunError, match=r"rate limit \(429\) that asks to wait longer than 120 s"),
    ):
        llm(server, retries=100, concurrency=1).compare(PAIRS)


@pytest.mark.parametrize("key", ["sk one", "sk-\N{CYRILLIC SMALL LETTER ES}12", "sk-1\nsk-2", "sk\t1"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(monkeypatch, key):
    monkeypatch.setenv(VARIABLE, key)
    with pytest.raises(InputError, match=VARIABLE) as refused:
        Endpoint(settings("http://127.0.0.1:9/v1"))
    assert key not in str(refused.value)


def test_a_line_break_after_the_key_is_no_part_of_it(llm, monkeypatch):
    monkeypatch.setenv(VARIABLE, f"{KEY}\r\n")
    with serving() as server:
        assert llm(server).compare(PAIRS).comparisons[0].outcome == 1.0


def test_half_a_character_in_an_answer_is_sent_as_a_question_mark(llm):
    with serving() as server:
        judged = llm(server).compare(pairs(PROMPTS, ["good \ud83d", "a"], THEIRS))
        assert judged.comparisons[0].outcome == 1.0
        assert any("good ?" in request["messages"][1]["content"] for request in server.requests)


@pytest.mark.parametrize(
    ("variable", "value"), [("ALL_PROXY", "gopher://bob:secret@h:1"), ("HTTP_PROXY", "http://bob:secret@h:port")]
)
def test_a_proxy_that_is_none_is_a_sentence_without_its_password(llm, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(InputError, match=variable) as refused:
        llm("http://127.0.0.1:9/v1").compare(PAIRS)
    assert "secret" not in str(refused.value)
    assert not [thread for thread in threading.enumerate() if thread.name == "endpoint"]


@pytest.mark.parametrize("status", [407, 502])
def test_a_proxy_that_refuses_is_a_sentence_without_its_password(llm, monkeypatch, status):
    def refuse(connection, released):
        connection.sendall(b"HTTP/1.1 %d Refused\r\ncontent-length: 0\r\n\r\n" % status)

    with raw_server(refuse) as url:
        monkeypatch.setenv("HTTPS_PROXY", url.replace("http://", "http://bob:secret@").removesuffix("/v1"))
        monkeypatch.delenv("NO_PROXY", raising=False)
        judge = llm("https://judge.invalid/v1", retries=0, on_failure="continue")
        judged = judge.compare(PAIRS)
    ((reason, count),) = judged.summary.missing.items()
    assert (str(status) in reason, "secret" in reason, count) == (True, False, 4)
    # Nothing came as far as the endpoint.
    assert judged.summary.requests == 0
