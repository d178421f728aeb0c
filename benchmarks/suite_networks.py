"""The networks whose training steps are measured, written for minigrad and PyTorch alike."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


def step(lib: Any, net: Any, optimizer: Any, loss: Callable[[], Any]) -> Callable[[], Any]:
    """A training step: the call to be timed. Its result is the loss before the step."""

    def run() -> Any:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        return value

    return run


def classifier(lib: Any, data: Any, net: Any, optimizer: Any, shape: tuple[int, ...]) -> Callable[[], Any]:
    """A step of a net that tells ten classes of inputs of ``shape`` apart."""
    x, target = data.normal(*shape), data.integers(10, shape[0])
    return step(lib, net, optimizer, lambda: lib.nn.functional.cross_entropy(net(x), target))


def rounded_classifier(
    lib: Any, data: Any, net: Any, optimizer: Any, shape: tuple[int, ...], memory_format: str
) -> Callable[[], Any]:
    """The same under autocast in bfloat16, images and weights in a memory format."""
    order = getattr(lib, memory_format)
    net = net.to(memory_format=order)
    x, target = data.normal(*shape).contiguous(memory_format=order), data.integers(10, shape[0])

    def loss() -> Any:
        with lib.autocast(data.device.partition(":")[0], lib.bfloat16):
            return lib.nn.functional.cross_entropy(net(x), target)

    return step(lib, net, optimizer, loss)


def mlp(
    lib: Any, data: Any, batch: int = 128, sizes: tuple[int, int, int] = (784, 256, 128)
) -> Callable[[], Any]:
    nn, (pixels, first, second) = lib.nn, sizes
    net = data.fill(
        nn.Sequential(
            *(nn.Linear(pixels, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU()),
            nn.Linear(second, 10),
        )
    )
    optimizer = lib.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    return classifier(lib, data, net, optimizer, (batch, pixels))


def lenet(lib: Any, data: Any, batch: int = 128) -> Callable[[], Any]:
    nn = lib.nn
    net = data.fill(
        nn.Sequential(
            *(nn.Conv2d(1, 6, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2)),
            *(nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten()),
            *(nn.Linear(400, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, 10)),
        )
    )
    return classifier(lib, data, net, lib.optim.SGD(net.parameters(), lr=0.01), (batch, 1, 28, 28))


def mnist_cnn(lib: Any, data: Any, batch: int = 128, size: int = 28, channels: int = 32) -> Callable[[], Any]:
    nn = lib.nn
    net = data.fill(
        nn.Sequential(
            *(nn.Conv2d(1, channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(channels, 2 * channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(2 * channels * (size // 4) ** 2, 10)),
        )
    )
    return classifier(lib, data, net, lib.optim.Adam(net.parameters()), (batch, 1, size, size))


def resnet20(
    lib: Any,
    data: Any,
    memory_format: str | None = None,
    depth: int = 3,
    width: int = 16,
    shape: tuple[int, ...] = (128, 3, 32, 32),
) -> Callable[[], Any]:
    """With a memory format under autocast; ``depth`` blocks of each width, of ``width`` channels at first."""
    nn = lib.nn

    class Block(nn.Module):
        """Two 3x3 convolutions beside a shortcut; https://arxiv.org/abs/1512.03385."""

        def __init__(self, channels: int, out_channels: int, stride: int):
            super().__init__()
            self.conv1 = nn.Conv2d(channels, out_channels, 3, stride=stride, padding=1, bias=False)
            self.norm1 = nn.BatchNorm2d(out_channels)
            self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
            self.norm2 = nn.BatchNorm2d(out_channels)
            self.relu = nn.ReLU()
            self.shortcut = nn.Sequential()
            if stride > 1:
                self.shortcut = nn.Sequential(
                    nn.Conv2d(channels, out_channels, 1, stride=stride, bias=False),
                    nn.BatchNorm2d(out_channels),
                )

        def forward(self, x: Any) -> Any:
            y = self.relu(self.norm1(self.conv1(x)))
            return self.relu(self.norm2(self.conv2(y)) + self.shortcut(x))

    blocks = [Block(width, width, 1) for _ in range(depth)]
    for channels in (width, 2 * width):
        blocks += [
            Block(channels, 2 * channels, 2),
            *(Block(2 * channels, 2 * channels, 1) for _ in range(depth - 1)),
        ]
    net = data.fill(
        nn.Sequential(
            *(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *blocks,
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10)),
        )
    )
    optimizer = lib.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    if memory_format is None:
        return classifier(lib, data, net, optimizer, shape)
    return rounded_classifier(lib, data, net, optimizer, shape, memory_format)


