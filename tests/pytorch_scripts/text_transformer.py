"""A transformer encoder as a language model: which word comes next."""

import argparse
import math
import time

import minigrad as torch
import minigrad.nn as nn
import minigrad.nn.functional as F
from minigrad.nn import TransformerEncoder, TransformerEncoderLayer

SENTENCES = [
    "the cat sat on the mat and looked at the dog",
    "the dog sat on the rug and looked at the cat",
    "a bird sang in the tree while the cat slept",
    "the sun set and the bird went to sleep in the tree",
]


class PositionalEncoding(nn.Module):
    def __init__(self, d_model, dropout=0.1, max_len=500):
        super(PositionalEncoding, self).__init__()
        self.dropout = nn.Dropout(p=dropout)
        pe = torch.zeros(max_len, d_model)
        position = torch.arange(0, max_len, dtype=torch.float).unsqueeze(1)
        div_term = torch.exp(torch.arange(0, d_model, 2).float() * (-math.log(10000.0) / d_model))
        pe[:, 0::2] = torch.sin(position * div_term)
        pe[:, 1::2] = torch.cos(position * div_term)
        pe = pe.unsqueeze(0).transpose(0, 1)
        self.register_buffer("pe", pe)

    def forward(self, x):
        x = x + self.pe[: x.size(0), :]
        return self.dropout(x)


class TransformerModel(nn.Module):
    def __init__(self, ntoken, d_model, nhead, d_hid, nlayers, dropout=0.5):
        super().__init__()
        self.model_type = "Transformer"
        self.pos_encoder = PositionalEncoding(d_model, dropout)
        encoder_layers = TransformerEncoderLayer(d_model, nhead, d_hid, dropout)
        self.transformer_encoder = TransformerEncoder(encoder_layers, nlayers)
        self.embedding = nn.Embedding(ntoken, d_model)
        self.d_model = d_model
        self.linear = nn.Linear(d_model, ntoken)
        self.init_weights()

    def init_weights(self):
        initrange = 0.1
        self.embedding.weight.data.uniform_(-initrange, initrange)
        self.linear.bias.data.zero_()
        self.linear.weight.data.uniform_(-initrange, initrange)

    def forward(self, src, src_mask=None):
        src = self.embedding(src) * math.sqrt(self.d_model)
        src = self.pos_encoder(src)
        if src_mask is None:
            src_mask = nn.Transformer.generate_square_subsequent_mask(len(src))
        output = self.transformer_encoder(src, src_mask)
        return self.linear(output)


def batchify(data, bsz):
    """(seq_len, bsz)"""
    seq_len = data.size(0) // bsz
    data = data[: seq_len * bsz]
    return data.view(bsz, seq_len).t().contiguous()


def get_batch(source, i, bptt):
    seq_len = min(bptt, len(source) - 1 - i)
    data = source[i : i + seq_len]
    target = source[i + 1 : i + 1 + seq_len].reshape(-1)
    return data, target


def evaluate(model, data_source, ntokens, bptt):
    model.eval()
    total_loss = 0.0
    with torch.no_grad():
        for i in range(0, data_source.size(0) - 1, bptt):
            data, targets = get_batch(data_source, i, bptt)
            output = model(data)
            output_flat = output.view(-1, ntokens)
            total_loss += len(data) * F.cross_entropy(output_flat, targets).item()
    return total_loss / (len(data_source) - 1)


def main(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--epochs", type=int, default=2)
    args = parser.parse_args(argv)
    torch.manual_seed(1111)
    words = " ".join(SENTENCES * 12).split()
    vocab = {word: i for i, word in enumerate(sorted(set(words)))}
    ids = [torch.tensor([vocab[word] for word in words[i : i + 40]]) for i in range(0, len(words), 40)]
    data = torch.cat(tuple(filter(lambda t: t.numel() > 0, ids)))
    train_data, val_data = batchify(data, 8), batchify(data, 4)
    ntokens, bptt = len(vocab), 10

    model = TransformerModel(ntokens, 32, 4, 64, 2, args.dropout)
    print("parameters:", sum(p.numel() for p in model.parameters() if p.requires_grad))
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1.0, gamma=0.95)
    best_val_loss = float("inf")
    losses = []
    for epoch in range(1, args.epochs + 1):
        model.train()
        start_time = time.time()
        for batch, i in enumerate(range(0, train_data.size(0) - 1, bptt)):
            data, targets = get_batch(train_data, i, bptt)
            output = model(data)
            loss = criterion(output.view(-1, ntokens), targets)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            losses.append(loss.item())
            lr = scheduler.get_last_lr()[0]
        val_loss = evaluate(model, val_data, ntokens, bptt)
        print(
            f"| epoch {epoch:3d} | lr {lr:02.2f} | time {time.time() - start_time:5.2f}s | "
            f"valid loss {val_loss:5.2f} | valid ppl {math.exp(val_loss):8.2f}"
        )
        if val_loss < best_val_loss:
            best_val_loss = val_loss
            torch.save(model.state_dict(), "best_model.pt")
        scheduler.step()
    model.load_state_dict(torch.load("best_model.pt"))
    return losses


if __name__ == "__main__":
    main()
