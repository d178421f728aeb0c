"""An LSTM that learns to write, one character after the other; hidden states are carried from batch to batch."""

import argparse

import numpy as np

import minigrad as torch
import minigrad.nn as nn
from minigrad.nn.utils import clip_grad_norm_

TEXT = "the quick brown fox jumps over the lazy dog, and the dog barks at the fox in the morning.\n" * 60


class Dictionary(object):
    def __init__(self, text):
        self.idx2char = sorted(set(text))
        self.char2idx = {char: i for i, char in enumerate(self.idx2char)}

    def __len__(self):
        return len(self.idx2char)


class RNNLM(nn.Module):
    def __init__(self, vocab_size, embed_size, hidden_size, num_layers):
        super(RNNLM, self).__init__()
        self.embed = nn.Embedding(vocab_size, embed_size)
        self.lstm = nn.LSTM(embed_size, hidden_size, num_layers, batch_first=True)
        self.linear = nn.Linear(hidden_size, vocab_size)

    def forward(self, x, h):
        x = self.embed(x)
        out, (h, c) = self.lstm(x, h)
        out = out.reshape(out.size(0) * out.size(1), out.size(2))
        return self.linear(out), (h, c)


def detach(states):
    return [state.detach() for state in states]


def main(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--hidden-size", type=int, default=48)
    args = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    num_layers, batch_size, seq_length = 2, 8, 20
    torch.manual_seed(3)

    corpus = Dictionary(TEXT)
    ids = torch.LongTensor([corpus.char2idx[char] for char in TEXT])
    num_batches = ids.size(0) // batch_size
    ids = ids[: num_batches * batch_size].view(batch_size, -1)

    model = RNNLM(len(corpus), 24, args.hidden_size, num_layers).to(device)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for epoch in range(args.epochs):
        states = (
            torch.zeros(num_layers, batch_size, args.hidden_size).to(device),
            torch.zeros(num_layers, batch_size, args.hidden_size).to(device),
        )
        for i in range(0, ids.size(1) - seq_length, seq_length):
            inputs = ids[:, i : i + seq_length].to(device)
            targets = ids[:, (i + 1) : (i + 1) + seq_length].to(device)
            states = detach(states)
            outputs, states = model(inputs, states)
            loss = criterion(outputs, targets.reshape(-1))
            optimizer.zero_grad()
            loss.backward()
            clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            losses.append(loss.item())
        print(
            f"Epoch [{epoch + 1}/{args.epochs}], Loss: {loss.item():.4f}, Perplexity: {np.exp(loss.item()):5.2f}"
        )

    with torch.no_grad():
        text = ""
        state = tuple(torch.zeros(num_layers, 1, args.hidden_size).to(device) for _ in range(2))
        prob = torch.ones(len(corpus))
        input = torch.multinomial(prob, num_samples=1).unsqueeze(1).to(device)
        for _ in range(60):
            output, state = model(input, state)
            prob = output.exp()
            word_id = torch.multinomial(prob, num_samples=1).item()
            input.fill_(word_id)
            text += corpus.idx2char[word_id]
    print(text)
    torch.save(model.state_dict(), "model.ckpt")
    return losses


if __name__ == "__main__":
    main()
