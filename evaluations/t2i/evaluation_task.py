"""CLIP score and FID of a text-to-image model's samples, as the published evaluation has them.

CLIP score: Hessel et al. 2021. FID: the way of Parmar et al. 2022 ("clean-fid"), on centre squares.
"""

from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from dataset.text import read_lines, read_prompts
from engine.checkpoint import checksum, write_json, write_text
from engine.distributed import pick_device
from engine.logger import circumstances
from evaluations.archive import picture_files, read_settings, sha256, sha256_of
from evaluations.feature_task import activations_of, load_feature_net
from evaluations.features import FeatureNet
from evaluations.images import make_folder
from evaluations.inception import SIDE
from evaluations.metrics import frechet_distance
from evaluations.pairing import few
from evaluations.squares import Squares, bytes_at, files_below, floats_at
from evaluations.t2i.clip_net import MODELS, PREFIX, Clip, clip_net, clip_score, read_clip
from evaluations.t2i.options import EvaluateT2I, T2IOptions

FID_CLIP = "ViT-B/32"  # whose embeddings clean-fid compares
ONLY_FID = "or give --clip-model4eval WO for FID alone"


@dataclass
class Captions:
    """A caption for each of the first pictures."""

    path: Path
    texts: list[str]


@dataclass
class Report:
    """Scores with all that is needed to judge them."""

    names: dict[str, str]  # of the scores, as they are printed
    scores: dict[str, float] = field(default_factory=dict)
    networks: dict[str, FeatureNet] = field(default_factory=dict)  # of each score
    papers: dict[str, dict] = field(default_factory=dict)  # of what is scored, and against what
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """First what compares with no published score, if any; then the scores."""
        odd = [f"{self.names[score]} by {net.name}, network {net.checksum}"
               for score, net in self.networks.items() if not net.standard]  # fmt: skip
        first = [f"{' and '.join(odd)}: no network of published scores, compares with none of them"] if odd else []
        return [*first, *(f"{self.names[score]}: {value}" for score, value in self.scores.items()),
                *(f"note: {note}" for note in self.notes)]  # fmt: skip

    def data(self, t2i: T2IOptions) -> dict:
        with_clip = "clip_score" in self.networks or t2i.fid_features == "clip"
        packages = ["transformers"] if with_clip else []
        return {
            "scores": {self.names[score]: value for score, value in self.scores.items()},
            "comparable_with_published": {self.names[score]: net.standard for score, net in self.networks.items()},
            "notes": self.notes,
            "protocol": {
                "clip_score": f"Hessel et al. 2021: mean cosine of picture and '{PREFIX}' + caption, not times 2.5",
                "fid": f"Parmar et al. 2022 (clean-fid): {t2i.fid_features} features of bicubic pictures",
                "pictures": f"centre squares, Lanczos to {t2i.eval_res} px",
            },
            "networks": {self.names[score]: {"name": net.name, "checksum": net.checksum, "features": net.width}
                         for score, net in self.networks.items()},
            **self.papers,
            **circumstances(next(iter(self.networks.values())).device, *packages),
        }  # fmt: skip


def evaluate(options: EvaluateT2I) -> Report:
    """Score the pictures of --fake-dir; print the report, write it there as score.txt and score.json."""
    t2i = options.t2i
    fake, images = Path(t2i.fake_dir), Path(t2i.fake_dir) / "images"
    if t2i.clip_model4eval not in (*MODELS, "WO"):
        raise ValueError(f"--clip-model4eval {t2i.clip_model4eval}: choose one of {', '.join(MODELS)}, or WO for none")
    if not images.is_dir():
        raise ValueError(f"--fake-dir {fake}: expected the pictures in a folder images within it")
    files = picture_files(images)
    if not files:
        raise ValueError(f"--fake-dir {fake}: no pictures in {images}")
    report = Report(names_of(t2i))
    captions = captions_of(t2i, len(files), report.notes)
    reference = reference_of(t2i)
    if not captions and not reference:
        raise ValueError("nothing to score: give --ref-dir for FID, --prompts (or captions.txt) for the CLIP score")
    if reference and len(files) < 2:
        raise ValueError(f"--fake-dir {fake}: FID needs at least two pictures, there is {len(files)}")
    make_folder(fake, "--fake-dir")
    clip, net = load_networks(options, bool(captions), bool(reference), report.notes)
    report.papers["samples"] = {**papers_of(images, files), "made_by": read_settings(fake)}
    if captions:
        first = files[: min(t2i.how_many, len(captions.texts))]
        squares = Squares(images, first, t2i.eval_res, bytes_at, clip.side)
        report.scores["clip_score"] = clip_score(clip, squares, captions.texts, options.features.batch_size)
        report.networks["clip_score"] = clip.pictures
        report.papers["captions"] = {"file": captions.path.name, "sha256": sha256(str(captions.path)),
                                     "captions": len(captions.texts), "scored": len(first)}  # fmt: skip
    if reference:
        report.papers["reference"] = papers_of(*reference)
        moments = []
        for name, folder, its in (("samples", images, files), ("reference", *reference)):
            squares = squares_for(net, folder, its, t2i)
            found = activations_of(squares, report.papers[name]["sha256"], net, options.features, name)
            moments += [found.pool_statistics.mean, found.pool_statistics.covariance]
            report.notes += few(squares, net.width)
        report.scores["fid"], report.networks["fid"] = frechet_distance(*moments), net
    text = "\n".join(report.lines()) + "\n"
    write_text(fake / "score.txt", text)
    write_json(fake / "score.json", report.data(t2i))
    print(f"{text}-> {fake / 'score.txt'} and .json")
    return report


