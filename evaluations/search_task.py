"""The search for the guidance scale: sample a setting, score it, note it down, go on with the next.

What is scored stands in search.json, what is sampled in the folder samples: whatever stops the search, the same command
goes on in the middle of a setting.
"""

import json
import shutil
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import torch

from autoregressive.options import SamplingOptions
from autoregressive.sample.many import NOTES, run_name, sample_into, settings_of
from autoregressive.sample.options import ManyOptions, SampleC2IMany
from autoregressive.sample.pipeline import Pipeline, load_pipeline, sampling_from
from engine.checkpoint import write_json, write_text
from engine.distributed import leave, setup
from evaluations.archive import Pictures, open_pictures
from evaluations.c2i.evaluate_task import Side, compare_with, open_side
from evaluations.feature_task import load_feature_net
from evaluations.features import FeatureNet
from evaluations.images import make_folder
from evaluations.pairing import checked
from evaluations.plots import new_figure
from evaluations.search_options import Search
from evaluations.search_report import SETTING, digits, draw_search, in_order, table

# Settings of the pictures that do not tell two searches apart: what is searched, and names and notes.
APART = ("kind", "gpt_ckpt", "sampling", *NOTES)
MORE = "sample more by --num-samples"
# What decides a search, and the flag that it comes from, where that is named otherwise.
FLAGS = {"gpt": "gpt_model", "gpt_checksum": "gpt_ckpt", "tokenizer": "vq_model", "tokenizer_checksum": "vq_ckpt",
         "seed": "global_seed", "network": "feature_net"}  # fmt: skip


class Planned(Pictures):
    """Pictures that are still to be sampled, as far as a pairing is concerned."""

    names = ("arr_0",)

    def __init__(self, path: Path, count: int, side: int):
        self.path, self.shape, self.meta = path, (count, side, side), {"kind": "generation"}


def search(options: Search) -> list[dict]:
    """Sample and score what is not scored yet; rank 0 scores, and returns all points of the folder."""
    # The other ranks wait for rank 0 to score, which may take longer than a collective usually has.
    context = setup(options.machine.device, timeout_minutes=24 * 60)
    settings = grid_of(options)
    judge = Judge(options)
    context.on_main(lambda: judge.open(context.device))
    pipeline = load_pipeline(options.gpt, options.tokenizer, options.machine, context.device)
    todo, size = context.on_main(lambda: judge.prepare(settings, pipeline))
    for number, sampling in enumerate(todo, 1):
        if context.is_main:
            print(f"setting {number} of {len(todo)}: {in_words(sampling)}")
        npz = sample_into(pipeline, many_options(options, sampling, size), context)
        context.on_main(lambda sampling=sampling, npz=npz: judge.score(sampling, npz))
    leave()
    if context.is_main:
        print("\n".join(judge.lines()))
        print(f"-> {judge.folder / 'search.txt'}, .json and .png")
    return judge.points


def grid_of(options: Search) -> list[SamplingOptions]:
    """Each setting once, the scales of one top-k, top-p and temperature in a row."""
    grid = options.search
    lines = product(grid.top_ks, grid.top_ps, grid.temperatures)
    found = [SamplingOptions(**asdict(options.guidance), cfg_scale=scale, top_k=k, top_p=p, temperature=temperature)
             for k, p, temperature in lines for scale in grid.cfg_scales]  # fmt: skip
    for sampling in found:
        sampling_from(sampling)  # a wrong schedule is said now
    return [sampling for i, sampling in enumerate(found) if sampling not in found[:i]]


def many_options(options: Search, sampling: SamplingOptions, size: int) -> SampleC2IMany:
    """The sampler's options for one setting."""
    many = ManyOptions(**asdict(options.bulk), image_size_eval=size, num_fid_samples=options.search.num_samples,
                       sample_dir=str(Path(options.search.output) / "samples"))  # fmt: skip
    return SampleC2IMany(options.gpt, options.tokenizer, options.machine, sampling, many)


def key_of(setting: dict) -> tuple:
    return tuple(setting[name] for name in SETTING)


def in_words(sampling: SamplingOptions) -> str:
    return " ".join(f"--{name.replace('_', '-')} {getattr(sampling, name):g}" for name in SETTING)


