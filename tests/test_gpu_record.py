"""The record of a card: what is read from the lines that its stages print, and a run that goes on."""

import importlib.util
import json
import sys

import pytest

# As examples/mnist_cnn.py and examples/cifar10.py print them.
MNIST = """\
mnist: 60000 training and 10000 test images, on cuda:0
epoch 1/3  train: loss 0.1488 accuracy 95.49%  test: loss 0.0450 accuracy 98.51%  11.4 s
epoch 2/3  train: loss 0.0484 accuracy 99.48%  test: loss 0.0342 accuracy 98.86%  13.3 s
epoch 3/3  train: loss 0.0322 accuracy 99.01%  test: loss 0.0284 accuracy 99.03%  15.2 s
test accuracy 99.03%, the same after reloading mnist_cnn/model.safetensors
"""
CIFAR = """\
CIFAR-10: 50000 training and 10000 test images, on cuda:0
epoch 1/3  loss 2.5609  test accuracy 30.00%  5.9 s
epoch 2/3  loss 0.2609  test accuracy 93.99%  105.9 s
"""


@pytest.fixture
def record(repo_root, monkeypatch):
    """The module ``benchmarks/gpu_record.py``."""
    spec = importlib.util.spec_from_file_location("gpu_record", repo_root / "benchmarks/gpu_record.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_record", module)
    spec.loader.exec_module(module)
    return module


def test_the_time_to_an_accuracy_is_that_of_the_first_epoch_that_reaches_it(record):
    found = record.training(MNIST + CIFAR)
    assert found["mnist"] == {"wanted": 99.0, "epochs": 3, "seconds": 15.2, "best": 99.03, "all": 3}
    assert found["CIFAR-10"] == {"wanted": 94.0, "epochs": None, "seconds": None, "best": 93.99, "all": 2}
    reached = record.training(CIFAR + "epoch 3/3  loss 0.2000  test accuracy 94.00%  150.0 s\n")
    assert (reached["CIFAR-10"]["epochs"], reached["CIFAR-10"]["seconds"]) == (3, 150.0)
    assert record.training("no data set is there\n") == record.training(MNIST.splitlines()[0]) == {}


def test_a_run_that_goes_on_keeps_the_stages_that_it_did_not_run(record, tmp_path):
    out, work = tmp_path / "out", tmp_path / "work"
    out.mkdir()
    work.mkdir()
    (work / "stages").write_text("op-tests\t124\t60\t60\nbenchmark\t0\t5\t9\ntraining\t0\t30\t300\n")
    (work / "op-tests.out").write_text("[gw0] [ 1%] PASSED tests/test_one.py::one\ntests/a.py::b FAILED\n")
    (work / "training.out").write_text(MNIST)
    first = record.record(work, out)
    assert not first["passed"] and first["stages"][0]["tests"] == {"passed": 1, "failed": 1}
    assert first["stages"][2]["training"]["mnist"]["seconds"] == 15.2
    (out / "gpu.json").write_text(json.dumps(first))
    (out / "benchmark.json").write_text('{"rows": []}')
    (work / "stages").write_text("op-tests\tskipped: not asked for\t0\t0\nbenchmark\t0\t7\t9\n")
    again = record.record(work, out)
    assert again["stages"] == [first["stages"][0], first["stages"][1] | {"seconds": 7}, first["stages"][2]]
    assert again["benchmark"] == {"rows": []}
