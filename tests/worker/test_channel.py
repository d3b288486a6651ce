from __future__ import annotations

import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.waiting import wait_until
from worker.channel import Channel, connect, listen
from worker.messages import GpusReleased, GroupFailed, JobStarted, Message, StopJob

MESSAGES: list[Message] = [
    JobStarted(job_id="j"),
    StopJob(job_id="j", reason="cancel"),
    GroupFailed(message="two\nlines, ü"),
    GpusReleased(job_id="j"),
]


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    one, other = socket.socketpair()
    with closing(Channel(one)) as here, closing(Channel(other)) as there:
        yield here, there


@pytest.fixture
def raw() -> Iterator[tuple[socket.socket, Channel]]:
    """Yield a raw socket and the channel to which it is connected."""
    one, other = socket.socketpair()
    with one, closing(Channel(other)) as there:
        yield one, there


@contextmanager
def connected(path: Path) -> Iterator[tuple[Channel, Channel]]:
    """Yield the listening and the connecting end."""
    with closing(listen(path)) as listening, closing(connect(path)) as connecting_end:
        accepted, _ = listening.accept()
        with closing(Channel(accepted)) as listening_end:
            yield listening_end, connecting_end


def test_messages_keep_their_order_in_both_directions(ends):
    here, there = ends
    for message in MESSAGES:
        here.send(message)
        there.send(message)
    assert [there.recv() for _ in MESSAGES] == MESSAGES
    assert [here.recv() for _ in MESSAGES] == MESSAGES


def test_messages_of_several_threads_do_not_mix(ends):
    here, there = ends
    long = GroupFailed(message="x" * 10_000)
    senders = [threading.Thread(target=lambda: [here.send(long) for _ in range(20)]) for _ in range(4)]
    for sender in senders:
        sender.start()
    assert all(there.recv() == long for _ in range(80))
    for sender in senders:
        sender.join()


def test_recv_returns_none_after_the_other_end_closed(ends):
    here, there = ends
    here.send(MESSAGES[0])
    here.close()
    assert there.recv() == MESSAGES[0]
    assert there.recv() is None


def test_recv_returns_none_after_the_same_end_closed(ends):
    here, there = ends
    there.send(MESSAGES[0])
    here.close()
    assert here.recv() is None


def test_incomplete_message_is_dropped(raw):
    here, there = raw
    here.sendall(b'{"type": "job_started"')
    here.close()
    assert there.recv() is None


def test_close_wakes_a_thread_that_receives_at_the_same_end(ends):
    here, _ = ends
    received: list[Message | None] = []
    receiver = threading.Thread(target=lambda: received.append(here.recv()))
    receiver.start()
    here.close()
    receiver.join()
    assert received == [None]


@pytest.mark.parametrize(
    "line", [b'{"type": "shutdown"}', b'{"type": "job_started", "job_id": 1}', b"{", b""]
)
def test_message_that_cannot_be_read_is_passed_over(raw, caplog, line):
    here, there = raw
    here.sendall(line + b'\n{"type": "job_started", "job_id": "j", "of_a_later_release": 1}\n')
    assert there.recv() == JobStarted(job_id="j")
    assert "passed over a message" in caplog.text


def test_send_fails_after_the_other_end_closed(ends):
    here, there = ends
    there.close()
    with pytest.raises(OSError, match="Broken pipe"):
        wait_until(lambda: here.send(MESSAGES[0]))


def test_path_of_the_socket_may_exceed_the_limit_of_an_address(tmp_path):
    with connected(tmp_path / ("d" * 100) / ("e" * 100) / "rank-0.sock") as (listening_end, connecting_end):
        connecting_end.send(MESSAGES[0])
        assert listening_end.recv() == MESSAGES[0]


def test_failed_connection_leaves_no_socket_open(tmp_path, monkeypatch):
    opened: list[socket.socket] = []

    class Noted(socket.socket):
        def __init__(self, *given):
            super().__init__(*given)
            opened.append(self)

    monkeypatch.setattr(socket, "socket", Noted)
    with pytest.raises(FileNotFoundError):
        connect(tmp_path / "nobody.sock")
    assert [each.fileno() for each in opened] == [-1]


def test_folder_of_the_socket_is_private(tmp_path):
    folder = tmp_path / "group"
    folder.mkdir(mode=0o755)
    listen(folder / "rank-0.sock").close()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_socket_of_a_dead_process_is_replaced(tmp_path):
    path = tmp_path / "rank-0.sock"
    listen(path).close()
    with connected(path) as (listening_end, connecting_end):
        listening_end.send(MESSAGES[1])
        assert connecting_end.recv() == MESSAGES[1]
