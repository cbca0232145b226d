"""A reference file: statistics of all pictures of a data set, and some of the pictures.

Axes: N pictures, H = W their side.
"""

from pathlib import Path

import numpy as np
from tqdm import tqdm

from dataset.build import build_source, center_crops
from dataset.images import fingerprint
from dataset.order import HELD_OUT, draw
from evaluations.feature_task import load_feature_net
from evaluations.features import Accumulator
from evaluations.images import Waiting, make_folder, write_npz
from evaluations.options import Reference


def make_reference(options: Reference) -> Path:
    """One pass over the pictures; writes mu, sigma, mu_s, sigma_s of all, and arr_0 of --keep of them, shuffled."""
    reference, data = options.reference, options.data
    path, size = Path(reference.output), reference.image_size
    if path.suffix != ".npz":
        raise ValueError(f"--output {path}: must end in .npz")
    make_folder(path.parent, "--output")
    net = load_feature_net(options.features.feature_net, reference.device)
    source = build_source(data.dataset, data.data_path, data.split)
    place = np.argsort(np.argsort(draw(reference.seed, 0, np.arange(len(source)), HELD_OUT), kind="stable"))
    keep = min(reference.keep, len(source))
    everything = Accumulator(net)
    with Waiting(path, size) as waiting, tqdm(total=len(source), unit="picture", disable=None) as bar:
        filled = np.zeros(keep, bool)
        for batch in center_crops(source, size, range(len(source)), options.features.batch_size, data.num_workers,
                                  reference.max_bad):  # fmt: skip
            everything.add(batch["images"])
            for row, image in zip(batch["index"].tolist(), batch["images"].numpy()):
                if place[row] < keep:
                    waiting.put(place[row], image)
                    filled[place[row]] = True
            bar.update(len(batch["images"]))
        if not everything.statistics or everything.statistics[0].count < 2:
            raise ValueError(f"--data-path {data.data_path}: a reference needs at least two pictures")
        found = everything.activations()
        pool, spatial = found.pool_statistics, found.spatial_statistics
        meta = {"kind": "reference", "dataset": data.dataset, "split": data.split, "image_size": size,
                "source": fingerprint(source, data.data_path), "pictures": pool.count, "seed": reference.seed,
                "network": net.checksum, "network_name": net.name}  # fmt: skip
        statistics = {"mu": pool.mean, "sigma": pool.covariance, "mu_s": spatial.mean, "sigma_s": spatial.covariance}
        write_npz(path, map(waiting.get, np.flatnonzero(filled)), (int(filled.sum()), size, size, 3), meta,
                  **{name: value.numpy() for name, value in statistics.items()})  # fmt: skip
    print(f"statistics of {pool.count} pictures, {filled.sum()} of them kept -> {path}")
    return path
