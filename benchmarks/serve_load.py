"""The server under load: many clients at once, errors, images a second, waits, and the memory of its process.

Starts `robustgen serve` on this machine, and sends it one image a request from each client, one request after the
other, for so many seconds. Memory is the resident set of the server, read every half second from /proc.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import robustgen
from robustgen.benchmarks.harness import store
from robustgen.service.images import encode


def resident(pid: int) -> int:
    """Bytes of a process that lie in memory."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


async def load(url: str, pid: int, bodies: list[bytes], clients: int, seconds: float) -> dict[str, Any]:
    """What came back, and how the memory went."""
    import httpx2

    waits: list[float] = []
    errors: dict[str, int] = {}
    memory: list[int] = []
    until = time.monotonic() + seconds

    async def client(k: int, http: httpx2.AsyncClient) -> None:
        while time.monotonic() < until:
            begun = time.monotonic()
            try:
                headers = {"content-type": "application/json", "x-account": f"load {k}"}
                answer = await http.post(f"{url}/predict", content=bodies[k % len(bodies)], headers=headers)
                told = "" if answer.status_code == 200 else str(answer.status_code)
            except httpx2.HTTPError as error:
                told = type(error).__name__
            if told:
                errors[told] = errors.get(told, 0) + 1
            waits.append(time.monotonic() - begun)

    async def watch() -> None:
        while time.monotonic() < until:
            memory.append(resident(pid))
            await asyncio.sleep(0.5)

    limits = httpx2.Limits(max_connections=clients, max_keepalive_connections=clients)  # one connection a client
    async with httpx2.AsyncClient(timeout=30, trust_env=False, verify=False, limits=limits) as http:
        await asyncio.gather(watch(), *(client(k, http) for k in range(clients)))
    waits.sort()
    settled = memory[len(memory) // 4 :]
    return {
        "clients": clients, "seconds": seconds, "requests": len(waits), "errors": errors,
        "requests_a_second": len(waits) / seconds, "median_wait": statistics.median(waits),
        "wait_99": waits[int(0.99 * (len(waits) - 1))], "rss": memory,
        "rss_growth_after_a_quarter": settled[-1] - settled[0],
    }  # fmt: skip


def main() -> None:
    """Start the server, measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classifier", default="fmnist-standard")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--dry", action="store_true", help="store nothing")
    options = parser.parse_args()
    x, _ = robustgen.load_data("fmnist-test-1k").batch(range(64))
    bodies = [encode(image[None]) for image in x]
    command = [sys.executable, "-m", "robustgen", "serve", options.classifier, "--port", "0", "--answers", "scores"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:  # noqa: S603 -- our own command
        try:
            assert server.stdout is not None
            url = server.stdout.readline().split(" at ")[1].partition(";")[0]
            found = asyncio.run(load(url, server.pid, bodies, options.clients, options.seconds))
        finally:
            server.terminate()
    print({key: value for key, value in found.items() if key != "rss"})
    if not options.dry:
        print(store("serve_load", {"classifier": options.classifier, **found}))


if __name__ == "__main__":
    main()
