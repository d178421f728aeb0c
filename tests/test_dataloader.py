"""The data loader: order, batching, seeds, worker threads and their end."""

import gc
import itertools
import threading
import time
from collections import namedtuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minigrad.utils.data
from minigrad import data
from minigrad.creation import from_numpy
from minigrad.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
    random_split,
)
from minigrad.random import Generator, manual_seed
from minigrad.tensor import Tensor


class Squares(Dataset):
    """Sample i is (i, i squared as an array); remembers which threads read it."""

    def __init__(self, size, delay=0.0):
        self.size, self.delay, self.threads = size, delay, set()

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        self.threads.add(threading.current_thread().name)
        # Later samples come sooner, so that workers finish out of order.
        time.sleep(self.delay * ((index * 7) % 5))
        return index, np.full(3, index**2, np.float32)


class Broken(Squares):
    def __getitem__(self, index):
        if index == 13:
            raise KeyError("sample 13 is broken")
        return super().__getitem__(index)


class Stream(IterableDataset):
    def __init__(self, size):
        self.size = size

    def __iter__(self):
        return iter(range(self.size))


def values(batches):
    return [batch.numpy().tolist() for batch in batches]


def indices(loader):
    return [batch[0].numpy().tolist() for batch in loader]


def tensor_dataset(size=10):
    return TensorDataset(
        from_numpy(np.arange(size * 2, dtype=np.float32).reshape(size, 2)), from_numpy(np.arange(size))
    )


def test_pytorchs_name_is_an_alias():
    for name in minigrad.utils.data.__all__:
        assert getattr(minigrad.utils.data, name) is getattr(data, name)


# Order and batching


@given(
    size=st.integers(0, 30),
    batch_size=st.integers(1, 12),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    num_workers=st.sampled_from([0, 0, 2]),
)
def test_every_index_comes_once(size, batch_size, shuffle, drop_last, num_workers):
    loader = DataLoader(
        Squares(size), batch_size, shuffle, num_workers=num_workers, drop_last=drop_last, seed=0
    )
    batches = indices(loader)
    assert len(batches) == len(loader)
    assert all(len(batch) == batch_size for batch in batches[:-1])
    seen = [index for batch in batches for index in batch]
    if drop_last:
        assert len(seen) == size - size % batch_size and len(set(seen)) == len(seen)
    else:
        assert sorted(seen) == list(range(size))
    if not shuffle:
        assert seen == list(range(len(seen)))


def test_a_batch_holds_stacked_samples():
    index, squares = next(iter(DataLoader(Squares(5), 4)))
    assert index.numpy().dtype == np.int64
    assert squares.numpy().dtype == np.float32 and squares.shape == (4, 3)
    np.testing.assert_array_equal(squares.numpy()[:, 0], [0, 1, 4, 9])


