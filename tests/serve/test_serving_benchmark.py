"""What the benchmark of serving says is what was measured."""

import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from support import ROOT

pytest.importorskip("vllm", reason="needs vLLM: bash scripts/test_serve.sh")

from benchmarks import serving_contenders as contenders
from benchmarks.options import ServingBenchmark

OPTIONS = ServingBenchmark("table.md", ("GPT-1M",), 32, (1, 2), clients=(1, 4), requests=3, precision="none",
                           decode_precision="none")  # fmt: skip


def test_the_plain_sampler_draws_what_is_asked_for():
    with contenders.pairs(OPTIONS) as folder:
        figures = contenders.plain(OPTIONS, folder, "GPT-1M")
    assert sorted(figures) == ["codes of 1", "codes of 2", "pictures of 1", "pictures of 2"]
    assert all(0 < figures[f"codes of {count}"] < figures[f"pictures of {count}"] for count in (1, 2))


@pytest.fixture
def loads(monkeypatch) -> list[tuple[int, int]]:
    """Clients and requests of each load; request i takes i seconds, one after the other."""
    seen = []

    @contextmanager
    def served(port, *flags):
        yield SimpleNamespace(url=f"http://127.0.0.1:{port}")

    def load(url: str, clients: int, bodies: list[dict]) -> dict:
        seen.append((clients, len(bodies)))
        answers = [{"seed": body.get("seed"), "seconds": float(i), "pictures": [bytes([i])]}
                   for i, body in enumerate(bodies)]  # fmt: skip
        return {"answers": answers, "seconds": 2.0 * len(bodies)}

    monkeypatch.setattr(contenders, "served", served)
    monkeypatch.setattr(contenders, "load", load)
    monkeypatch.setattr(contenders, "in_own_process", lambda work, *given: work(*given))
    return seen


def test_clients_are_counted_and_lost_answers_are_not_overlooked(loads, monkeypatch):
    figures = contenders.over_http(OPTIONS, "folder", "GPT-1M")
    assert loads == [(1, 1), (1, 8), (4, 12)], "one that warms up; 8 at least"
    assert figures["1 clients"] == figures["4 clients"] == 2.0
    assert figures["4 clients, p50"] == 5.5 and figures["4 clients, p95"] == pytest.approx(10.45)
    inner = contenders.load

    def twice(url, clients, bodies):
        found = inner(url, clients, bodies)
        found["answers"][-1]["pictures"] = found["answers"][0]["pictures"]
        return found

    monkeypatch.setattr(contenders, "load", twice)
    with pytest.raises(AssertionError, match="none twice"):
        contenders.over_http(OPTIONS, "folder", "GPT-1M")


def test_the_table(monkeypatch, tmp_path):
    output = tmp_path / "table.md"
    held = {f"{what} of {n}": s * n for n in (1, 2) for what, s in (("codes", 2), ("pictures", 4))}
    http = {f"{n} clients{at}": s for n in (1, 4) for at, s in (("", 0.5), (", p50", 1), (", p95", 3))}
    monkeypatch.setattr(contenders, "rounds", lambda given, repeats: dict.fromkeys(given, held))
    monkeypatch.setattr(contenders, "in_own_process", lambda *_: http)
    monkeypatch.setattr(sys, "argv", [str(ROOT / "benchmarks/serving.py")])
    contenders.compare(contenders.replace(OPTIONS, output=str(output)))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in output.read_text().splitlines()
            if line.startswith("| GPT")]  # fmt: skip
    assert [row[0] for row in rows] == [
        *(f"GPT-1M, {count} pictures, {way}" for count in (1, 2)
          for way in ("plain sampler", "through vLLM", "through vLLM, compiled")),
        *(f"GPT-1M, over HTTP, {clients} clients" for clients in (1, 4))]  # fmt: skip
    assert rows[3][1:] == ["2", "4.00", "8.00", "0.25", "", ""]
    assert rows[-1][1:] == ["8", "", "", "2.00", "1.00", "3.00"]


def test_percentiles_are_of_one_round():
    slow = {"1 clients": 3.0, "1 clients, p50": 1.0, "1 clients, p95": 2.0, "11 clients": 1.0, "11 clients, p50": 7.0}
    fast = {"1 clients": 2.0, "1 clients, p50": 1.5, "1 clients, p95": 9.0, "11 clients": 4.0, "11 clients, p50": 5.0}
    found = contenders.fastest(contenders.replace(OPTIONS, clients=(1, 11)), [slow, fast])
    assert found == {"1 clients": 2.0, "1 clients, p50": 1.5, "1 clients, p95": 9.0, "11 clients": 1.0,
                     "11 clients, p50": 7.0}  # fmt: skip


def test_the_published_times_stand_beside_theirs():
    options = contenders.replace(OPTIONS, gpt_model=("GPT-L",), image_size=384, pictures=(8,), clients=(1,))
    held = {"codes of 8": 1.0, "pictures of 8": 2.0}
    http = {"1 clients": 1.0, "1 clients, p50": 1.0, "1 clients, p95": 1.0}
    rows = contenders.table(options, {"GPT-L, plain sampler": held, "GPT-L, through vLLM": held, "over HTTP": http})
    assert [row[:3] for row in rows[:-1]] == [["GPT-L, 8 pictures, plain sampler", "4608", "1.00"],
                                         ["GPT-L, 8 pictures, through vLLM", "4608", "1.00"],
                                         ["GPT-L, published, on an A100", "1324", "3.48"]]  # fmt: skip


@pytest.mark.parametrize("changed, words", [
    ({"gpt_model": ("GPT-9B",)}, "--gpt-model GPT-9B: choose from GPT-B"),
    ({"image_size": 40}, "--image-size 40: must be a multiple of 16"),
])  # fmt: skip
def test_what_cannot_be_measured_is_said_first(changed, words):
    with pytest.raises(ValueError, match=words):
        contenders.compare(contenders.replace(OPTIONS, **changed))


@pytest.mark.parametrize("changed", [{"pictures": ()}, {"clients": (0,)}, {"requests": 0}])
def test_numbers_below_one(changed):
    with pytest.raises(ValueError, match=f"--{next(iter(changed))}"):
        ServingBenchmark(**changed)
