"""A small training that writes a checkpoint after each step, and goes on from the last one when started anew.

Run as a script with the path of its checkpoint; it prints the number of each step that it has saved.
"""

import sys
from pathlib import Path

import numpy as np

import minigrad as mg
from minigrad import nn, optim
from minigrad.data import DataLoader, Digits, Subset, sample_random

EPOCHS = 10


def noisy(image):
    """Augmentation: it draws in the threads of the loader."""
    return image + mg.tensor(sample_random().normal(0, 0.1, image.shape), dtype=mg.float32)


def train(path: Path) -> dict:
    """Train from the checkpoint ``path`` on, if there is one; the trained weights."""
    mg.manual_seed(1)
    np.random.seed(2)  # noqa: NPY002  # global states are part of a checkpoint, too
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 10)
    )
    optimizer = optim.AdamW(model.parameters(), lr=1e-2)
    loader = DataLoader(Subset(Digits(transform=noisy), range(200)), 20, shuffle=True, num_workers=2)
    scheduler = optim.lr_scheduler.OneCycleLR(optimizer, 0.02, epochs=EPOCHS, steps_per_epoch=len(loader))
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "loader": loader}
    first, step = 0, 0
    if path.exists():
        first, step = mg.io.load_checkpoint(path, **parts)["at"]
    for epoch in range(first, EPOCHS):
        for images, labels in loader:
            optimizer.zero_grad()
            images = images * float(np.random.uniform(0.9, 1.1))  # noqa: NPY002
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            scheduler.step()
            step += 1
            mg.io.save_checkpoint(path, **parts, at=(epoch, step))
            print(step, flush=True)
    return model.state_dict()


if __name__ == "__main__":
    mg.save(train(Path(sys.argv[1])), sys.argv[2])