def test_epochs_differ_and_a_seed_repeats_them():
    first, again = (DataLoader(Squares(50), 8, shuffle=True, seed=3) for _ in range(2))
    epochs = [indices(first) for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    assert [indices(again) for _ in range(3)] == epochs
    assert indices(DataLoader(Squares(50), 8, shuffle=True, seed=4)) != epochs[0]


def test_a_generator_in_place_of_a_seed():
    loader = DataLoader(Squares(20), 5, shuffle=True, generator=Generator().manual_seed(1))
    other = DataLoader(Squares(20), 5, shuffle=True, seed=1)
    assert indices(loader) == indices(other)


def test_manual_seed_repeats_the_shuffle():
    loader = DataLoader(Squares(50), 8, shuffle=True)
    manual_seed(5)
    epochs = [indices(loader) for _ in range(2)]
    manual_seed(5)
    assert [indices(loader) for _ in range(2)] == epochs
    assert epochs[0] != epochs[1]


def test_two_iterators_over_one_loader_are_independent():
    loader = DataLoader(Squares(6), 2)
    pairs = list(zip(indices(loader), indices(loader), strict=True))
    nested = [(a[0].numpy().tolist(), b[0].numpy().tolist()) for a in loader for b in loader]
    assert all(a == b for a, b in pairs)
    assert len(nested) == 9


def test_a_plain_list_is_a_data_set():
    assert values(DataLoader([1.5, 2.5, 3.5], batch_size=2)) == [[1.5, 2.5], [3.5]]


def test_without_batches_samples_come_as_they_are():
    samples = list(DataLoader(Squares(3), batch_size=None))
    assert [sample[0] for sample in samples] == [0, 1, 2]
    assert isinstance(samples[2][1], Tensor) and samples[2][1].shape == (3,)


def test_own_collate_fn_sees_a_list_of_samples():
    loader = DataLoader(tensor_dataset(5), 2, collate_fn=lambda samples: [int(s[1].numpy()) for s in samples])
    assert list(loader) == [[0, 1], [2, 3], [4]]


def test_sampler_and_batch_sampler():
    dataset = Squares(10)
    assert indices(DataLoader(dataset, 2, sampler=[9, 3, 3])) == [[9, 3], [3]]
    assert indices(DataLoader(dataset, batch_sampler=[[1], [2, 3]])) == [[1], [2, 3]]
    assert len(DataLoader(dataset, batch_sampler=[[1], [2, 3]])) == 2
    batch_sampler = BatchSampler(SequentialSampler(dataset), 4, drop_last=True)
    assert indices(DataLoader(dataset, batch_sampler=batch_sampler)) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_an_empty_data_set_has_no_batches():
    for loader in (DataLoader([]), DataLoader([], shuffle=True), DataLoader([], num_workers=2)):
        assert list(loader) == [] and len(loader) == 0


# Workers


@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_workers_change_nothing_but_the_thread(num_workers):
    dataset = Squares(40, delay=0.0005)
    expected = indices(DataLoader(Squares(40), 3, shuffle=True, seed=7))
    loader = DataLoader(dataset, 3, shuffle=True, seed=7, num_workers=num_workers)
    assert indices(loader) == expected
    assert threading.current_thread().name not in dataset.threads


def test_workers_load_ahead_but_not_further_than_asked():
    started = []

    class Counted(Squares):
        def __getitem__(self, index):
            started.append(index)
            return super().__getitem__(index)

    iterator = iter(DataLoader(Counted(100), 1, num_workers=2, prefetch_factor=3))
    next(iterator)
    deadline = time.monotonic() + 10
    while len(started) < 7 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert sorted(started) == list(range(7))  # the one that was taken and 2 x 3 ahead
    iterator.close()


def test_the_consumer_works_while_a_single_worker_loads():
    loaded = threading.Event()

    class Signalling(Squares):
        def __getitem__(self, index):
            if index == 1:
                loaded.set()
            return super().__getitem__(index)

    iterator = iter(DataLoader(Signalling(3), 1, num_workers=1, prefetch_factor=1))
    next(iterator)
    assert loaded.wait(10)
    iterator.close()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_exception_keeps_its_type_place_and_traceback(num_workers):
    iterator = iter(DataLoader(Broken(30), 4, num_workers=num_workers))
    assert [next(iterator)[0].numpy().tolist() for _ in range(3)] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 10, 11],
    ]
    with pytest.raises(KeyError, match="sample 13 is broken") as raised:
        next(iterator)
    assert raised.traceback[-1].name == "__getitem__"
    assert "samples [12, 13, 14, 15] of Broken" in raised.value.__notes__[0]
    with pytest.raises(StopIteration):
        next(iterator)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stop_iteration_in_a_data_set_is_not_the_end(num_workers):
    class Stops(Squares):
        def __getitem__(self, index):
            raise StopIteration

    with pytest.raises(RuntimeError):
        list(DataLoader(Stops(3), num_workers=num_workers))


def worker_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("minigrad-data")]


def test_threads_end_with_the_epoch_and_with_an_early_break():
    loader = DataLoader(Squares(50, delay=0.0005), 2, num_workers=3)
    for step, _ in enumerate(loader):
        if step == 2:
            assert worker_threads()
            break
    gc.collect()
    assert not worker_threads()
    assert len(list(loader)) == 25
    assert not worker_threads()


def test_threads_end_when_the_consumer_fails():
    with pytest.raises(ZeroDivisionError):
        for _ in DataLoader(Squares(50), 2, num_workers=2):
            _ = 1 / 0
    gc.collect()
    assert not worker_threads()