class Judge:
    """What rank 0 knows beside the pipeline: the network, the reference, and the results so far."""

    net: FeatureNet
    reference: Pictures
    side: Side  # of the reference
    notes: list[str]  # on how it fits
    decides: dict  # what the scores depend on, beside what is searched

    def __init__(self, options: Search):
        self.options, self.folder = options, Path(options.search.output)
        self.points: list[dict] = []
        self.asked = 0

    def open(self, device: torch.device) -> None:
        """Whatever is missing or wrong is said before the models are loaded."""
        new_figure(1, 1)
        make_folder(self.folder, "--output")
        self.net = load_feature_net(self.options.features.feature_net, device)
        self.reference = open_pictures(self.options.search.reference)

    def prepare(self, settings: list[SamplingOptions], pipeline: Pipeline) -> tuple[list[SamplingOptions], int]:
        """The settings that are still to be scored, and the side of their pictures."""
        size = self.size(pipeline)
        planned = Planned(self.folder / "samples", self.options.search.num_samples, size)
        self.notes = checked(self.reference, planned, self.net.width, self.options.search.force, MORE)
        self.decides = self.settings(pipeline, settings[0], size)
        self.points = self.held()
        done = set(map(key_of, self.points))
        todo = [sampling for sampling in settings if key_of(asdict(sampling)) not in done]
        left = {key_of(point) for point in self.points if not point.get("kept", True)}
        for sampling in settings:
            if key_of(asdict(sampling)) in left:  # the search may have been stopped before it removed them
                self.remove(self.folder / "samples" / run_name(many_options(self.options, sampling, size), pipeline))
        for line in self.net.caveat():
            print(line)
        print(f"{self.folder}: {len(settings) - len(todo)} of {len(settings)} settings are scored")
        if todo:
            self.side = open_side(self.reference, self.net, self.options.features, "reference")
        self.asked = len(self.points) + len(todo)
        if self.points:
            self.publish()
        return todo, size

    def size(self, pipeline: Pipeline) -> int:
        """--image-size-eval, or the side of the reference's pictures, where it tells."""
        wanted, net = self.options.search.image_size_eval, self.net
        if wanted == "auto":
            of_reference = self.reference.size
            wanted = of_reference[0] if of_reference else net.side or pipeline.gpt.image_size
        if net.side not in (None, wanted):
            raise ValueError(f"--image-size-eval {wanted}: {net.name} reads pictures of {net.side} px alone; give "
                             "another --feature-net or a --reference of that size")  # fmt: skip
        return wanted

    def settings(self, pipeline: Pipeline, sampling: SamplingOptions, size: int) -> dict:
        """All that the scores depend on, beside what is searched."""
        pictures = settings_of(many_options(self.options, sampling, size), pipeline)
        return {**{name: value for name, value in pictures.items() if name not in APART},
                **asdict(self.options.guidance), "num_samples": self.options.search.num_samples,
                "image_size_eval": size, "reference": self.reference.sha256,
                "network": self.net.checksum}  # fmt: skip

    def held(self) -> list[dict]:
        """The points of search.json; one of another search is refused."""
        path = self.folder / "search.json"
        if not path.exists():
            return []
        try:
            data = json.loads(path.read_text())
            settings, points = data["settings"], data["points"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"--output {self.folder}: its search.json was not written by this command ({error}); "
                             "choose another folder") from error  # fmt: skip
        different = [f"--{FLAGS.get(name, name).replace('_', '-')} was {settings.get(name)}, is {value}"
                     for name, value in self.decides.items() if settings.get(name) != value]  # fmt: skip
        if different:
            raise ValueError(f"--output {self.folder}: holds a search of other settings: {'; '.join(different)}. "
                             "Choose another folder, or remove this one")  # fmt: skip
        return points

    def score(self, sampling: SamplingOptions, npz: Path) -> None:
        """Score the pictures of a setting, write the results down, and remove the pictures."""
        keep = self.options.search.keep_samples
        features = replace(self.options.features, cache=self.options.features.cache and keep)
        report = compare_with(self.side, open_pictures(npz), self.net, features, self.notes)
        point = {name: getattr(sampling, name) for name in SETTING}
        self.points = in_order([*self.points, {**point, "kept": keep, **report.data()}])
        write_json(self.folder / "search.json", {"settings": self.decides, "points": self.points})
        self.publish()
        print(f"FID {digits(report.scores['fid'])} at {in_words(sampling)}")
        if not keep:
            self.remove(npz.with_name(npz.name.removesuffix(".npz")))

    def remove(self, pictures: Path) -> None:
        """The folder of a setting's pictures, and the npz beside it."""
        if not pictures.parent.is_dir():
            return
        pictures.with_name(f"{pictures.name}.npz").unlink(missing_ok=True)
        shutil.rmtree(pictures, ignore_errors=True)
        if not any(pictures.parent.iterdir()):
            pictures.parent.rmdir()

    def publish(self) -> None:
        """The table and the picture of all points so far."""
        write_text(self.folder / "search.txt", "\n".join(self.lines()) + "\n")
        features = "" if self.net.standard else f", features of {self.net.name}"
        title = f"{self.decides['gpt']}: {self.decides['num_samples']:,} samples a point{features}"
        draw_search(self.points, self.folder / "search.png", title)

    def lines(self) -> list[str]:
        """First whether the scores compare with published ones, if not; the table; what is to be known about it."""
        notes = list(dict.fromkeys(note for point in self.points for note in point["notes"]))
        left = self.asked - len(self.points)
        count = self.decides["num_samples"]
        return [*self.net.caveat(), *table(self.points), *([f"{left} settings are still to be scored"] if left else []),
                f"note: FID of {count:,} pictures compares with FID of as many alone; it falls as they become more",
                *(f"note: {note}" for note in notes)]  # fmt: skip
