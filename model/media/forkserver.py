"""Fork a confined child process for each file: `python -m model.media.forkserver MODULE`.

The fork server has imported everything that decoding needs, so that a decode does not wait for imports. It
has one thread, so that it can fork. Its standard input is a Unix socket. Each message on it is a JSON request
with two file descriptors: the file, open for reading, and a socket for the reply. The server ends when its
owner closes the other end.

A child replies with an empty line once it is confined, then with a line of JSON and the data that the line
announces. The `DECODERS` of MODULE are the functions that decode, by name.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NoReturn

from model.media import clips, confinement, images
from model.media.errors import UnusableMedia
from model.media.protocol import MAX_MESSAGE_BYTES, Decoder, Request

_NICENESS = 5  # the service comes first, but a busy machine does not starve a decode until its time is over


def main(module: str) -> None:
    """Serve until the other end of standard input is closed."""
    control = socket.socket(fileno=0)
    decoders: Mapping[str, Decoder] = importlib.import_module(module).DECODERS
    images.warm_up()
    clips.warm_up()
    os.nice(_NICENESS)
    with suppress(OSError):  # /proc may be read-only
        # The kernel kills this process first when memory runs out.
        Path("/proc/self/oom_score_adj").write_text("1000")
    pid = os.getpid()
    filtered = confinement.can_filter_system_calls()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the children
    gc.freeze()  # collections in the children leave the shared pages alone
    control.send(json.dumps({"filtered": filtered}).encode())
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, MAX_MESSAGE_BYTES, 2)
        if not message:
            return
        with suppress(OSError):  # without a child, the reply is empty
            if os.fork() == 0:
                _run(pid, Request(**json.loads(message)), decoders, *descriptors, filtered=filtered)
        for descriptor in descriptors:
            os.close(descriptor)


def _run(
    server_pid: int,
    request: Request,
    decoders: Mapping[str, Decoder],
    source: int,
    reply: int,
    *,
    filtered: bool,
) -> NoReturn:
    """Decode, reply and exit, in the child process."""
    try:
        confinement.die_with_parent(server_pid)
        for standard in (0, 2):  # the fork server's socket, and the owner's log
            os.dup2(1, standard)
        with open(source, "rb") as file, open(reply, "wb") as answer:
            confinement.limit(request.memory_bytes, request.timeout_s)
            if filtered:
                confinement.filter_system_calls()
            answer.write(b"\n")
            answer.flush()
            file.seek(0)
            _decode(request, decoders[request.decoder], file, answer)
    finally:
        os._exit(0)


def _decode(request: Request, decoder: Decoder, source: BinaryIO, answer: BinaryIO) -> None:
    memory = f"more than {request.memory_bytes >> 20} MiB of memory to decode"
    try:
        output = decoder(source, **request.arguments)
        line = {"facts": output.facts, "size_bytes": output.size_bytes}
    except UnusableMedia as error:
        line = {"problem": str(error)}
    except MemoryError:
        line = {"problem": f"needs {memory}"}
    except Exception:  # noqa: BLE001 - decoders raise anything on damaged files, and some where memory ends
        line = {"problem": f"is damaged, or needs {memory}", "detail": traceback.format_exc()[-2000:]}
    answer.write(json.dumps(line).encode() + b"\n")
    for chunk in () if "problem" in line else output.chunks:
        answer.write(chunk)
    answer.flush()


if __name__ == "__main__":
    main(sys.argv[1])
