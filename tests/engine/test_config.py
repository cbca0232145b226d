"""Options become flags, and a user's mistake one plain sentence."""

import subprocess
import sys
from dataclasses import dataclass, field

import pytest
from support import environment, run_script

from engine.config import Auto, parse


@dataclass
class Inner:
    batch_size: int = 4
    """How many at once."""
    width: int | Auto = "auto"
    keep: bool = True
    names: list[str] | None = None


@dataclass
class Options:
    path: str
    inner: Inner = field(default_factory=lambda: Inner(batch_size=8))
    fast: bool = False


def test_nested_dataclasses_become_flat_flags():
    assert parse(Options, ["--path", "x"]) == Options("x", Inner(8))
    given = ["--path", "x", "--batch_size", "3", "--width", "7", "--no-keep", "--names", "a", "b", "--fast"]
    assert parse(Options, given) == Options("x", Inner(3, 7, False, ["a", "b"]), True)
    assert parse(Options, ["--path", "x", "--width", "auto", "--keep", "--no-fast"]).inner == Inner(8)


@pytest.mark.parametrize("wrong", [[], ["--path", "x", "--width", "wide"], ["--path", "x", "--speed", "3"]])
def test_flags_that_do_not_parse_end_the_command(wrong):
    with pytest.raises(SystemExit) as caught:
        parse(Options, wrong)
    assert caught.value.code == 2


SCRIPT = '''"""Do it."""
from dataclasses import dataclass
from engine.config import run

@dataclass
class Options:
    fault: str = ""

def main(options):
    if options.fault:
        raise eval(options.fault)

run(main, Options)
'''


@pytest.mark.parametrize(
    "fault, code, said",
    [
        ("", 0, ""),
        ("ValueError('--x 3: too large')", 2, "error: --x 3: too large"),
        ("OSError(28, 'No space left')", 2, "error: [Errno 28] No space left"),
        ("FloatingPointError('step 3')", 2, "error: step 3"),
        ("KeyboardInterrupt()", 130, "interrupted"),
        ("SystemExit(143)", 143, ""),
        ("RuntimeError('ours')", 1, "RuntimeError: ours"),
    ],
)
def test_exit_codes(fault, code, said, tmp_path):
    (tmp_path / "entry.py").write_text(SCRIPT)
    done = run_script(tmp_path / "entry.py", *(["--fault", fault] if fault else []), code=code)
    assert said in done.stderr
    assert ("Traceback" in done.stderr) == (code == 1), "a trace is for faults of ours alone"


def test_the_trace_is_shown_on_request(tmp_path, monkeypatch):
    (tmp_path / "entry.py").write_text(SCRIPT)
    monkeypatch.setenv("LLAMAGEN_TRACEBACK", "1")
    assert "Traceback" in run_script(tmp_path / "entry.py", "--fault", "ValueError('x')", code=1).stderr


ENTRY = """
import threading, time
from dataclasses import dataclass
from engine.config import run

@dataclass
class Options:
    code: int = 0

def main(options):
    threading.Thread(target=time.sleep, args=(300,)).start()
    print("all is saved")
    if options.code == 2:
        raise ValueError("a user's mistake")
    if options.code:
        raise SystemExit(options.code)

run(main, Options)
"""


@pytest.mark.parametrize("code", [0, 2, 143])
def test_one_process_of_many_that_has_done_its_work_ends_whatever_threads_remain(code, tmp_path):
    (tmp_path / "entry.py").write_text(ENTRY)
    done = subprocess.run([sys.executable, str(tmp_path / "entry.py"), "--code", str(code)], capture_output=True,
                          text=True, timeout=60, env={**environment(), "WORLD_SIZE": "2"})  # fmt: skip
    assert (done.returncode, done.stdout) == (code, "all is saved\n")