CHARACTERS = 65


def language_model(
    lib: Any, data: Any, net: Any, optimizer: Any, batch: int, length: int
) -> Callable[[], Any]:
    """A step of a net that predicts the next one of ``batch`` x ``length`` characters."""
    x, target = data.integers(CHARACTERS, batch, length), data.integers(CHARACTERS, batch * length)

    def loss() -> Any:
        return lib.nn.functional.cross_entropy(net(x).reshape(-1, CHARACTERS), target)

    return step(lib, net, optimizer, loss)


def char_lstm(
    lib: Any, data: Any, batch: int = 32, length: int = 64, size: int = 64, hidden: int = 256
) -> Callable[[], Any]:
    nn = lib.nn

    class CharLSTM(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(CHARACTERS, size)
            self.lstm = nn.LSTM(size, hidden, batch_first=True)
            self.head = nn.Linear(hidden, CHARACTERS)

        def forward(self, x: Any) -> Any:
            return self.head(self.lstm(self.embedding(x))[0])

    net = data.fill(CharLSTM())
    return language_model(lib, data, net, lib.optim.Adam(net.parameters()), batch, length)


def small_gpt(
    lib: Any, data: Any, batch: int = 32, length: int = 64, size: int = 128, heads: int = 4, layers: int = 4
) -> Callable[[], Any]:
    nn, F = lib.nn, lib.nn.functional

    class Block(nn.Module):
        """Causal attention, then a perceptron, each behind a norm and beside a shortcut."""

        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(size), nn.LayerNorm(size)
            self.qkv, self.out = nn.Linear(size, 3 * size), nn.Linear(size, size)
            self.up, self.down = nn.Linear(size, 4 * size), nn.Linear(4 * size, size)

        def forward(self, x: Any) -> Any:
            B, T, _ = x.shape
            qkv = self.qkv(self.norm1(x)).reshape(B, T, 3, heads, size // heads).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], is_causal=True)
            x = x + self.out(y.transpose(1, 2).reshape(B, T, size))
            return x + self.down(F.gelu(self.up(self.norm2(x))))

    class GPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.places = nn.Embedding(CHARACTERS, size), nn.Embedding(length, size)
            self.blocks = nn.Sequential(*(Block() for _ in range(layers)))
            self.norm, self.head = nn.LayerNorm(size), nn.Linear(size, CHARACTERS)
            self.register_buffer("range", lib.arange(length))

        def forward(self, x: Any) -> Any:
            return self.head(self.norm(self.blocks(self.tokens(x) + self.places(self.range))))

    net = data.fill(GPT())
    return language_model(lib, data, net, lib.optim.AdamW(net.parameters(), lr=3e-4), batch, length)


STEPS: dict[str, Callable[[Any, Any], Callable[[], Any]]] = {
    "MLP 784-256-128-10, batch 128": mlp,
    "LeNet, batch 128": lenet,
    "MNIST CNN, batch 128": mnist_cnn,
    "ResNet-20, batch 128": resnet20,
    "char-LSTM, 32 x 64 characters": char_lstm,
    "small GPT, 32 x 64 characters": small_gpt,
}
"""``build(lib, data)`` for each net."""

SMALL_STEPS: dict[str, Callable[[Any, Any], Callable[[], Any]]] = {
    "MLP 20-12-8-10, batch 4": functools.partial(mlp, batch=4, sizes=(20, 12, 8)),
    "LeNet, batch 1": functools.partial(lenet, batch=1),
    "MNIST CNN of 8 x 8, batch 2": functools.partial(mnist_cnn, batch=2, size=8, channels=4),
    "ResNet-8, batch 2": functools.partial(resnet20, depth=1, width=8, shape=(2, 3, 8, 8)),
    "char-LSTM, 2 x 4 characters": functools.partial(char_lstm, batch=2, length=4, size=8, hidden=12),
    "small GPT, 2 x 6 characters": functools.partial(
        small_gpt, batch=2, length=6, size=16, heads=2, layers=1
    ),
}
"""The same of nets, batches and images that take a simulator seconds."""
