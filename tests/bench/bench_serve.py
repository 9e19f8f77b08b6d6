"""How many requests `medsd serve` answers in a second, as a share of the rows that `medsd score` writes.

Run `python -m tests.bench.bench_serve`; it ends with status 1 where an answer is not the row of its image, or the
share is below 0.9. In every round, one after another: `score` goes from the files to the table, and 20 clients on
connections of their own send the same files to a server in a process of its own until each of 1,000 requests is
answered; the image is the body, or with `--form` a form has it. Score reads as many files as there are requests, under
names of their own. Both ways decode in as many processes and read in batches of the same size. No start is counted: the
rate of score is that of the rows after the first four batches (as in `tests.bench.bench_score`; some images lie decoded
by then, which favours score), and each client has had one answer before. The median of the rounds' ratios counts.

Clients and server share the processors, so the share says less than a client on another machine would see. Beside it
stands the processor time of an image: of the server (its process and those that decode), of the clients, and of score.
Score's over the server's is what the share would be without the clients.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from medsd.inference.session import processors
from medsd.scoring.table import read_table
from tests.bench.bench_score import ENCODINGS, ROOT, _cost_of, _tree, run_scorer, write_films

LEAST = 0.9
_BOUNDARY = "----a-boundary-as-long-as-those-of-browsers"
_HEAD = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'.encode()
_TAIL = f"\r\n--{_BOUNDARY}--\r\n".encode()


@dataclass(frozen=True)
class Asked:
    """What all requests took; seconds of processor time are those of one request."""

    seconds: float
    answers: list[Any]
    server_s: float
    clients_s: float


@contextmanager
def server(bundle: Path, workers: int, size: int) -> Iterator[tuple[tuple[str, int], int]]:
    """`medsd serve` in a process of its own; host and port, and its number."""
    words = ["serve", bundle, "--port", 0, "--workers", workers, "--batch-size", size, "--set", "gate.max_seconds=60"]
    command = [sys.executable, "-m", "medsd.cli", *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            [(host, port)] = re.findall(r"http://([\d.]+):(\d+)/", process.stdout.readline())
            yield (host, int(port)), process.pid
        finally:
            process.terminate()


class Client(HTTPConnection):
    """Sends by CUBIC, as most machines do: BBR paces by timers, which on one machine cost more than the bytes."""

    def connect(self) -> None:
        self.sock = socket.socket()
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(AttributeError, OSError):  # another system
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")  # afterwards, it would still pace
        self.sock.connect((self.host, self.port))


def send_alone(connection: HTTPConnection, path: Path) -> None:
    """An image as it is, which the system copies from its cache into the socket."""
    with path.open("rb") as file:
        _begin(connection, "application/dicom", os.fstat(file.fileno()).st_size)
        connection.endheaders()
        connection.sock.sendfile(file)


def send_form(connection: HTTPConnection, path: Path) -> None:
    """A form with an image."""
    with path.open("rb") as file:
        length = len(_HEAD) + os.fstat(file.fileno()).st_size + len(_TAIL)
        _begin(connection, f"multipart/form-data; boundary={_BOUNDARY}", length)
        connection.endheaders(_HEAD)
        connection.sock.sendfile(file)
        connection.send(_TAIL)


def _begin(connection: HTTPConnection, kind: str, length: int) -> None:
    connection.putrequest("POST", "/v1/predictions", skip_accept_encoding=True)
    connection.putheader("Content-Type", kind)
    connection.putheader("Content-Length", str(length))


def ask_all(
    address: tuple[str, int],
    pid: int,
    paths: Sequence[Path],
    requests: int,
    clients: int,
    send: Callable[[HTTPConnection, Path], None],
) -> Asked:
    """Ask a server until all requests are answered."""
    idle: SimpleQueue[HTTPConnection] = SimpleQueue()
    for _ in range(clients):
        idle.put(Client(*address))  # without a time limit, one call of the system sends a file

    def ask(number: int) -> Any:
        connection = idle.get()
        try:
            send(connection, paths[number % len(paths)])
            answer = connection.getresponse()
            content = answer.read()
            assert answer.status == 200, content
            return content
        finally:
            idle.put(connection)

    with ThreadPoolExecutor(clients) as threads:
        list(threads.map(ask, range(clients)))
        for _ in range(clients):  # the server has ended those that waited 5 s for the slowest
            connection = idle.get()
            connection.close()
            idle.put(connection)
        before, own, begun = sum(map(_cost_of, _tree(pid))), time.process_time(), time.perf_counter()
        answers = list(threads.map(ask, range(requests)))
        seconds, own, after = time.perf_counter() - begun, time.process_time() - own, sum(map(_cost_of, _tree(pid)))
    return Asked(seconds, list(map(json.loads, answers)), (after - before) / requests, own / requests)


def _runs(address: tuple[str, int]) -> float:
    """Studies in one run, on average."""
    connection = HTTPConnection(*address)
    connection.request("GET", "/metrics")
    page = connection.getresponse().read().decode()
    studies, runs = (float(re.findall(rf"^medsd_rest_batch_{what} (.+)$", page, re.M)[0]) for what in ("sum", "count"))
    return studies / runs


def wrong(answers: Sequence[Any], paths: Sequence[Path], rows: dict[str, Any]) -> int:
    """How many answers are not the row of their image."""
    count = 0
    for number, answer in enumerate(answers):
        row = rows[str(paths[number % len(paths)])]
        said = {f"probability_{each['name']}": each["probability"] for each in answer["findings"]}
        said |= {f"call_{each['name']}": each["call"] for each in answer["findings"]}
        count += {name: row[name] for name in said} != said or row["study_key"] != answer["study_key"]
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=ROOT / "models" / "nih14")
    parser.add_argument("--images", type=int, default=200, help="files that are sent, in turn")
    parser.add_argument("--side", type=int, default=2000, help="their rows and columns")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=processors())
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--encoding", choices=ENCODINGS, default=ENCODINGS[0])
    parser.add_argument("--form", action="store_true", help="send forms")
    options = parser.parse_args()
    send = send_form if options.form else send_alone
    warnings.simplefilter("ignore")
    os.environ.setdefault("MEDSD_KEY", "a key for benches alone")
    ratios, mistakes = [], 0
    with tempfile.TemporaryDirectory() as place:
        paths = write_films(Path(place), options.encoding, options.images, options.side)
        table = Path(place) / "table.jsonl"
        command = [sys.executable, "-m", "medsd.cli", "score", options.bundle, paths[0].parent, "--out", table]
        command += ["--batch-size", str(options.batch_size), "--set", "gate.max_seconds=60"]
        subprocess.run(list(map(str, command)), check=True, cwd=ROOT)
        rows = {str(row["path"]): row for row in read_table(table)}
        many = Path(place) / "many"
        many.mkdir()
        for number in range(options.requests):
            os.link(paths[number % len(paths)], many / f"{number:05d}.dcm")
        for _ in range(options.rounds):
            scored = run_scorer(many, options.bundle, options.workers, options.batch_size)
            with server(options.bundle, options.workers, options.batch_size) as (address, pid):
                asked = ask_all(address, pid, paths, options.requests, options.clients, send)
                runs = _runs(address)
            rate = options.requests / asked.seconds
            ratios.append(rate / scored.rate)
            mistakes += wrong(asked.answers, paths, rows)
            print(f"{rate:.1f} requests a second, {scored.rate:.1f} rows a second: {ratios[-1]:.2f}")
            server_ms = asked.server_s * 1e3
            print(
                f"processor ms an image: server {server_ms:.1f}, clients {asked.clients_s * 1e3:.1f}, "
                f"score {scored.cost_ms:.1f}; score / server {scored.cost_ms / server_ms:.2f}; "
                f"{runs:.1f} images a run"
            )
    ratio = statistics.median(ratios)
    print(f"serve / score {ratio:.2f}, {mistakes} of {options.rounds * options.requests} answers wrong")
    sys.exit(mistakes > 0 or ratio < LEAST)


if __name__ == "__main__":
    main()
