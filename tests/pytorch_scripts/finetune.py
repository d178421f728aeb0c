"""Transfer learning: a network learns the digits 0 to 4, then its frozen features serve for 5 to 9."""

import copy
import time

from digit_images import load_digits

import minigrad as torch
import minigrad.nn as nn
import minigrad.optim as optim
from minigrad.optim import lr_scheduler
from minigrad.utils.data import DataLoader, TensorDataset


def make_dataloaders(digits):
    dataloaders, sizes = {}, {}
    for phase in ["train", "val"]:
        images, labels = load_digits(phase == "train")
        images, labels = torch.from_numpy(images).float() / 255, torch.from_numpy(labels)
        mask = (labels >= digits[0]) & (labels <= digits[-1])
        dataset = TensorDataset(images[mask].unsqueeze(1), labels[mask] - digits[0])
        dataloaders[phase] = DataLoader(dataset, batch_size=32, shuffle=True)
        sizes[phase] = len(dataset)
    return dataloaders, sizes


def make_model():
    model = nn.Sequential()
    model.add_module("conv1", nn.Conv2d(1, 16, 3, padding=1))
    model.add_module("bn1", nn.BatchNorm2d(16))
    model.add_module("relu1", nn.ReLU(inplace=True))
    model.add_module("pool", nn.AdaptiveAvgPool2d((4, 4)))
    model.add_module("flatten", nn.Flatten())
    model.add_module("fc", nn.Linear(256, 5))
    return model


def train_model(model, data, criterion, optimizer, scheduler, num_epochs, losses):
    dataloaders, dataset_sizes = data
    since = time.time()
    best_model_wts = copy.deepcopy(model.state_dict())
    best_acc = 0.0
    device = next(model.parameters()).device
    for epoch in range(num_epochs):
        for phase in ["train", "val"]:
            if phase == "train":
                model.train()
            else:
                model.eval()
            running_loss = 0.0
            running_corrects = 0
            for inputs, labels in dataloaders[phase]:
                inputs = inputs.to(device)
                labels = labels.to(device)
                optimizer.zero_grad()
                with torch.set_grad_enabled(phase == "train"):
                    outputs = model(inputs)
                    _, preds = torch.max(outputs, 1)
                    loss = criterion(outputs, labels)
                    if phase == "train":
                        loss.backward()
                        optimizer.step()
                        losses.append(loss.item())
                running_loss += loss.item() * inputs.size(0)
                running_corrects += torch.sum(preds == labels.data)
            if phase == "train":
                scheduler.step()
            epoch_loss = running_loss / dataset_sizes[phase]
            epoch_acc = running_corrects.double() / dataset_sizes[phase]
            print("{} Loss: {:.4f} Acc: {:.4f}".format(phase, epoch_loss, epoch_acc))
            if phase == "val" and epoch_acc > best_acc:
                best_acc = epoch_acc
                best_model_wts = copy.deepcopy(model.state_dict())
    time_elapsed = time.time() - since
    print("Training complete in {:.0f}m {:.0f}s".format(time_elapsed // 60, time_elapsed % 60))
    print("Best val Acc: {:4f}".format(best_acc))
    model.load_state_dict(best_model_wts)
    return model


def main(argv=None):
    torch.manual_seed(0)
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    losses = []
    model = make_model().to(device)
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.SGD(
        [
            {"params": [p for name, p in model.named_parameters() if not name.startswith("fc")]},
            {"params": model.fc.parameters(), "lr": 0.02},
        ],
        lr=0.05,
        momentum=0.9,
        weight_decay=1e-4,
    )
    scheduler = lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.1)
    model = train_model(model, make_dataloaders(range(5)), criterion, optimizer, scheduler, 2, losses)
    print([group["lr"] for group in optimizer.param_groups])

    for param in model.parameters():
        param.requires_grad = False
    frozen = model.conv1.weight.clone()
    num_ftrs = model.fc.in_features
    model.fc = nn.Linear(num_ftrs, 5).to(device)
    optimizer = optim.SGD(filter(lambda p: p.requires_grad, model.parameters()), lr=0.05, momentum=0.9)
    optimizer.param_groups[0]["lr"] *= 0.5
    scheduler = lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
    model = train_model(model, make_dataloaders(range(5, 10)), criterion, optimizer, scheduler, 2, losses)
    assert torch.equal(frozen, model.conv1.weight)
    return losses


if __name__ == "__main__":
    main()
