"""A table as on Kaggle: weighted sampling, mixup, focal loss, averages of weights, many schedules, a resumed run."""

import copy
import os

import numpy as np

import minigrad as torch
import minigrad.nn as nn
import minigrad.nn.functional as F
import minigrad.optim as optim
from minigrad.autograd import Variable
from minigrad.optim.lr_scheduler import CosineAnnealingWarmRestarts, CyclicLR, OneCycleLR, _LRScheduler
from minigrad.optim.swa_utils import SWALR, AveragedModel, update_bn
from minigrad.utils.data import DataLoader
from minigrad.utils.data.dataset import Dataset
from minigrad.utils.data.sampler import WeightedRandomSampler


def set_seed(seed=42):
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.cuda.manual_seed_all(seed)
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True)
    os.environ["PYTHONHASHSEED"] = str(seed)


class TabularDataset(Dataset):
    def __init__(self, X, y):
        self.X, self.y = X, y

    def __len__(self):
        return self.X.shape[0]

    def __getitem__(self, idx):
        return {
            "x": torch.tensor(self.X[idx], dtype=torch.float),
            "y": torch.tensor(self.y[idx]),
            "id": f"row{idx}",
        }


class FocalLoss(nn.Module):
    def __init__(self, alpha=None, gamma=1.0):
        super().__init__()
        self.register_buffer("alpha", alpha)
        self.gamma = gamma

    def forward(self, inputs, targets):
        ce_loss = F.cross_entropy(inputs, targets, weight=self.alpha, reduction="none")
        pt = torch.exp(-ce_loss)
        return ((1 - pt) ** self.gamma * ce_loss).mean()


class WarmupLR(_LRScheduler):
    def __init__(self, optimizer, warmup, last_epoch=-1):
        self.warmup = warmup
        super(WarmupLR, self).__init__(optimizer, last_epoch)

    def get_lr(self):
        return [base_lr * min(1.0, (self.last_epoch + 1) / self.warmup) for base_lr in self.base_lrs]


def mixup_data(x, y, alpha=0.2):
    lam = np.random.beta(alpha, alpha)
    index = torch.arange(x.size()[0] - 1, -1, -1)
    return lam * x + (1 - lam) * x[index, :], y, y[index], lam


class EMA:
    def __init__(self, model, decay=0.9):
        self.module = copy.deepcopy(model)
        self.module.eval()
        self.decay = decay

    @torch.no_grad()
    def update(self, model):
        for ema_v, model_v in zip(self.module.state_dict().values(), model.state_dict().values()):
            if torch.is_floating_point(ema_v):
                ema_v.copy_(self.decay * ema_v + (1.0 - self.decay) * model_v)
            else:
                ema_v.copy_(model_v)


def make_model():
    return nn.Sequential(nn.Linear(6, 24, bias=False), nn.BatchNorm1d(24), nn.PReLU(), nn.Linear(24, 3))


def evaluate(model, loader):
    model.eval()
    all_preds, all_labels = torch.tensor([]), torch.LongTensor()
    with torch.no_grad():
        for batch in loader:
            all_preds = torch.cat((all_preds, model(batch["x"])), dim=0)
            all_labels = torch.cat((all_labels, batch["y"]))
    accuracy = (all_preds.argmax(axis=1) == all_labels).float().mean()
    return F.cross_entropy(all_preds, all_labels).item(), accuracy.item()


def main(argv=None):
    set_seed(0)
    X = np.random.randn(120, 6)
    y = (X[:, 0] > 0).astype(np.int64) + (X[:, 1] > 0.5)
    dataset = TabularDataset(X, y)
    weights = 1.0 / torch.tensor(np.bincount(y), dtype=torch.float)
    sampler = WeightedRandomSampler(weights[torch.as_tensor(y)].tolist(), num_samples=len(dataset))
    loader = DataLoader(dataset, batch_size=20, sampler=sampler, num_workers=0, drop_last=True)
    full_loader = DataLoader(dataset, batch_size=50)
    histories = []
    schedules = {
        "one cycle": lambda o: OneCycleLR(o, max_lr=0.2, steps_per_epoch=len(loader), epochs=3),
        "cyclic": lambda o: CyclicLR(o, base_lr=0.02, max_lr=0.2, step_size_up=4),
        "restarts": lambda o: CosineAnnealingWarmRestarts(o, T_0=6, T_mult=2, eta_min=1e-3),
        "warm-up": lambda o: WarmupLR(o, 6),
        "swa": lambda o: SWALR(o, swa_lr=0.05, anneal_epochs=10),
    }
    for name, schedule in schedules.items():
        model = make_model()
        optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
        scheduler = schedule(optimizer)
        criterion = FocalLoss(weights / weights.sum() * 3)
        ema, swa_model, history = EMA(model), AveragedModel(model), []
        for epoch in range(3):
            model.train()
            for batch in loader:
                inputs, targets_a, targets_b, lam = mixup_data(batch["x"], batch["y"])
                inputs, targets_a, targets_b = map(Variable, (inputs, targets_a, targets_b))
                outputs = model(inputs)
                loss = lam * criterion(outputs, targets_a) + (1 - lam) * criterion(outputs, targets_b)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                scheduler.step()
                ema.update(model)
                history.append(loss.data.item())
            swa_model.update_parameters(model)
        update_bn((batch["x"] for batch in full_loader), swa_model)
        shown = [evaluate(m, full_loader) for m in (model, ema.module, swa_model)]
        print(
            name, " ".join(f"{loss:.3f}/{accuracy:.0%}" for loss, accuracy in shown), scheduler.get_last_lr()
        )
        histories.append(history)
        state = {"epoch": 3, "state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save({**state, "scheduler": scheduler.state_dict(), "best": shown[0][1]}, "checkpoint.pth.tar")
        checkpoint = torch.load("checkpoint.pth.tar", map_location=lambda storage, loc: storage)
        model = make_model()
        backbone = {k: v for k, v in checkpoint["state_dict"].items() if not k.startswith("3.")}
        print(model.load_state_dict(backbone, strict=False).missing_keys)
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        model.load_state_dict(checkpoint["state_dict"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        assert optimizer.param_groups[0]["lr"] == scheduler.get_last_lr()[0]
        assert evaluate(model, full_loader) == shown[0]
    return np.array(histories).mean(axis=0).tolist()


if __name__ == "__main__":
    main()
