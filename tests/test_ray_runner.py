"""A run on a local Ray cluster of two workers, one of which is killed midway."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.perf.fake_server import start_server

NEEDED = "needs ray: pip install 'dspy-tpo[ray]'"
RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # On a busy machine its processes take longer to start than Ray expects.
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_agent_register_timeout_ms": "120000",
    "RAY_worker_register_timeout_seconds": "120",
}


def needs_ray(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that starts Ray."""
    missing = importlib.util.find_spec("ray") is None
    for mark in (pytest.mark.ray, pytest.mark.server, pytest.mark.skipif(missing, reason=NEEDED)):
        test = mark(test)
    return test


SCRIPT = """
import json, os, signal, socket, sys
from pathlib import Path
import dspy, psutil, ray
from ray.cluster_utils import Cluster
from tpo_modules import TPOModule
from tpo_modules.lms.openai_lm import OpenAIServerLM
from tpo_modules.runs.ray_runner import RayCluster, run_on_ray
from tpo_modules.runs.runner import RunSettings, run_queries

url, folder = sys.argv[1], Path(sys.argv[2])
lm = OpenAIServerLM("openai/fake", api_base=url, cache=False)
queries = [f"[q{i}] Tell me about the number {i}." for i in range(24)]
settings = RunSettings(max_in_flight=4)
killed = []

def letters(query, response):
    with (folder / "scored.log").open("a") as log:
        log.write(response + "\\n")
    return sum(i * ord(letter) for i, letter in enumerate(response)) % 1009

def watch(figures):
    if figures["requests"] >= 60 and not killed:
        workers = [p for p in psutil.Process().children(recursive=True)
                   if p.name().startswith("ray::RayWorker")]
        killed.append(workers[0].pid)
        workers[0].send_signal(signal.SIGKILL)

# With ports given, Ray does not give up on helpers that a busy machine is slow to start.
ports = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
names = ["metrics_agent_port", "metrics_export_port", "runtime_env_agent_port",
         "dashboard_agent_listen_port"]
chosen = {name: port.getsockname()[1] for name, port in zip(names, ports)}
for port in ports:
    port.close()
cluster = Cluster(initialize_head=True, head_node_args={
    "num_cpus": 2, "include_dashboard": False,
    "object_store_memory": 80_000_000, **chosen})
ray.init(address=cluster.address, log_to_driver=False)
module = TPOModule(scorer=letters, seed=0)
with dspy.context(lm=lm):
    first = run_on_ray(module, queries, out=folder / "run", settings=settings,
                       cluster=RayCluster(workers=2, scorers=int(sys.argv[3])), on_progress=watch)
    ray.shutdown()
    cluster.shutdown()
    again = run_queries(module, queries, out=folder / "run", settings=settings)
print(json.dumps({"killed": killed, "finished": [first.finished, again.finished],
                  "failed": first.failed, "left": first.left, "requests": again.figures["requests"]}))
"""


@needs_ray
@pytest.mark.parametrize("scorers", [0, 1])
def test_a_worker_that_is_killed_costs_at_most_its_calls_in_flight(
    scorers: int, tmp_path: Path
) -> None:
    with start_server(log=tmp_path / "log", median=0.05) as server:
        said = run_script(server.url, tmp_path, scorers=scorers)
        served = Counter(
            row["key"] for row in server.served() if row["outcome"] in ("served", "abandoned")
        )
    assert len(said.pop("killed")) == 1
    assert said == {"finished": [24, 24], "failed": 0, "left": 0, "requests": 0}
    lines = (tmp_path / "run/results.jsonl").read_text().splitlines()
    results = [json.loads(line) for line in lines]
    assert {row["id"] for row in results} == {str(i) for i in range(24)}
    assert len(results) == 24
    assert {row["status"] for row in results} == {"complete"}
    assert len(served) == 7 * 24
    # The lost worker had two slots; besides its calls in flight, an answer may not have been collected yet.
    assert sum(served.values()) - len(served) <= 4
    scored = (tmp_path / "scored.log").read_text().splitlines()
    assert len(scored) - len(set(scored)) <= 4 * 5


@needs_ray
def test_sigterm_leaves_a_folder_that_one_process_continues(tmp_path: Path) -> None:
    (tmp_path / "queries.json").write_text(json.dumps([f"[q{i}] Why {i}?" for i in range(24)]))
    (tmp_path / "reward.py").write_text("def reward(query, response):\n    return len(response)\n")
    run = (
        "run --data queries.json --lm openai/fake --api-key x --max-in-flight 8 --seed 0 --out run"
    )
    program = [sys.executable, "-c", "from tpo_modules.cli import main; main()", *run.split()]
    environment = {**os.environ, **RAY, "HOME": str(tmp_path), "PYTHONPATH": os.getcwd()}
    with start_server(log=tmp_path / "log", median=0.2) as server:
        program += ["--reward", "python:reward.py:reward", "--api-base", server.url]
        first = subprocess.Popen([*program, "--ray", "local"], cwd=tmp_path, env=environment)
        finished = tmp_path / "run/results.jsonl"
        while not (finished.exists() and finished.read_text().count("\n") >= 4):
            assert first.poll() is None
            time.sleep(0.1)
        first.send_signal(signal.SIGTERM)
        assert first.wait(30) == 130
        subprocess.run(program, cwd=tmp_path, env=environment, check=True, timeout=100)
        served = Counter(row["key"] for row in server.served() if row["outcome"] == "served")
    assert len(finished.read_text().splitlines()) == 24
    assert len(served) == sum(served.values()) == 7 * 24


def run_script(url: str, folder: Path, *, scorers: int) -> dict[str, Any]:
    script = folder / "script.py"
    script.write_text(SCRIPT)
    environment = {
        **os.environ,
        **RAY,
        "HOME": str(folder),  # where Ray keeps a token of its own
    }
    done = subprocess.run(
        [sys.executable, str(script), url, str(folder), str(scorers)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])
