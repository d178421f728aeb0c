"""A recurrent network learns to write like Shakespeare, one character after the other.

    python examples/shakespeare.py                      # about 12 minutes on one core
    python examples/shakespeare.py --resume             # go on where a run was killed, with the same bits
    python examples/shakespeare.py --quick              # a small network on the first pages

An LSTM reads a character, changes its state, and says how likely each of the 65 characters is to come next;
the loss is its surprise, -log p, at the one that comes. Gradients go back 64 steps only, but the state goes
on from window to window (truncated backpropagation through time). To write, it draws a character from what it
expects, and reads that. Logits divided by a temperature below 1 make it careful, above 1 reckless.
"""

import argparse
import math
import textwrap
import time
from pathlib import Path

import minigrad as mg
from minigrad import nn, optim
from minigrad.data import TinyShakespeare
from minigrad.io import load_checkpoint, save_checkpoint

READERS, WINDOW = 32, 64  # so many places in the text are read side by side, so many characters at a time
TEMPERATURES = (0.5, 0.8, 1.2)


class CharLSTM(nn.Module):
    """Characters (N, T) and the state before them to logits (N, T, vocabulary) and the state behind them."""

    def __init__(self, vocabulary, hidden):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 64)
        self.lstm = nn.LSTM(64, hidden, batch_first=True)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(hidden, vocabulary)

    def forward(self, characters, state=None):
        hidden, state = self.lstm(self.embedding(characters), state)
        return self.head(self.dropout(hidden)), state


def windows(data):
    """The text as inputs and targets (windows, READERS, WINDOW); each window goes on where the last ended."""
    count = (len(data) - 1) // (READERS * WINDOW)
    parts = (data[i : i + READERS * count * WINDOW].reshape(READERS, count, WINDOW) for i in (0, 1))
    return [part.transpose(0, 1) for part in parts]


def read(model, inputs, targets, optimizer=None, scheduler=None):
    """Read the text once, and learn from it if there is an optimizer: the mean loss, in nats a character."""
    model.train(optimizer is not None)
    state, total = None, 0.0
    for x, y in zip(inputs, targets, strict=True):
        logits, state = model(x, state)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())
        total += loss.item()
        if optimizer is not None:
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            state = [part.detach() for part in state]
    return total / len(inputs)


@mg.no_grad()
def write(model, data, temperature, length=700):
    """``length`` characters of the model's own."""
    model.eval()
    character, state, text = data.encode("\n").to(model.head.weight.device), None, ""
    for _ in range(length):
        logits, state = model(character.unsqueeze(0), state)
        character = mg.multinomial(mg.softmax(logits[0, -1] / temperature, 0), 1)
        text += data.decode(character)
    return text.strip()


def plot(history, samples, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.5), layout="constrained")
    top, below = figure.subfigures(2, 1, height_ratios=(3, 4))
    axis = top.subplots()
    for name, losses in history.items():
        axis.plot(range(1, len(losses) + 1), losses, "o-", label=name)
    axis.set(xlabel="epoch", ylabel="nats a character")
    axis.set_title(f"A char-LSTM reads Shakespeare: {bits_of(history['validation'][-1])}")
    axis.legend()
    for axis, (temperature, text) in zip(below.subplots(1, len(samples)), samples.items(), strict=True):
        lines = [part for line in text.split("\n") for part in textwrap.wrap(line, 50) or [""]]
        axis.text(0, 1, "\n".join(lines[:25]), family="monospace", size=7, va="top")
        axis.set_title(f"written at temperature {temperature}", size=10, loc="left")
        axis.axis("off")
    figure.savefig(path, dpi=78)


def bits_of(nats):
    return f"{nats:.4f} nats, {nats / math.log(2):.3f} bits a character"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small network on the first pages")
    parser.add_argument("--resume", action="store_true", help="go on from the output's checkpoint")
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path("runs/shakespeare"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    mg.manual_seed(arguments.seed)

    text = TinyShakespeare(train=True)
    train = windows(text.data.to(arguments.device))
    validation = windows(TinyShakespeare(train=False).data.to(arguments.device))
    hidden, lr = 256, 4e-3
    if arguments.quick:
        hidden, lr = 96, 1e-2
        train, validation = [part[:8] for part in train], [part[:2] for part in validation]
    model = CharLSTM(len(text.vocabulary), hidden).to(arguments.device)
    optimizer = optim.Adam(model.parameters(), lr=lr)
    scheduler = optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=arguments.epochs * len(train[0]))
    history, checkpoint = {"training": [], "validation": []}, arguments.output / "training.ckpt"
    if arguments.resume:
        saved = load_checkpoint(checkpoint, model=model, optimizer=optimizer, scheduler=scheduler)
        history = saved["history"]

    start = time.perf_counter()
    for epoch in range(len(history["training"]) + 1, arguments.epochs + 1):
        history["training"].append(read(model, *train, optimizer, scheduler))
        with mg.no_grad():
            history["validation"].append(read(model, *validation))
        save_checkpoint(checkpoint, model=model, optimizer=optimizer, scheduler=scheduler, history=history)
        losses = f"training {history['training'][-1]:.4f}  validation {bits_of(history['validation'][-1])}"
        print(f"epoch {epoch}/{arguments.epochs}  {losses}  {time.perf_counter() - start:.0f} s", flush=True)

    mg.save(model.state_dict(), arguments.output / "model.safetensors")
    samples = {temperature: write(model, text, temperature) for temperature in TEMPERATURES}
    print(*(f"---- temperature {t} ----\n{written}" for t, written in samples.items()), sep="\n")
    try:
        plot(history, samples, arguments.output / "shakespeare.png")
    except ImportError:
        print('no picture: pip install "minigrad[plot]"')


if __name__ == "__main__":
    main()
