"""A small GPT: the transformer learns to write like Shakespeare.

    python examples/gpt.py                              # about 12 minutes on one core
    python examples/gpt.py --quick                      # a tiny one, for a few steps

Each character asks a question (its query) of all characters before it, and takes the mean of their values,
weighted by how well their keys answer: softmax(q k^T / sqrt(size)) v, with what comes later hidden. Blocks of
this causal self-attention and of a perceptron are stacked, each behind a layer norm and beside a shortcut. No
state is handed on, so all places of a window learn at once. https://arxiv.org/abs/1706.03762
"""

import argparse
import math
from pathlib import Path

import minigrad as mg
from minigrad import nn, optim
from minigrad.data import TinyShakespeare

SENTENCE = "\nROMEO:\nO, she is fair and"
LAYER, HEADS = 1, (0, 1)  # whose attention is drawn


class Block(nn.Module):
    """Causal self-attention, then a perceptron: (N, T, size) to (N, T, size)."""

    def __init__(self, size, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(size), nn.LayerNorm(size)
        self.qkv, self.out = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.mlp = nn.Sequential(nn.Linear(size, 4 * size), nn.GELU(), nn.Linear(4 * size, size))

    def forward(self, x):
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        self.seen = q.detach(), k.detach()  # (N, heads, T, size / heads) each, for attention_maps
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """Characters (N, T) to logits (N, T, vocabulary) of what follows each; T is at most ``window``."""

    def __init__(self, vocabulary, window, size, heads, layers):
        super().__init__()
        self.tokens = nn.Parameter(mg.randn(vocabulary, size) / size**0.5)
        self.places = nn.Parameter(mg.randn(window, size) * 0.02)
        self.blocks = nn.Sequential(*(Block(size, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(size)

    def forward(self, characters):
        x = nn.functional.embedding(characters, self.tokens) + self.places[: characters.shape[1]]
        # A character is written by the vector that it is read by ("weight tying").
        return nn.functional.linear(self.norm(self.blocks(x)), self.tokens)

    def loss(self, text, places):
        """The mean loss, in nats a character, on the windows of ``text`` at ``places`` (N, T)."""
        return nn.functional.cross_entropy(self(text[places]).flatten(0, 1), text[places + 1].flatten())


@mg.no_grad()
def evaluate(model, text, batch, window):
    """The mean loss on the whole text, in windows that follow each other."""
    count = (len(text) - 1) // (batch * window)
    places = mg.arange(count * batch * window, device=text.device).reshape(count, batch, window)
    return sum(model.loss(text, part).item() for part in places) / count


@mg.no_grad()
def write(model, read, length=600, temperature=0.8, top_k=20):
    """``length`` characters that follow ``read`` (T,): each drawn from the ``top_k`` most likely."""
    for _ in range(length):
        logits = model(read[-len(model.places) :].unsqueeze(0))[0, -1] / temperature
        likely, numbers = mg.topk(logits, top_k)
        read = mg.cat([read, numbers[mg.multinomial(mg.softmax(likely, 0), 1)]])
    return read


@mg.no_grad()
def attention_maps(model, characters):
    """How much each character (a row) takes from each before it, in each head of LAYER: (heads, T, T)."""
    model(characters.unsqueeze(0))
    q, k = model.blocks[LAYER].seen
    later = mg.triu(mg.ones(len(characters), len(characters), device=q.device), 1) > 0
    return mg.softmax((q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(later, -mg.inf), -1)[0]


def plot(history, maps, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4.6), layout="constrained")
    losses, *axes = figure.subplots(1, 1 + len(HEADS))
    steps, training, validation = zip(*history, strict=True)
    losses.plot(steps, training, "o-", steps, validation, "o-")
    losses.set(xlabel="step", ylabel="nats a character", title=f"A small GPT: {validation[-1]:.3f} nats")
    losses.legend(["training", "validation"])
    names = list(SENTENCE.replace("\n", "¶"))
    for axis, head in zip(axes, HEADS, strict=True):
        axis.imshow(maps[head].tolist(), cmap="magma_r", vmin=0, vmax=1)
        axis.set(xticks=range(len(names)), yticks=range(len(names)), xticklabels=names, yticklabels=names)
        axis.set_title(f"what each character (row) looks at: layer {LAYER + 1}, head {head + 1}", size=10)
    figure.savefig(path, dpi=75)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tiny network, few steps")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path("runs/gpt"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    mg.manual_seed(arguments.seed)
    data = TinyShakespeare(train=True)
    train, validation = (part.data.to(arguments.device) for part in (data, TinyShakespeare(train=False)))
    batch, window, size, layers, steps, lr = 8, 128, 128, 4, arguments.steps, 2e-3
    if arguments.quick:
        window, size, layers, steps, lr, validation = 64, 64, 2, 80, 1e-2, validation[:2100]
    model = GPT(len(data.vocabulary), window, size, heads=4, layers=layers).to(arguments.device)
    optimizer = optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.1)
    # A warm-up for a twentieth of the steps, then down along a cosine.
    scheduler = optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.05, cycle_momentum=False)
    losses, history, every = [], [], steps // 8
    for step in range(1, steps + 1):
        places = mg.randint(0, len(train) - window, (batch, 1)).to(arguments.device)
        optimizer.zero_grad()
        loss = model.loss(train, places + mg.arange(window, device=places.device))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
        if step % every == 0:
            history.append((step, sum(losses[-every:]) / every, evaluate(model, validation, batch, window)))
            print("step {}  training {:.4f}  validation {:.4f} nats".format(*history[-1]), flush=True)

    mg.save(model.state_dict(), arguments.output / "model.safetensors")
    print(data.decode(write(model, data.encode("\n").to(train.device))).strip())
    maps = attention_maps(model, data.encode(SENTENCE).to(train.device))
    try:
        plot(history, maps, arguments.output / "gpt.png")
    except ImportError:
        print('no picture: pip install "minigrad[plot]"')


if __name__ == "__main__":
    main()
