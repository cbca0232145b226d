"""Which sample goes where: a function of (seed, step) alone, whatever the ranks and the past."""

import numpy as np
import pytest

from dataset import order as order_module
from dataset.order import CROP_LEFT, CROP_TOP, FLIP, Order, RankBatches, draw


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_slices_make_the_global_batch(world):
    order = Order(50, 8, seed=3)
    ranks = [list(RankBatches(Order(50, 8, seed=3), rank, world, 2, 15)) for rank in range(world)]
    for step, slices in zip(range(2, 15), zip(*ranks), strict=True):
        epoch, samples = order.batch(step)
        assert [pair for part in slices for pair in part] == [(epoch, sample) for sample in samples.tolist()]


def test_each_sample_at_most_once_an_epoch_in_an_order_of_its_own():
    order = Order(48, 8, seed=3)
    epochs = [np.concatenate([order.batch(step)[1] for step in range(e * 6, e * 6 + 6)]) for e in range(3)]
    for samples in epochs:
        assert sorted(samples.tolist()) == list(range(48))
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[0], Order(48, 8, seed=4).batch(0)[1])
    assert [Order(50, 8, 0).batch(step)[0] for step in (0, 5, 6, 17, 18)] == [0, 0, 1, 2, 3]  # 6 steps each


def test_a_batch_does_not_depend_on_what_was_asked_before():
    walked = Order(50, 8, seed=3)
    batches = [walked.batch(step)[1] for step in range(20)]
    for step in (19, 0, 7):
        assert np.array_equal(Order(50, 8, seed=3).batch(step)[1], batches[step])
        assert np.array_equal(walked.batch(step)[1], batches[step])


def test_draws_are_uniform_and_streams_epochs_and_seeds_are_independent():
    samples = np.arange(20_000)
    reference = draw(0, 0, samples, FLIP)
    distance = np.abs(np.sort(reference) - (samples + 0.5) / len(samples)).max()
    assert distance < 1.95 / len(samples) ** 0.5  # Kolmogorov and Smirnov, at 0.1 %
    others = [
        draw(0, 0, samples, CROP_TOP),
        draw(0, 1, samples, FLIP),
        draw(1, 0, samples, FLIP),
        np.roll(reference, 1),
    ]
    for other in others:
        assert abs(np.corrcoef(reference, other)[0, 1]) < 0.03
        cells = np.histogram2d(reference, other, bins=10, range=[[0, 1], [0, 1]])[0]
        assert ((cells - 200) ** 2 / 200).sum() < 160  # chi-square of 99 degrees, at 0.01 %


def test_draws_never_change():
    """Runs of earlier versions resume with the same crops."""
    assert draw(0, 0, np.arange(3), 0).tolist() == [0.1296456182997474, 0.16526896395580137, 0.31059630345365596]
    assert float(draw(7, 3, 5, 2)) == 0.22846089989699347
    assert Order(10, 5, seed=1).batch(3)[1].tolist() == [7, 8, 2, 9, 5]


def test_draws_broadcast_and_are_each_a_function_of_its_own_numbers():
    epochs, samples = np.array([0, 1, 1]), np.array([5, 5, 9])
    table = draw(-2, epochs[:, None], samples[:, None], np.array([CROP_LEFT, FLIP]))
    assert table.shape == (3, 2)
    assert table[2, 1] == draw(-2, 1, 9, FLIP) and table[1, 0] == draw(-2, 1, np.int64(5), CROP_LEFT)


def test_streams_are_distinct():
    streams = [value for name, value in vars(order_module).items() if name.isupper() and isinstance(value, int)]
    assert len(streams) >= 9 + 1 and len(set(streams)) == len(streams)


def test_impossible_batches_are_named():
    with pytest.raises(ValueError, match="--global-batch-size 9.*8"):
        Order(8, 9, 0)
    with pytest.raises(ValueError, match="--global-batch-size 6.*4"):
        RankBatches(Order(8, 6, 0), 0, 4, 0, 1)
