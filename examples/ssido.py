"""A recurrent network learns to spell: type S, and it says SIDO.

    python examples/ssido.py                # about two minutes
    python examples/ssido.py --quick        # short memories only

It reads S, S, I, D and shall say S, I, D, O, each time the letter that comes next. The first S is followed by
S, the second by I: what it saw last is not enough. So it keeps a state, h' = tanh(W x + U h + b), and learns
W and U by going back through time. How long does a state last? The second part shows a letter and n others,
and asks for the first. A plain network forgets soon. An LSTM's forget gate can hold a state as it is, but
learns to only if it starts open: https://proceedings.mlr.press/v37/jozefowicz15.html.
"""

import argparse
from pathlib import Path

import minigrad as mg
from minigrad import nn, optim
from minigrad.nn import functional as F

WORDS = ("SSIDO.", "BANANA.", "MISSISSIPPI.", "TOMORROW.", "ENGINEER.")
LETTERS = sorted(set("".join(WORDS)))


class Reader(nn.Module):
    """One-hot letters (N, T, letters) to logits, as many, hidden states (N, T, hidden), the last state."""

    def __init__(self, letters, hidden, layer=nn.RNN):
        super().__init__()
        self.recurrent = layer(letters, hidden, batch_first=True)
        self.head = nn.Linear(hidden, letters)

    def forward(self, x, state=None):
        hidden, state = self.recurrent(x, state)
        return self.head(hidden), hidden, state


class OpenLSTM(nn.LSTM):
    """An LSTM that keeps nearly all at first: its forget gates are at about sigmoid(3) = 0.95, not 0.5."""

    def reset_parameters(self):
        super().reset_parameters()
        with mg.no_grad():
            self.bias_ih_l0[self.hidden_size : 2 * self.hidden_size] = 3.0


def numbers(text):
    return mg.tensor([LETTERS.index(letter) for letter in text])


def one_hot(numbers, device):
    return F.one_hot(numbers, len(LETTERS)).float().to(device)


def learn(words, hidden, steps, device):
    """A network that has learned to say, after each letter of the words, the one that follows."""
    pad = nn.utils.rnn.pad_sequence
    x = one_hot(pad([numbers(word[:-1]) for word in words], batch_first=True), device)
    targets = pad([numbers(word[1:]) for word in words], batch_first=True, padding_value=-1).to(device)
    model = Reader(len(LETTERS), hidden).to(device)
    optimizer = optim.Adam(model.parameters(), lr=1e-2)
    for step in range(steps + 1):
        logits, _, _ = model(x)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
        if step % (steps // 5) == 0:
            said = "".join(LETTERS[number] for number in logits[0].argmax(1).tolist()[: len(words[0]) - 1])
            print(f"step {step:3}  loss {loss.item():.4f}  {words[0][:-1]} -> {said}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@mg.no_grad()
def complete(model, text, device):
    """``text`` and the letters that the network appends, each the likeliest, up to a full stop."""
    read, state = text, None
    while not text.endswith(".") and len(text) < 20:
        logits, _, state = model(one_hot(numbers(read), device).unsqueeze(0), state)
        read = LETTERS[logits[0, -1].argmax().item()]
        text += read
    return text


def remember(layer, distance, steps, device):
    """Train a network to tell a first letter, of four, ``distance`` letters later: how often it is right."""
    model = Reader(8, 32, layer).to(device)
    optimizer = optim.Adam(model.parameters(), lr=3e-3)
    right = []
    for _ in range(steps):
        first, others = mg.randint(0, 4, (64, 1)), mg.randint(4, 8, (64, distance))
        x, target = F.one_hot(mg.cat([first, others], 1), 8).float().to(device), first[:, 0].to(device)
        logits = model(x)[0][:, -1]
        optimizer.zero_grad()
        F.cross_entropy(logits, target).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        right.append((logits.argmax(1) == target).float().mean().item())
    return sum(right[-10:]) / 10


def plot(logits, hidden, word, memory, distances, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    states, expected, known = figure.subplots(1, 3)
    states.imshow(hidden.T.tolist(), cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
    states.set(ylabel="unit", title="the same letter, in another state")
    expected.imshow(mg.softmax(logits, 1).T.tolist(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    expected.set(title="what it expects next", yticks=range(len(LETTERS)), yticklabels=LETTERS)
    for axis in (states, expected):
        axis.set(xlabel="letters read", xticks=range(len(word)), xticklabels=list(word))
    for name, shares in memory.items():
        known.plot([str(distance) for distance in distances], shares, "o-", label=name)
    known.axhline(0.25, color="grey", ls=":", label="guessing")
    known.set(xlabel="letters in between", ylim=(0, 1.05), title="an LSTM remembers longer")
    known.legend()
    figure.savefig(path, dpi=80)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="short memories only")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path("runs/ssido"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    mg.manual_seed(arguments.seed)
    device = arguments.device
    learn(["SSIDO"], hidden=8, steps=100, device=device)
    speller = learn(WORDS, hidden=24, steps=200, device=device)
    print("typed -> completed:", *(f"{word[0]} -> {complete(speller, word[0], device)}" for word in WORDS))

    distances, steps = ((2, 5), 80) if arguments.quick else ((2, 5, 10, 20, 40, 80), 600)
    memory = {"RNN": nn.RNN, "LSTM": nn.LSTM, "LSTM, forget gate open at first": OpenLSTM}
    for name, layer in memory.items():
        memory[name] = [remember(layer, distance, steps, device) for distance in distances]
        shares = (f"{share:.0%} after {n}" for share, n in zip(memory[name], distances, strict=True))
        print(f"{name} knows the first letter: {', '.join(shares)}", flush=True)
    try:
        word = "MISSISSIPPI"
        logits, hidden, _ = speller(one_hot(numbers(word), device).unsqueeze(0))
        plot(logits[0], hidden[0], word, memory, distances, arguments.output / "ssido.png")
    except ImportError:
        print('no picture: pip install "minigrad[plot]"')


if __name__ == "__main__":
    main()
