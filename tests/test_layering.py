"""Who may import whom, and how files are kept: the rules that hold the house together, on the syntax tree."""

import ast
import sys
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from support import ROOT

ROOMS = ("autoregressive", "dataset", "engine", "evaluations", "language", "tokenizer")
HEAVY = {
    "torchvision",
    "lpips",
    "transformers",
    "sentencepiece",
    "tokenizers",
    "wandb",
    "sklearn",
    "scipy",
    "matplotlib",
    "huggingface_hub",
    "gradio",
    "skimage",
    "datasets",
    "vllm",
    "cleanfid",
    "clip",
    "tensorflow",
    "ftfy",
    "bs4",
}
MODELS = (
    "tokenizer/tokenizer_image/vq_model.py",
    "autoregressive/models/attend.py",
    "autoregressive/models/cache.py",
    "autoregressive/models/captured.py",
    "autoregressive/models/draw.py",
    "autoregressive/models/gpt.py",
    "autoregressive/models/loss.py",
    "autoregressive/models/mask.py",
    "autoregressive/models/generate.py",
    "autoregressive/models/packed.py",
    "autoregressive/models/runners.py",
)
# Written in the terms of a heavy package; they are imported inside functions in their turn.
FACES = {
    "autoregressive/demo/desk.py": "gradio",
    "autoregressive/demo/page.py": "gradio",
    "autoregressive/serve/config.py": "transformers",
    "autoregressive/serve/vllm_names.py": "vllm",
    "autoregressive/serve/model.py": "vllm",
}


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


CODE = sorted([*python_files(*ROOMS, "scripts", "benchmarks"), *ROOT.glob("*.py")])


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module(path: Path) -> str:
    return name(path).removesuffix(".py").replace("/", ".")


def imports(path: Path, at_import_only: bool = False) -> set[str]:
    """Full names of the modules that a file imports (and, as they may be modules, of what it takes from them)."""
    found, todo = set(), list(tree(path).body)
    package = module(path).split(".")[:-1]
    while todo:
        node = todo.pop()
        if at_import_only and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            base = ".".join(part for part in (above, node.module) if part)
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
        todo.extend(ast.iter_child_nodes(node))
    return found


def tops(names: set[str]) -> set[str]:
    return {each.split(".")[0] for each in names}


def is_main(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)


def entries() -> list[Path]:
    return [path for path in CODE if any(is_main(node) for node in tree(path).body)]


def is_task(path: Path) -> bool:
    """Joins models with libraries; so do the options of such a command."""
    return path.stem.endswith(("_task", "options")) or path in entries()


def test_there_is_something_to_check():
    assert len(CODE) > 30 and len(entries()) >= 6 and all((ROOT / each).exists() for each in MODELS)


@pytest.mark.parametrize("path", MODELS)
def test_models_need_torch_and_their_own_folder_alone(path):
    siblings = {module(sibling) for sibling in (ROOT / path).parent.glob("*.py")}
    folder = module((ROOT / path).parent / "x.py").removesuffix(".x")
    for found in imports(ROOT / path):
        top = found.split(".")[0]
        inside = found == folder or any(found == sibling or found.startswith(sibling + ".") for sibling in siblings)
        assert top == "torch" or top in sys.stdlib_module_names or inside, f"{path} imports {found}"


def test_libraries_import_neither_one_another_nor_a_model():
    for room in ("engine", "dataset", "language", "evaluations"):
        for path in python_files(room):
            if room != "engine" and is_task(path):
                continue
            wrong = tops(imports(path)) & (set(ROOMS) - {room})
            assert not wrong, f"{name(path)} imports {wrong}: join them in a task or a pipeline"


def test_the_tokenizer_does_not_know_the_gpt():
    for path in python_files("tokenizer"):
        assert "autoregressive" not in tops(imports(path)), name(path)


def test_nothing_imports_an_entry():
    forbidden = {module(path) for path in entries()}
    for path in CODE:
        assert not imports(path) & forbidden, f"{name(path)} imports {imports(path) & forbidden}"


def test_heavy_packages_are_imported_where_they_are_used():
    faces = {module(ROOT / path) for path in FACES}
    for path in CODE:
        found = imports(path, at_import_only=True)
        assert name(path) in FACES or not found & faces, f"{name(path)} imports {found & faces} at its top"
        wrong = tops(found) & HEAVY - {FACES.get(name(path))}
        assert not wrong, (
            f"{name(path)} imports {wrong} at its top: do it in the function, with an error that names the extra"
        )


def test_nothing_happens_at_import():
    for path in CODE:
        if path.name == "__init__.py":
            assert path.read_text() == "", f"{name(path)} is not empty"
        for node in tree(path).body:
            quiet = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign,
                     ast.AnnAssign)  # fmt: skip
            docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            entry_line = path in entries() and (is_main(node) or ast.unparse(node).startswith("sys.path.insert(0, "))
            assert isinstance(node, quiet) or docstring or entry_line, f"{name(path)}:{node.lineno} runs at import"


@pytest.mark.parametrize("path", entries(), ids=name)
def test_entries_are_short_and_find_the_project_first(path):
    assert len(path.read_text().splitlines()) <= 60
    assert ast.get_docstring(tree(path)), "an entry says what it does, with a command to copy"
    for node in tree(path).body:
        line = ast.unparse(node)
        if line.startswith("sys.path.insert"):
            break
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            before = {alias.name for alias in node.names} if isinstance(node, ast.Import) else {node.module}
            assert tops(before) <= sys.stdlib_module_names, f"{line}: comes before the line that puts the project first"
    else:
        pytest.fail("does not put the project's root at the front of sys.path")
    depth = len(path.relative_to(ROOT).parts) - 1
    root = f"Path(__file__).resolve().parents[{depth}]" if depth else "Path(__file__).resolve().parent"
    assert line == f"sys.path.insert(0, str({root}))"


def test_no_file_beside_an_entry_is_named_like_a_dependency():
    """Python puts an entry's folder on the path: a file `tyro.py` there would be imported instead of the package."""
    foreign = {top for top, owners in packages_distributions().items() if owners != ["llamagen"]} - set(ROOMS)
    for entry in entries():
        for beside in entry.parent.iterdir():
            if beside.suffix == ".py" or (beside.is_dir() and beside.parent != ROOT):
                assert beside.stem not in foreign | HEAVY | sys.stdlib_module_names, name(beside)


def test_no_file_is_long():
    for path in [*CODE, *python_files("tests")]:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= 400, f"{name(path)} has {lines} lines"
