"""MAML on sine waves: steps inside a step by functional_call, the same for a batch of tasks by vmap, and Reptile."""

import copy

import minigrad as torch
import minigrad.nn as nn
import minigrad.nn.functional as F
from minigrad.func import functional_call, grad, vmap


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(1, 20)
        self.fc2 = nn.Linear(20, 20)
        self.fc3 = nn.Linear(20, 1)

    def forward(self, x):
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


def sample_task(n=10):
    amplitude, phase = torch.rand(1) + 0.5, torch.rand(1)
    x = torch.rand(size=(n, 1)) * 4 - 2
    return x, amplitude * torch.sin(x + phase)


def main(argv=None):
    torch.manual_seed(0)
    net = Net()
    meta_optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    losses = []

    for _ in range(10):
        meta_loss = 0.0
        for _ in range(4):
            x, y = sample_task()
            params = {name: param.clone() for name, param in net.named_parameters()}
            for _ in range(2):
                loss = F.mse_loss(functional_call(net, params, (x,)), y)
                grads = torch.autograd.grad(loss, tuple(params.values()), create_graph=True)
                params = {name: p - 0.01 * g for (name, p), g in zip(params.items(), grads)}
            meta_loss = meta_loss + F.mse_loss(functional_call(net, params, x), y) / 4
        meta_optimizer.zero_grad()
        meta_loss.backward()
        meta_optimizer.step()
        losses.append(meta_loss.item())

    def task_loss(params, x, y):
        return F.mse_loss(functional_call(net, params, (x,)), y)

    def loss_after_a_step(params, x1, y1, x2, y2):
        grads = grad(task_loss)(params, x1, y1)
        return task_loss({name: params[name] - 0.01 * grads[name] for name in params}, x2, y2)

    for _ in range(10):
        tasks = [sample_task() + sample_task() for _ in range(4)]
        batches = [torch.stack(column) for column in zip(*tasks)]
        params = dict(net.named_parameters())
        meta_loss = vmap(loss_after_a_step, in_dims=(None, 0, 0, 0, 0))(params, *batches).mean()
        meta_optimizer.zero_grad()
        meta_loss.backward()
        meta_optimizer.step()
        losses.append(meta_loss.item())

    for _ in range(10):
        weights_before = copy.deepcopy(net.state_dict())
        x, y = sample_task()
        for _ in range(3):
            loss = F.mse_loss(net(x), y)
            net.zero_grad()
            loss.backward()
            with torch.no_grad():
                for param in net.parameters():
                    param -= 0.05 * param.grad
        weights_after = net.state_dict()
        net.load_state_dict(
            {k: weights_before[k] + (weights_after[k] - weights_before[k]) * 0.3 for k in weights_before}
        )
        losses.append(loss.item())

    params = {name: param.detach() for name, param in net.named_parameters()}
    per_sample = vmap(grad(task_loss), in_dims=(None, 0, 0))(params, x[:, None], y[:, None])
    print({name: tuple(g.shape) for name, g in per_sample.items()})
    curvature = torch.autograd.functional.hessian(lambda z: net(z.view(1, 1)).sin().sum(), torch.zeros(1))
    print(f"final loss {losses[-1]:.4f}, curvature {curvature.item():.4f}")
    return losses


if __name__ == "__main__":
    main()