# Streams


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_iterable_data_sets(num_workers):
    assert values(DataLoader(Stream(7), 3, num_workers=num_workers)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert values(DataLoader(Stream(7), 3, drop_last=True, num_workers=num_workers)) == [[0, 1, 2], [3, 4, 5]]
    assert list(DataLoader(Stream(3), None, num_workers=num_workers)) == [0, 1, 2]
    assert list(DataLoader(Stream(0), num_workers=num_workers)) == []
    assert not worker_threads()


def test_a_stream_can_be_endless():
    class Endless(IterableDataset):
        def __iter__(self):
            return iter(int, 1)

    iterator = iter(DataLoader(Endless(), 4, num_workers=2))
    assert next(iterator).shape == (4,)
    del iterator
    gc.collect()
    assert not worker_threads()


def test_an_exception_in_a_stream_arrives():
    class Failing(IterableDataset):
        def __iter__(self):
            yield 1
            raise KeyError("the stream broke")

    with pytest.raises(KeyError, match="the stream broke"):
        list(DataLoader(Failing(), num_workers=1))


def test_a_stream_has_no_length_and_no_order():
    with pytest.raises(TypeError, match="not known in advance"):
        len(DataLoader(Stream(3)))
    with pytest.raises(ValueError, match="own order"):
        DataLoader(Stream(3), shuffle=True)
    with pytest.raises(ValueError, match="own order"):
        DataLoader(Stream(3), sampler=[0])


# Arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a positive integer, got 0"),
        ({"batch_size": -3}, "batch_size"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"batch_size": True}, "batch_size"),
        ({"num_workers": -1}, "num_workers"),
        ({"num_workers": 1.5}, "num_workers"),
        ({"sampler": [0], "shuffle": True}, "sampler and shuffle exclude each other"),
        ({"batch_sampler": [[0]], "batch_size": 4}, "batch_sampler excludes"),
        ({"batch_sampler": [[0]], "shuffle": True}, "batch_sampler excludes"),
        ({"batch_sampler": [[0]], "drop_last": True}, "batch_sampler excludes"),
        ({"batch_size": None, "drop_last": True}, "drop_last needs batches"),
        ({"prefetch_factor": 2}, "prefetch_factor needs workers"),
        ({"prefetch_factor": 0, "num_workers": 1}, "prefetch_factor must be at least 1"),
        ({"seed": 1, "generator": Generator()}, "not both"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        DataLoader(Squares(3), **options)


def test_a_generator_is_not_an_integer():
    with pytest.raises(TypeError, match=r"minigrad\.Generator"):
        DataLoader(Squares(3), shuffle=True, generator=3)


def test_pytorchs_other_arguments_are_accepted():
    loader = DataLoader(Squares(4), 2, True, None, None, 1, None, True, False, persistent_workers=True)
    assert sorted(itertools.chain(*indices(loader))) == [0, 1, 2, 3]


# Collating


def test_default_collate_of_each_kind():
    Point = namedtuple("Point", "x y")
    for samples, dtype in [([1, 2], "i8"), ([1.0, 2.0], "f8"), ([True, False], "?")]:
        batch = default_collate(samples)
        assert batch.numpy().dtype == dtype and batch.numpy().tolist() == samples
    assert default_collate([np.float32(1), np.float32(2)]).numpy().dtype == np.float32
    assert default_collate(["a", "b"]) == ["a", "b"]
    assert default_collate([{"n": 1, "s": "a"}, {"n": 2, "s": "b"}])["n"].numpy().tolist() == [1, 2]
    assert default_collate([from_numpy(np.ones((2, 3))) for _ in range(4)]).shape == (4, 2, 3)
    point = default_collate([Point(1, [2]), Point(3, [4])])
    assert isinstance(point, Point) and point.x.numpy().tolist() == [1, 3]
    assert point.y[0].numpy().tolist() == [2, 4]


def test_a_gradient_flows_through_a_batch():
    sample = from_numpy(np.ones((2, 3))).requires_grad_()
    default_collate([sample, from_numpy(np.ones((2, 3))), sample]).sum().backward()
    np.testing.assert_array_equal(sample.grad.numpy(), np.full((2, 3), 2.0))


def test_default_collate_refuses_what_it_cannot_stack():
    with pytest.raises(ValueError, match=r"sample 0 has shape \(2,\), sample 1 has \(3,\)"):
        default_collate([np.ones(2), np.ones(3)])
    with pytest.raises(ValueError, match="one shape"):
        default_collate([from_numpy(np.ones(2)), from_numpy(np.ones(3))])
    with pytest.raises(ValueError, match="one length"):
        default_collate([(1, 2), (1,)])
    for first in (np.ones(2), from_numpy(np.ones(2)), {"a": 1}, (1, 2)):
        with pytest.raises(TypeError, match=f"sample 0 is a {type(first).__name__}, sample 1 a NoneType"):
            default_collate([first, None])


@pytest.mark.parametrize("dataset", [5, None, iter([1, 2])])
def test_what_is_no_data_set(dataset):
    with pytest.raises(TypeError, match=f"__getitem__ and __len__.*got {type(dataset).__name__}"):
        DataLoader(dataset)
    with pytest.raises(TypeError, match="NoneType"):
        default_collate([None])
    with pytest.raises(ValueError, match="no samples"):
        default_collate([])


# Data sets


def test_tensor_dataset_batches_by_one_index():
    dataset = tensor_dataset()
    features, labels = dataset[-1]
    assert features.numpy().tolist() == [18, 19] and int(labels.numpy()) == 9
    batch = next(iter(DataLoader(dataset, 4, sampler=[3, 1, 1, 9])))
    assert isinstance(batch, list)
    np.testing.assert_array_equal(batch[0].numpy(), [[6, 7], [2, 3], [2, 3], [18, 19]])
    assert batch[1].numpy().tolist() == [3, 1, 1, 9]
    batch[0].numpy()[:] = 0
    assert dataset[3][0].numpy().tolist() == [6, 7]  # a batch is a copy


def test_tensor_dataset_refuses_tensors_that_do_not_match():
    with pytest.raises(ValueError, match=r"\(3, 2\), \(4,\)"):
        TensorDataset(from_numpy(np.ones((3, 2))), from_numpy(np.ones(4)))
    with pytest.raises(ValueError, match="at least one"):
        TensorDataset()
    with pytest.raises(ValueError, match="first dimension"):
        TensorDataset(from_numpy(np.array(1.0)))
    with pytest.raises(TypeError, match="ndarray"):
        TensorDataset(np.ones(3))


def test_an_overridden_getitem_is_never_bypassed():
    class Negated(TensorDataset):
        def __getitem__(self, index):
            return tuple(-tensor for tensor in super().__getitem__(index))

    dataset = Negated(from_numpy(np.arange(4.0)))
    assert values(batch[0] for batch in DataLoader(dataset, 4)) == [[0, -1, -2, -3]]
    assert values(batch[0] for batch in DataLoader(Subset(dataset, [3, 2]), 2)) == [[-3, -2]]


def test_pytorchs_getitems_protocol():
    class Fetched(Squares):
        def __getitems__(self, indices):
            self.fetched = list(indices)
            return [(index, index) for index in indices]

    dataset = Fetched(6)
    assert indices(DataLoader(dataset, 3, sampler=[5, 0, 1])) == [[5, 0, 1]]
    assert dataset.fetched == [5, 0, 1]
    assert indices(DataLoader(Subset(dataset, [4, 2]), 2)) == [[4, 2]]
    assert dataset.fetched == [4, 2]


def test_random_split():
    dataset = tensor_dataset(10)
    parts = random_split(dataset, [7, 3], seed=0)
    assert [len(part) for part in parts] == [7, 3]
    assert sorted(parts[0].indices + parts[1].indices) == list(range(10))
    assert [p.indices for p in random_split(dataset, [7, 3], seed=0)] == [p.indices for p in parts]
    assert [p.indices for p in random_split(dataset, [7, 3], seed=1)] != [p.indices for p in parts]
    assert [len(part) for part in random_split(dataset, [0.5, 0.25, 0.25], seed=0)] == [6, 2, 2]
    assert [len(part) for part in random_split(dataset, [1.0], seed=0)] == [10]
    assert [len(part) for part in random_split(dataset, [10, 0], seed=0)] == [10, 0]
    batch = next(iter(DataLoader(parts[1], 3)))
    assert batch[1].numpy().tolist() == parts[1].indices


@pytest.mark.parametrize("lengths", [[7, 4], [0.5, 0.6], [-1, 11], [], [2.5, 7.4]])
def test_random_split_refuses_lengths_that_do_not_add_up(lengths):
    with pytest.raises(ValueError, match="random_split: lengths"):
        random_split(tensor_dataset(10), lengths)


# Samplers


def test_random_sampler():
    rng = Generator(0)
    assert sorted(RandomSampler(range(10), generator=rng)) == list(range(10))
    more = list(RandomSampler(range(4), num_samples=10, generator=rng))
    assert len(more) == 10 and sorted(more[:4]) == sorted(more[4:8]) == [0, 1, 2, 3]
    drawn = list(RandomSampler(range(3), replacement=True, num_samples=200, generator=rng))
    assert len(drawn) == 200 and set(drawn) == {0, 1, 2}
    endless = DataLoader(range(7), 5, sampler=RandomSampler(range(7), replacement=True, num_samples=10**11))
    assert len(endless) == 2 * 10**10
    assert {n for batch in itertools.islice(endless, 2000) for n in batch.tolist()} == set(range(7))
    assert list(RandomSampler([], generator=rng)) == []
    with pytest.raises(ValueError, match="empty"):
        list(RandomSampler([], num_samples=3, generator=rng))
    with pytest.raises(ValueError, match="num_samples"):
        RandomSampler(range(3), num_samples=-1)


def test_classes_take_the_types_of_their_items():
    class Pairs(data.Sampler[tuple[int, int]]):
        def __iter__(self):
            return iter([(0, 1), (2, 3)])

    class Table(data.Dataset[float]):
        def __getitem__(self, pair):
            return float(sum(pair))

    assert [batch.tolist() for batch in data.DataLoader[float](Table(), 2, sampler=Pairs())] == [[1.0, 5.0]]


def test_subset_random_sampler():
    sampler = SubsetRandomSampler([5, 7, 9], generator=Generator(0))
    assert len(sampler) == 3 and sorted(sampler) == [5, 7, 9]


def test_base_classes_name_what_is_missing():
    with pytest.raises(NotImplementedError, match="__getitem__"):
        Dataset()[0]
    with pytest.raises(NotImplementedError, match="__iter__"):
        iter(IterableDataset())
