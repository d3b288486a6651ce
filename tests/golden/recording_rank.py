"""Run a rank that writes down every message between itself and its supervisor.

`tests.golden.record` copies this file into a checkout of the release, whose code it runs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tests.chaos.rank import load
from worker.channel import Channel
from worker.messages import Message
from worker.rank import main as rank

MODULE = "recording_rank"
LOG = "messages.jsonl"


def record_messages(folder: Path) -> None:
    """Append each message that this process sends or receives to a file, as the JSON that was sent."""
    send, recv = Channel.send, Channel.recv

    def write(message: Message) -> None:
        with (folder / LOG).open("a") as log:
            log.write(message.model_dump_json() + "\n")

    def sending(self: Channel, message: Message) -> None:
        write(message)
        send(self, message)

    def receiving(self: Channel) -> Message | None:
        message = recv(self)
        if message is not None:
            write(message)
        return message

    replaced: Any = Channel
    replaced.send, replaced.recv = sending, receiving


if __name__ == "__main__":
    record_messages(Path(__file__).parent)
    rank.main(sys.argv[1], load)