def names_of(t2i: T2IOptions) -> dict[str, str]:
    """The scores, as reports and scripts call them."""
    features = {"inception": "", "clip": "CLIP_"}[t2i.fid_features]
    return {"clip_score": "CLIP score", "fid": f"FID_{features}{t2i.eval_res}px"}


def captions_of(t2i: T2IOptions, pictures: int, notes: list[str]) -> Captions | None:
    """The captions, as many as `pictures`; None where no CLIP score is asked for or, away from COCO, none are there."""
    if t2i.clip_model4eval == "WO":
        if t2i.prompts:
            raise ValueError("--prompts is for the CLIP score, which --clip-model4eval WO leaves out; give one of them")
        return None
    path = Path(t2i.prompts or Path(t2i.fake_dir) / "captions.txt")
    if t2i.prompts:
        texts = read_prompts(path, "--prompts")
    elif path.is_file():
        texts = [line.strip() for line in read_lines(path)]  # a blank one is a caption too, of its picture
    elif t2i.ref_data == "coco2014":
        raise ValueError(f"{path}: there is no such file; give a list of captions by --prompts, {ONLY_FID}")
    else:
        notes.append(f"CLIP score is left out: no {path.name} in {path.parent}, and no --prompts")
        return None
    if len(texts) != pictures:
        wrong = f"{path}: {len(texts)} captions for {pictures} pictures in {Path(t2i.fake_dir) / 'images'}"
        if not t2i.force:
            raise ValueError(f"{wrong}; finish the sampling, or give the list that was sampled by --prompts (--force "
                             "pairs the first with the first as far as both go)")  # fmt: skip
        notes.append(f"{wrong}: paired as far as both go")
    return Captions(path, texts[:pictures])


def reference_of(t2i: T2IOptions) -> tuple[Path, list[Path]] | None:
    """The folder of real pictures, and the pictures; None: no FID."""
    if t2i.ref_dir is None:
        return None
    coco = t2i.ref_data == "coco2014"
    folder = Path(t2i.ref_dir) / ("val2014" if coco else t2i.ref_type)
    if not folder.is_dir():
        chosen = "--ref-data coco2014 looks there; for a folder of another name give --ref-data NAME --ref-type FOLDER"
        raise ValueError(f"--ref-dir {t2i.ref_dir}: there is no folder {folder}; "
                         f"{chosen if coco else f'--ref-type {t2i.ref_type} names it'}")  # fmt: skip
    files = files_below(folder)
    if len(files) < 2:
        raise ValueError(f"--ref-dir {t2i.ref_dir}: FID needs at least two pictures, {len(files)} in {folder}")
    return folder, files


def load_networks(options: EvaluateT2I, captions: bool, reference: bool,
                  notes: list[str]) -> tuple[Clip | None, FeatureNet | None]:  # fmt: skip
    """Those of the CLIP score and of FID, before any work is done."""
    t2i, features = options.t2i, options.features
    clip = load_clip(t2i.clip_model4eval, t2i.clip_path, features.device, notes) if captions else None
    if not reference:
        return clip, None
    if t2i.fid_features == "inception":
        return clip, load_feature_net(features.feature_net, features.device)
    if features.feature_net:
        return clip, load_clip(FID_CLIP, features.feature_net, features.device, notes, "--feature-net").pictures
    if clip and t2i.clip_model4eval == FID_CLIP:
        return clip, clip.pictures
    path = t2i.clip_path if t2i.clip_model4eval in (FID_CLIP, "WO") else None
    return clip, load_clip(FID_CLIP, path, features.device, notes, "--clip-path" if path else "--feature-net").pictures


def load_clip(name: str, folder: str | None, device: str, notes: list[str], flag: str = "--clip-path") -> Clip:
    """On the device; a folder's weights are told by their checksum, as nothing else says whose they are."""
    chosen = pick_device(device)
    model, tokenizer, known = read_clip(name, folder, flag)
    weights = checksum(model.state_dict())
    if folder and known:
        notes.append(f"{flag}: a CLIP with the sizes of {name}, its weights by the checksum {weights}; that they are "
                     "the published ones is taken on trust")  # fmt: skip
    called = f"CLIP {name}" if known else f"a CLIP that is not {name}"
    return clip_net(called, model.to(chosen), tokenizer, weights, known)


def squares_for(net: FeatureNet, folder: Path, files: list[Path], t2i: T2IOptions) -> Squares:
    """Pictures as the network reads them: rounded to bytes for CLIP, unrounded otherwise (clean-fid does both)."""
    resize = bytes_at if t2i.fid_features == "clip" else floats_at
    return Squares(folder, files, t2i.eval_res, resize, net.side or SIDE)


def papers_of(folder: Path, files: list[Path]) -> dict:
    """What tells these pictures from others. A progress bar, as the pictures of COCO are 6 GB."""
    with tqdm(files, f"checksum of {folder.name}", unit="picture", disable=None, leave=False) as all_of_them:
        return {"folder": str(folder), "pictures": len(files), "sha256": sha256_of(all_of_them)}
