"""Scripts written for PyTorch run here when their imports are changed, and compute what they compute there.

The files of pytorch_scripts/ are written as users of PyTorch write them, and only their imports say minigrad.
Each trains on small data, and its ``main(argv)`` returns the losses. Here it runs, and learns. Where torch is
installed, the same text runs with its imports changed back, both from the same parameters and the same random
numbers, which NumPy draws: the losses must be the same.
"""

import contextlib
import importlib
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import minigrad

SCRIPTS = Path(__file__).parent / "pytorch_scripts"
NAMES = sorted(path.stem for path in SCRIPTS.glob("*.py") if path.stem != "digit_images")

each_script = pytest.mark.parametrize("name", NAMES)


def load_script(name, library):
    """The script as a module, with the imports of minigrad or of torch."""
    text = (SCRIPTS / f"{name}.py").read_text()
    if library == "torch":
        text = re.sub(r"^import minigrad as torch$", "import torch", text, flags=re.MULTILINE)
        text = re.sub(r"^(import|from) minigrad\b", r"\1 torch", text, flags=re.MULTILINE)
        assert "minigrad" not in re.sub(r'""".*?"""', "", text, flags=re.DOTALL)
    module = types.ModuleType(f"{library}_{name}")
    module.__file__ = str(SCRIPTS / f"{name}.py")
    exec(compile(text, module.__file__, "exec"), vars(module))
    return module


@pytest.fixture(autouse=True)
def beside_the_scripts(monkeypatch, tmp_path):
    """Scripts find the data beside them, and write to a folder of their own."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("digit_images", None)


@each_script
def test_a_script_runs_and_learns(name, capsys):
    threads = minigrad.get_num_threads()
    minigrad.set_num_threads(1)
    try:
        losses = load_script(name, "minigrad").main([])
    finally:
        minigrad.set_num_threads(threads)
    assert np.isfinite(losses).all() and len(losses) >= 10
    if name not in ("dcgan", "reinforce", "polynomial"):  # two games, and fits that the script compares
        assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])
    assert capsys.readouterr().out


class DrawnByNumPy:
    """What is random in both libraries, drawn by one NumPy generator, from the start of ``main`` on."""

    def __init__(self, library, monkeypatch):
        self.library = library
        self.rng = np.random.default_rng(1)
        lib = importlib.import_module(library)
        patch = monkeypatch.setattr
        patch(lib, "randn", self.randn)
        patch(lib, "rand", self.rand)
        patch(lib, "randint", self.randint)
        patch(lib, "randn_like", lambda x: self.randn(*x.shape).to(x.dtype))
        functional = importlib.import_module(f"{library}.nn.functional")
        patch(functional, "dropout", lambda input, p=0.5, training=True, inplace=False: input)
        samplers = importlib.import_module(
            "torch.utils.data.sampler" if library == "torch" else "minigrad.data.sampler"
        )
        patch(samplers.RandomSampler, "__iter__", lambda s: iter(self.rng.permutation(len(s)).tolist()))
        patch(samplers.WeightedRandomSampler, "__iter__", lambda s: self.draw_indices(s))
        categorical = importlib.import_module(f"{library}.distributions").Categorical
        patch(categorical, "sample", lambda distribution: self.choose(distribution))
        base = lib.optim.Optimizer
        patch(base, "__init__", self.starting_optimizer(base.__init__))

    def randn(self, *size, **options):
        size = size[0] if size and isinstance(size[0], tuple) else size
        lib = sys.modules[self.library]
        drawn = lib.from_numpy(self.rng.standard_normal(size).astype(np.float32).reshape(size))
        return drawn.requires_grad_() if options.get("requires_grad") else drawn

    def rand(self, *size, **options):
        drawn = self.rng.random(options.get("size", size)).astype(np.float32)
        return sys.modules[self.library].from_numpy(drawn)

    def randint(self, high, size):
        return sys.modules[self.library].from_numpy(self.rng.integers(0, high, size))

    def draw_indices(self, sampler):
        weights = np.array([float(weight) for weight in sampler.weights])
        return iter(self.rng.choice(len(weights), sampler.num_samples, p=weights / weights.sum()).tolist())

    def choose(self, distribution):
        lib = sys.modules[self.library]
        sums = np.cumsum(distribution.probs.detach().numpy(), -1)
        return lib.tensor((self.rng.random((len(sums), 1)) > sums).sum(-1).clip(max=sums.shape[-1] - 1))

    def starting_optimizer(self, init):
        """Parameters that are not constant get new values when the first optimizer of them is made."""

        def __init__(optimizer, params, defaults):
            groups = list(params)
            groups = groups if isinstance(groups[0], dict) else [{"params": groups}]
            groups = [{**group, "params": list(group["params"])} for group in groups]
            lib = sys.modules[self.library]
            for param in (param for group in groups for param in group["params"]):
                values = param.detach().numpy()
                if values.size == 1 or (values != values.flat[0]).any():
                    bound = 1 / np.sqrt(values[0].size if values.ndim > 1 else values.size)
                    drawn = np.array(self.rng.uniform(-bound, bound, values.shape), values.dtype)
                    with lib.no_grad():
                        param.copy_(lib.from_numpy(drawn))
            init(optimizer, groups, defaults)

        return __init__


def losses_of(name, library, arguments):
    with pytest.MonkeyPatch.context() as monkeypatch, contextlib.redirect_stdout(None):
        DrawnByNumPy(library, monkeypatch)
        return np.array(load_script(name, library).main(arguments))


ARGUMENTS = {
    "digits": ["--epochs", "1"],
    "mnist_basic": ["--epochs", "1", "--samples", "320"],
    "reinforce": ["--episodes", "8"],
    "text_transformer": ["--dropout", "0", "--epochs", "1"],
    "time_sequence": ["--steps", "1"],
    "vae": ["--epochs", "1"],
}


@pytest.mark.filterwarnings("ignore:enable_nested_tensor", "ignore:`torch.cuda.amp.GradScaler:FutureWarning")
@each_script
def test_a_script_computes_what_it_computes_with_torch(name):
    """The first losses, which rounding errors have not yet driven apart."""
    pytest.importorskip("torch")
    ours, theirs = (losses_of(name, library, ARGUMENTS.get(name, [])) for library in ("minigrad", "torch"))
    assert ours.shape == theirs.shape
    first = 10
    tolerance = 1e-9 if name == "time_sequence" else 1e-4
    np.testing.assert_allclose(ours[:first], theirs[:first], rtol=tolerance, atol=tolerance)


def test_the_digits_are_learned(capsys):
    """At least 92 % of the test images, which come from writers that the network has not seen."""
    script = load_script("digits", "minigrad")
    script.main(["--save", "digits.pt"])
    accuracies = re.findall(r"accuracy ([\d.]+)%", capsys.readouterr().out)
    assert len(accuracies) == 8 and float(accuracies[-1]) >= 92
    model = script.Net()
    model.load_state_dict(minigrad.load("digits.pt"))
    assert f"{script.evaluate(model, 'cpu', script.test_loader()):.1%}" == f"{accuracies[-1]}%"
