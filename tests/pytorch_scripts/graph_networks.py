"""Networks on a graph of three communities: convolution and attention on the matrix, messages along edges."""

import numpy as np

import minigrad as torch
import minigrad.nn as nn
import minigrad.nn.functional as F
from minigrad.nn.modules.module import Module
from minigrad.nn.parameter import Parameter


class GraphConvolution(Module):
    def __init__(self, in_features, out_features):
        super(GraphConvolution, self).__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.weight = Parameter(torch.FloatTensor(in_features, out_features))
        self.bias = Parameter(torch.FloatTensor(out_features))
        stdv = 1.0 / np.sqrt(self.weight.size(1))
        self.weight.data.uniform_(-stdv, stdv)
        self.bias.data.uniform_(-stdv, stdv)

    def forward(self, input, adj, edge_index):
        return torch.spmm(adj, torch.mm(input, self.weight)) + self.bias

    def __repr__(self):
        return self.__class__.__name__ + " (" + str(self.in_features) + " -> " + str(self.out_features) + ")"


class GraphAttention(nn.Module):
    def __init__(self, in_features, out_features, alpha=0.2):
        super().__init__()
        self.out_features = out_features
        self.W = nn.Parameter(torch.empty(size=(in_features, out_features)))
        nn.init.xavier_uniform_(self.W.data, gain=1.414)
        self.a = nn.Parameter(torch.empty(size=(2 * out_features, 1)))
        nn.init.xavier_uniform_(self.a.data, gain=1.414)
        self.leakyrelu = nn.LeakyReLU(alpha)

    def forward(self, h, adj, edge_index):
        Wh = torch.mm(h, self.W)
        e = self.leakyrelu(Wh @ self.a[: self.out_features] + (Wh @ self.a[self.out_features :]).T)
        attention = torch.where(adj > 0, e, -9e15 * torch.ones_like(e))
        attention = F.dropout(F.softmax(attention, dim=1), 0.2, training=self.training)
        return torch.matmul(attention, Wh)


class Messages(nn.Module):
    """Along each edge, normalised by a softmax over the edges that reach a node."""

    def __init__(self, in_features, out_features):
        super().__init__()
        self.lin_l = nn.Linear(in_features, out_features)
        self.lin_r = nn.Linear(in_features, out_features, bias=False)
        self.score = nn.Linear(2 * in_features, 1)

    def forward(self, x, adj, edge_index):
        row, col = edge_index
        score = F.leaky_relu(self.score(torch.cat([x[row], x[col]], dim=-1))).squeeze(-1)
        highest = torch.zeros(x.size(0)).scatter_reduce_(0, col, score.detach(), "amax", include_self=False)
        weight = torch.exp(score - highest[col])
        total = torch.zeros(x.size(0)).index_add_(0, col, weight)
        messages = x[row] * (weight / total[col]).unsqueeze(-1)
        out = torch.zeros_like(x).scatter_add_(0, col.unsqueeze(-1).expand_as(messages), messages)
        return self.lin_l(out) + self.lin_r(x)


class Net(nn.Module):
    def __init__(self, layer, nfeat, nhid, nclass):
        super().__init__()
        self.l1 = layer(nfeat, nhid)
        self.l2 = layer(nhid, nclass)

    def forward(self, x, adj, edge_index):
        x = F.elu(self.l1(x, adj, edge_index))
        return F.log_softmax(self.l2(x, adj, edge_index), dim=1)


def normalize(mx):
    r_inv = np.power(mx.sum(axis=1), -1.0)
    r_inv[np.isinf(r_inv)] = 0.0
    return np.diag(r_inv).dot(mx)


def accuracy(output, labels):
    preds = output.max(1)[1].type_as(labels)
    return preds.eq(labels).double().sum() / len(labels)


def main(argv=None):
    rng = np.random.RandomState(0)
    n = 30
    labels = torch.LongTensor(np.arange(n) % 3)
    same = labels.unsqueeze(axis=0) == labels.unsqueeze(axis=1)
    a = (rng.rand(n, n) < np.where(same.numpy(), 0.4, 0.05)).astype(np.float32)
    a = np.maximum(a, a.T)
    adj = torch.FloatTensor(normalize(a + np.eye(n)))
    edge_index = torch.from_numpy(np.array(np.nonzero(a + np.eye(n)))).long()
    assert torch.equal(edge_index, torch.argwhere(adj).t())
    x = torch.FloatTensor(rng.randn(n, 6)) + 0.5 * F.one_hot(labels, 6).float()
    idx_train, idx_test = torch.LongTensor(range(18)), torch.LongTensor(range(18, n))
    losses = []
    for layer in (GraphConvolution, GraphAttention, Messages):
        model = Net(layer, 6, 16, int(labels.max()) + 1)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05, weight_decay=5e-4)
        history = []
        for epoch in range(15):
            model.train()
            optimizer.zero_grad()
            output = model(x, adj, edge_index)
            loss_train = F.nll_loss(output[idx_train], labels[idx_train])
            loss_train.backward()
            optimizer.step()
            history.append(loss_train.item())
        model.eval()
        output = model(x, adj, edge_index)
        acc_test = accuracy(output[idx_test], labels[idx_test])
        print("loss: {:.4f}".format(history[-1]), "accuracy= {:.4f}".format(acc_test.item()), model.l1)
        losses.append(history)
    return np.array(losses).mean(axis=0).tolist()


if __name__ == "__main__":
    main()
