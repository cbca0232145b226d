"""Which pictures may be scored against which reference; a wrong pairing gives numbers that mean nothing.

Generations are compared with statistics of the training set (FID: ADM's VIRTUAL_imagenet256_labeled.npz for ImageNet
at 256 px), reconstructions with the very pictures that were reconstructed (rFID: val_imagenet.npz of val_ddp.py).
"""

from evaluations.archive import Pictures

# kind of the samples -> kind of the reference that fits, and in words
FITTING = {
    "generation": ("reference", "generations are scored against statistics of the training set: ADM's "
                   "VIRTUAL_imagenet256_labeled.npz for ImageNet, or a file of evaluations/c2i/reference.py"),
    "reconstruction": ("originals", "reconstructions are scored against the pictures that were reconstructed: "
                       "val_imagenet.npz of tokenizer/validation/val_ddp.py"),
}  # fmt: skip
SAME = ("dataset", "split", "source")  # what originals and reconstructions must agree in


def problems(reference: Pictures, samples: Pictures, width: int, more: str) -> list[str]:
    """Sentences on what is wrong with the pairing, each with what would fit. `width`: features of a picture; `more`:
    how to get more samples."""
    found = []
    if reference.kind in FITTING:
        found.append(f"{reference.path}: holds {a(reference.kind)}, but stands in the place of the reference, which "
                     "comes first")  # fmt: skip
    elif samples.kind in FITTING:
        fitting, words = FITTING[samples.kind]
        if reference.kind not in (fitting, None):
            found.append(f"{samples.path}: holds {a(samples.kind)}, {reference.path} {a(reference.kind)}; {words}")
    elif samples.kind == "reference" and reference.kind not in ("reference", "originals"):
        found.append(f"{samples.path}: holds {a(samples.kind)}, but stands in the place of the samples; the reference "
                     "comes first")  # fmt: skip
    if reference.kind == "originals" and samples.kind == "reconstruction":
        if len(reference) != len(samples):
            found.append(f"{samples.path}: {len(samples)} pictures, {reference.path} holds {len(reference)}; rFID is "
                         "against the very pictures that were reconstructed")  # fmt: skip
        for name in SAME:
            here, there = samples.meta.get(name), reference.meta.get(name)
            if None not in (here, there) and here != there:
                found.append(f"{reference.path}: holds other pictures ({name} {there}) than those that "
                             f"{samples.path} reconstructs ({name} {here}); make it with the same --dataset, "
                             "--data-path and --split")  # fmt: skip
    sides = [pictures.size for pictures in (reference, samples)]
    if None not in sides and sides[0] != sides[1]:
        (h0, w0), (h1, w1) = sides
        found.append(f"{samples.path}: pictures of {w1} x {h1} px, those of {reference.path} are {w0} x {h0}; sample "
                     f"with --image-size-eval {w0}")  # fmt: skip
    return [*found, *few(reference, width), *few(samples, width, more)]


def checked(reference: Pictures, samples: Pictures, width: int, force: bool, more: str = "make more") -> list[str]:
    """What a report of the two has to say; ValueError on a pairing that does not fit, unless it is forced."""
    wrong = problems(reference, samples, width, more)
    if wrong and not force:
        raise ValueError("\n".join([*wrong, "(--force scores them all the same)"]))
    if reference.size is None:
        height, width = samples.size
        wrong.append(f"{reference.path} does not tell the size of its pictures: the scores count if that is {width} x "
                     f"{height} px, as that of the samples")  # fmt: skip
    return wrong


def few(pictures: Pictures, width: int, more: str = "make more") -> list[str]:
    """A sentence where there are too few pictures for FID; `more`: how to get more."""
    count = pictures.meta.get("pictures", 0) if pictures.has_statistics else len(pictures)
    return [f"{pictures.path}: {too_few(count, width)}; {more}"] if 0 < count < width else []


def too_few(count: int, width: int) -> str:
    """What is to be said of an FID of so few pictures."""
    return (f"{count} pictures; FID is unreliable under {width:,}, as many as a picture has features (it is biased "
            "upward, the more so the fewer there are)")  # fmt: skip


def a(kind: str) -> str:
    """The kind in words."""
    return {"originals": "original pictures", "reference": "statistics of a training set"}.get(kind, f"{kind}s")
