"""Requests and their ends: clients that leave, clients that are slow, a server that stops. Nothing stays behind."""

import asyncio
import json
import random
import socket
from collections.abc import Callable

import httpx2
import pytest
from live_server import Live, wait_for

BODY = {"model": "pelagos", "messages": [{"role": "user", "content": "hi"}], "stream": True}
CHAT = "/v1/chat/completions"


def test_a_client_that_leaves_ends_its_request(live: Live) -> None:
    live.engine.pace = 0.01
    live.say("</think>" + "more " * 2000)
    with live.http.stream("POST", CHAT, json=BODY) as reply:
        next(reply.iter_lines())
    live.wait_idle()
    assert live.engine.reasons[-1] == "cancelled"


def test_so_does_one_that_waits_for_the_whole(live: Live) -> None:
    live.engine.pace = 0.01
    live.say("</think>" + "more " * 2000)
    with pytest.raises(httpx2.ReadTimeout):
        live.http.post(CHAT, json=BODY | {"stream": False}, timeout=0.3)
    live.wait_idle()
    assert live.engine.reasons[-1] == "cancelled"


def test_a_prompt_that_is_being_read_is_read_to_its_end(live: Live) -> None:
    """Asking again then finds it; no token is made for nobody."""
    live.engine.pace = 0.02
    live.say("</think>" + "more " * 2000, read=20)
    before = live.engine.num_generated
    with live.http.stream("POST", CHAT, json=BODY) as reply:
        next(reply.iter_lines())  # the request has begun to be read
    live.wait_idle()
    assert live.engine.reasons[-1] == "cancelled"
    assert live.engine.num_generated - before <= 2
    assert len(live.last.prompt_ids) > 100


def test_headers_come_before_anything_else(live: Live) -> None:
    live.engine.pace = 0.5
    live.say("</think>x", read=200)
    with live.http.stream("POST", CHAT, json=BODY) as reply:
        assert live.server.watch.running("")[0]["state"] in ("waiting", "reading")
        assert reply.status_code == 200
        reply.read()


def test_a_slow_reader_costs_a_bound(launch: Callable[..., Live]) -> None:
    """What it does not read is added up; past the bound its request ends, and nobody else notices."""
    from pelagos.serving.config import Limits

    live = launch(limits=Limits(max_buffered_tokens=3000))
    live.say("</think>" + "more " * 60_000, piece=500)
    with socket.create_connection(("127.0.0.1", live.port)) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        data = json.dumps(BODY | {"thinking": {"type": "enabled"}}).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
        slow.sendall(head.encode() + data)
        wait_for(lambda: bool(live.engine.reasons), 10)
        assert live.engine.reasons == ["cancelled"]
        assert live.http.get("/health").status_code == 200
    live.wait_idle()


def test_many_streams_with_clients_that_leave(live: Live) -> None:
    live.engine.pace = 0.002
    live.say("think</think>" + "word " * 40, num_cached=3)
    chooser = random.Random(7)
    stays = [chooser.random() < 0.5 for _ in range(64)]
    before = len(live.engine.requests)

    async def one(client: httpx2.AsyncClient, stay: bool, num_lines: int) -> bool:
        async with client.stream("POST", CHAT, json=BODY) as reply:
            last, number = "", 0
            async for line in reply.aiter_lines():
                last = line or last
                number += 1
                if not stay and number >= num_lines:
                    return False
        return last == "data: [DONE]"

    async def all_of_them() -> list[bool]:
        limits = httpx2.Limits(max_connections=100)
        async with httpx2.AsyncClient(base_url=live.url, timeout=30, limits=limits) as client:
            return await asyncio.gather(*(one(client, stay, chooser.randrange(1, 8)) for stay in stays))

    assert asyncio.run(all_of_them()) == stays
    live.wait_idle(10)
    assert len(live.engine.requests) - before == 64
    assert set(live.engine.finished.values()) == {1}
    tasks = live.run_in_loop(lambda: [task.get_coro().__qualname__ for task in asyncio.all_tasks()])
    assert not [name for name in tasks if "EventStream" in name or "left" in name], tasks


@pytest.mark.parametrize("seconds", [10.0, 0.2])
def test_a_server_that_stops_ends_every_stream(launch: Callable[..., Live], seconds: float) -> None:
    """Within the time that it has, by itself; after that, cancelled. Either way the last event comes."""
    live = launch(drain_seconds=seconds)
    live.engine.pace = 0.01
    live.say("</think>" + "word " * 60)
    with live.http.stream("POST", CHAT, json=BODY) as reply:
        lines = reply.iter_lines()
        next(lines)
        live.ask_to_stop()
        rest = [line for line in lines if line.startswith("data")]
    assert rest[-1] == "data: [DONE]"
    if seconds > 1:
        assert json.loads(rest[-2][6:])["choices"][0]["finish_reason"] == "stop"
    else:
        assert json.loads(rest[-2][6:])["error"]["code"] == "cancelled"
        assert json.loads(rest[-3][6:])["choices"][0]["finish_reason"] == "insufficient_system_resource"
    live.stop()
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{live.url}/health")


def test_a_time_limit(launch: Callable[..., Live]) -> None:
    live = launch(request_timeout=1.0)
    live.engine.pace = 0.05
    live.say("</think>" + "word " * 500)
    reply = live.http.post(CHAT, json=BODY | {"stream": False})
    assert reply.status_code == 504
    assert "time limit" in reply.json()["error"]["message"]


def test_what_is_running_can_be_seen_and_ended(live: Live) -> None:
    live.engine.pace = 0.01
    live.say("</think>" + "more " * 2000)
    with live.http.stream("POST", CHAT, json=BODY, headers={"x-request-id": "look-at-me"}) as reply:
        lines = reply.iter_lines()
        next(lines)
        wait_for(lambda: live.http.get("/v1/requests").json()["data"][0]["generated_tokens"] > 0)
        [seen] = live.http.get("/v1/requests").json()["data"]
        assert (seen["id"], seen["state"], seen["path"]) == ("look-at-me", "generating", CHAT)
        assert seen["prompt_tokens"] == len(live.last.prompt_ids)
        assert live.http.post("/v1/requests/look-at-me/cancel").json()["cancelled"]
        assert list(lines)[-2] == "data: [DONE]"
    live.wait_idle()
    assert live.http.get("/v1/requests").json()["data"] == []
    assert live.http.post("/v1/requests/look-at-me/cancel").status_code == 404


def test_counters(launch: Callable[..., Live]) -> None:
    live = launch()
    live.say("think</think>hello", num_cached=4)
    live.chat()
    page = live.http.get("/metrics").text
    num_prompt = len(live.last.prompt_ids)
    assert 'pelagos_requests_total{protocol="chat",reason="stop"} 1.0' in page
    assert 'pelagos_prompt_tokens_total{source="cached"} 4.0' in page
    assert f'pelagos_prompt_tokens_total{{source="computed"}} {num_prompt - 4:.1f}' in page
    assert f"pelagos_generated_tokens_total {live.engine.num_generated:.1f}" in page
    assert "pelagos_first_token_seconds_count 1.0" in page
    assert f'pelagos_http_responses_total{{path="{CHAT}",status="200"}} 1.0' in page
    assert "pelagos_engine_num_running 0.0" in page
