"""Super-resolution by PixelShuffle: from 8 x 8 to 16 x 16 pixels."""

import argparse
from math import log10

import numpy as np

import minigrad as torch
import minigrad.nn as nn
import minigrad.nn.init as init
import minigrad.optim as optim
from minigrad.utils.data import DataLoader, Dataset


class Blobs(Dataset):
    """Smooth random pictures, and the means of their 2 x 2 blocks."""

    def __init__(self, length, seed):
        super().__init__()
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[:16, :16] / 16
        centres = rng.uniform(0.2, 0.8, (length, 2, 1, 1))
        widths = rng.uniform(0.1, 0.3, (length, 1, 1))
        distances = (y - centres[:, 0]) ** 2 + (x - centres[:, 1]) ** 2
        self.images = np.exp(-distances / widths**2).astype(np.float32)

    def __getitem__(self, index):
        target = torch.from_numpy(self.images[index][None])
        input = target.reshape(1, 8, 2, 8, 2).mean(dim=(2, 4))
        return input, target

    def __len__(self):
        return len(self.images)


class Net(nn.Module):
    def __init__(self, upscale_factor):
        super(Net, self).__init__()
        self.relu = nn.ReLU()
        self.conv1 = nn.Conv2d(1, 32, (5, 5), (1, 1), (2, 2))
        self.conv2 = nn.Conv2d(32, 32, (3, 3), (1, 1), (1, 1))
        self.conv3 = nn.Conv2d(32, 16, (3, 3), (1, 1), (1, 1))
        self.conv4 = nn.Conv2d(16, upscale_factor**2, (3, 3), (1, 1), (1, 1))
        self.pixel_shuffle = nn.PixelShuffle(upscale_factor)
        self._initialize_weights()

    def forward(self, x):
        x = self.relu(self.conv1(x))
        x = self.relu(self.conv2(x))
        x = self.relu(self.conv3(x))
        x = self.pixel_shuffle(self.conv4(x))
        return x

    def _initialize_weights(self):
        init.orthogonal_(self.conv1.weight, init.calculate_gain("relu"))
        init.orthogonal_(self.conv2.weight, init.calculate_gain("relu"))
        init.orthogonal_(self.conv3.weight, init.calculate_gain("relu"))
        init.orthogonal_(self.conv4.weight)


def main(argv=None):
    parser = argparse.ArgumentParser(description="Super resolution example")
    parser.add_argument("--upscale_factor", type=int, default=2)
    parser.add_argument("--batchSize", type=int, default=16)
    parser.add_argument("--nEpochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=0.003)
    parser.add_argument("--seed", type=int, default=123)
    opt = parser.parse_args(argv)
    print(opt)
    torch.manual_seed(opt.seed)
    device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")

    training_data_loader = DataLoader(
        dataset=Blobs(320, 0), num_workers=0, batch_size=opt.batchSize, shuffle=True
    )
    testing_data_loader = DataLoader(
        dataset=Blobs(64, 1), num_workers=0, batch_size=opt.batchSize, shuffle=False
    )
    model = Net(upscale_factor=opt.upscale_factor).to(device)
    criterion = nn.MSELoss()
    optimizer = optim.Adam(model.parameters(), lr=opt.lr)
    losses = []
    for epoch in range(1, opt.nEpochs + 1):
        epoch_loss = 0
        for iteration, batch in enumerate(training_data_loader, 1):
            input, target = batch[0].to(device), batch[1].to(device)
            optimizer.zero_grad()
            loss = criterion(model(input), target)
            epoch_loss += loss.item()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        print(
            "===> Epoch {} Complete: Avg. Loss: {:.4f}".format(epoch, epoch_loss / len(training_data_loader))
        )
        avg_psnr = 0
        with torch.no_grad():
            for batch in testing_data_loader:
                input, target = batch[0].to(device), batch[1].to(device)
                prediction = model(input)
                mse = criterion(prediction, target)
                psnr = 10 * log10(1 / mse.item())
                avg_psnr += psnr
        print("===> Avg. PSNR: {:.4f} dB".format(avg_psnr / len(testing_data_loader)))
        checkpoint = {
            "epoch": epoch,
            "model_state_dict": model.state_dict(),
            "optimizer_state_dict": optimizer.state_dict(),
            "loss": epoch_loss,
        }
        torch.save(checkpoint, "model_epoch_{}.pth".format(epoch))
    checkpoint = torch.load("model_epoch_{}.pth".format(opt.nEpochs), map_location=device)
    again = Net(opt.upscale_factor).to(device)
    again.load_state_dict(checkpoint["model_state_dict"])
    optimizer.load_state_dict(checkpoint["optimizer_state_dict"])
    assert checkpoint["epoch"] == opt.nEpochs
    assert torch.equal(again(input), model(input))
    return losses


if __name__ == "__main__":
    main()
