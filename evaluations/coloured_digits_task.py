"""Whether pictures sampled from prompts show what was asked for: which digit, in which colour, on which ground.

Axes: N pictures.
"""

import csv
import json
from pathlib import Path

import numpy as np

from dataset.coloured_digits import COLOURS, Kind
from dataset.text import read_lines
from engine.checkpoint import write_json
from evaluations.archive import picture_files, read_picture
from evaluations.coloured_digits import Parts, nearest, take_apart
from evaluations.coloured_digits_options import ScoreColouredDigits
from evaluations.images import save_png
from evaluations.prompt_grid import captioned_grid

FOLDS = 5  # of the real pictures: each is read by a classifier of the others
COLUMNS = ("Prompt", "digit", "colour", "ground")
GRID_ROW, GRID_SIDE = 10, 96  # pictures, and pixels of one at least
SHARES = ("digit", "colour", "ground", "all three")


def score(options: ScoreColouredDigits) -> dict:
    """Print the shares of pictures with what was asked for; the same as plain data."""
    asked = read_asked(Path(options.prompts or Path(options.real) / "prompts.tsv"))
    pictures, prompts = read_samples(Path(options.samples), asked)
    kinds = [asked[prompt] for prompt in prompts]
    real, real_kinds, scans = read_real(Path(options.real))
    read = Reader(take_apart(real), real_kinds, scans)
    shares = {"samples": compare(read(take_apart(pictures)), kinds), "real": compare(read.real(), real_kinds)}
    counts = {"samples": len(kinds), "real": len(real_kinds)}
    print(table(shares, counts, len(set(kinds)), len(asked)))
    figures = {name: {"pictures": counts[name], **shares[name]} for name in shares}
    if options.output:
        write_json(options.output, figures)
    if options.grid:
        shown = slice(options.grid_pictures)
        scale = -(-GRID_SIDE // pictures.shape[2])  # the prompts need some width
        save_png(options.grid, captioned_grid(pictures[shown], prompts[shown], GRID_ROW, scale))
    for part in SHARES[:3]:
        if shares["samples"][part] < options.least:
            raise ValueError(f"--least {options.least}: the share of pictures with the right {part} is "
                             f"{shares['samples'][part]:.3f}")  # fmt: skip
    return figures


class Reader:
    """What pictures show: the digit as a support-vector machine reads it, the colours as the nearest that have names.

    Its machine is trained on the real pictures of the test list, which no tokenizer, encoder or generator has seen.
    """

    def __init__(self, parts: Parts, kinds: list[Kind], scans: np.ndarray):
        self.parts, self.digits, self.scans = parts, np.array([kind.digit for kind in kinds]), scans
        self.machine = _machine().fit(_features(parts), self.digits)

    def __call__(self, parts: Parts) -> list[Kind]:
        return _kinds(self.machine.predict(_features(parts)), parts)

    def real(self) -> list[Kind]:
        """The real pictures, each read by a machine that was trained on pictures of other scans."""
        from sklearn.model_selection import GroupKFold, cross_val_predict

        features = _features(self.parts)
        digits = cross_val_predict(_machine(), features, self.digits, groups=self.scans, cv=GroupKFold(FOLDS))
        return _kinds(digits, self.parts)


def _machine():
    from sklearn.svm import SVC

    return SVC(C=10, gamma=0.05)


def _features(parts: Parts) -> np.ndarray:
    return parts.shapes.reshape(len(parts.shapes), -1)


def _kinds(digits: np.ndarray, parts: Parts) -> list[Kind]:
    """A picture without a figure shows no digit."""
    figures, grounds = nearest(parts.figure, COLOURS), nearest(parts.ground, COLOURS)
    return [Kind(-1 if figure == "none" else int(digit), figure, ground)
            for digit, figure, ground in zip(digits, figures, grounds)]  # fmt: skip


def compare(shown: list[Kind], asked: list[Kind]) -> dict[str, float]:
    """The shares of pictures that show the digit, the colour, the ground, and all three."""
    right = np.array([[a == b for a, b in zip(*pair)] for pair in zip(shown, asked)])  # [N, 3]
    return dict(zip(SHARES, np.round([*right.mean(0), right.all(1).mean()], 4).tolist()))


def table(shares: dict[str, dict[str, float]], counts: dict[str, int], kinds: int, prompts: int) -> str:
    lines = [f"{'share of pictures with the right':34}" + "".join(f"{name:>11}" for name in SHARES)]
    names = {"samples": f"{counts['samples']} sampled, {kinds} of {prompts} prompts",
             "real": f"{counts['real']} real pictures, the ceiling"}  # fmt: skip
    for name, row in shares.items():
        lines.append(f"{names[name]:34}" + "".join(f"{row[each]:11.3f}" for each in SHARES))
    return "\n".join(lines)


# ---- reading


def read_asked(path: Path) -> dict[str, Kind]:
    """What each prompt of prompts.tsv asks for."""
    rows = list(csv.DictReader(read_lines(path), delimiter="\t"))
    if not rows or not set(COLUMNS) <= set(rows[0]):
        raise ValueError(f"--prompts {path}: expected the columns {', '.join(COLUMNS)}, and a line below them, as "
                         "dataset/write_coloured_digits.py writes them")  # fmt: skip
    return {row["Prompt"]: _kind(row, f"--prompts {path}, line {i}") for i, row in enumerate(rows, 2)}


def read_samples(folder: Path, asked: dict[str, Kind]) -> tuple[np.ndarray, list[str]]:
    """uint8 [N, H, W, 3] of FOLDER/images, and the prompts that FOLDER/result.jsonl tells of them."""
    if not (folder / "images").is_dir():
        raise ValueError(f"--samples {folder}: has no folder images; expected a folder that sample_t2i_ddp.py wrote")
    files = picture_files(folder / "images")
    results = _objects(folder / "result.jsonl")
    if len(files) != len(results) or not files:
        raise ValueError(f"--samples {folder}: {len(files)} pictures in images, {len(results)} lines in result.jsonl; "
                         "expected as many, and at least one: finish the sampling")  # fmt: skip
    prompts = []
    for (where, result), file in zip(results, files):
        if Path(str(result.get("image_path"))).name != file.name:
            raise ValueError(f"{where}: is of {result.get('image_path')}, but the picture of that place is {file.name}")
        if result.get("text") not in asked:
            raise ValueError(f"{where}: the text {result.get('text')!r} is no prompt of --prompts; give the list that "
                             "was sampled")  # fmt: skip
        prompts.append(result["text"])
    return _pictures(files), prompts


def read_real(folder: Path) -> tuple[np.ndarray, list[Kind], np.ndarray]:
    """Pictures of the test list uint8 [N, H, W, 3], what they show, and the scans that they are of, int64 [N]."""
    path = folder / "lists" / "test.jsonl"
    lines = _objects(path)
    if len(lines) < 100:
        raise ValueError(f"--real {folder}: the test list has {len(lines)} pictures, too few to learn digits from; "
                         "write at least 100 by dataset/write_coloured_digits.py --test-pictures")  # fmt: skip
    kinds = [_kind(line, where) for where, line in lines]
    scans = [line.get("scan") for _, line in lines]
    if not all(isinstance(scan, int) for scan in scans):
        raise ValueError(f"{path}: a line has no number of its scan; write it by dataset/write_coloured_digits.py")
    return _pictures([path.parent / str(line.get("image_path")) for _, line in lines]), kinds, np.array(scans)


def _kind(row: dict, where: str) -> Kind:
    digit, colour, ground = (row.get(name) for name in COLUMNS[1:])
    if str(digit) not in map(str, range(10)) or colour not in COLOURS or ground not in COLOURS:
        raise ValueError(f"{where}: digit {digit!r}, colour {colour!r}, ground {ground!r}; expected a digit from 0 to "
                         f"9 and two of {', '.join(COLOURS)}")  # fmt: skip
    return Kind(int(digit), colour, ground)


def _objects(path: Path) -> list[tuple[str, dict]]:
    """Where, and what, of each line of a .jsonl file."""
    found = []
    for number, line in enumerate(read_lines(path), 1):
        where = f"{path}, line {number}"
        try:
            found.append((where, json.loads(line)))
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: not JSON ({error})") from error
        if not isinstance(found[-1][1], dict):
            raise ValueError(f'{where}: expected an object such as {{"text": "a red 7", "image_path": "0.png"}}')
    return found


def _pictures(files: list[Path]) -> np.ndarray:
    """uint8 [N, H, W, 3]."""
    pictures = [read_picture(file) for file in files]
    for file, picture in zip(files, pictures):
        if picture.shape != pictures[0].shape:
            raise ValueError(f"{file}: is {picture.shape[1]}x{picture.shape[0]}, but {files[0].name} is "
                             f"{pictures[0].shape[1]}x{pictures[0].shape[0]}")  # fmt: skip
    return np.stack(pictures)
