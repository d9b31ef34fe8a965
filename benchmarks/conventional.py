"""The conventional VAE example with 2 latents, as the yardstick of speed.py.

    python benchmarks/conventional.py             # as published; needs torchvision
    python benchmarks/conventional.py --tensors   # with all images in one tensor

Model, loss, optimizer and batch size are those of the well-known PyTorch example: widths of 784,
400, 2, 400 and 784, ReLU, sigmoid and BCE, Adam at 1e-3, batches of 128. As published, a DataLoader
turns one PIL image after the other into a tensor. One line of code would spare that; --tensors
shows how much time.
"""

import sys

import torch
import torch.nn.functional as F
from common import MNIST, digits, load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset

EPOCHS = 10
BATCH_SIZE = 128


class Digits(Dataset):
    """What torchvision's MNIST does for each image, on the files that are shipped here."""

    def __init__(self, split):
        from torchvision.transforms import ToTensor  # --tensors does not need it

        self.images, self.labels = load_digits(MNIST, split)
        self.transform = ToTensor()

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        from PIL import Image

        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


class ConventionalVAE(nn.Module):
    def __init__(self, latent_dim=2):
        super().__init__()
        self.fc1 = nn.Linear(784, 400)
        self.fc21 = nn.Linear(400, latent_dim)
        self.fc22 = nn.Linear(400, latent_dim)
        self.fc3 = nn.Linear(latent_dim, 400)
        self.fc4 = nn.Linear(400, 784)

    def loss(self, images):
        """Negative evidence lower bound of a batch in nats, summed over its images."""
        x = images.view(-1, 784)
        h = F.relu(self.fc1(x))
        mean, logvar = self.fc21(h), self.fc22(h)
        z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
        reconstruction = torch.sigmoid(self.fc4(F.relu(self.fc3(z))))
        divergence = -0.5 * torch.sum(1 + logvar - mean.pow(2) - logvar.exp())
        return F.binary_cross_entropy(reconstruction, x, reduction="sum") + divergence


def batches_as_published(split):
    """A function that gives an iterator over the batches of images; training ones are shuffled."""
    loader = DataLoader(Digits(split), batch_size=BATCH_SIZE, shuffle=split == "train")
    return lambda: (images for images, _ in loader)


def batches_of_a_tensor(split):
    """The same from one tensor."""
    x, _ = digits(split)

    def batches():
        order = torch.randperm(len(x)) if split == "train" else torch.arange(len(x))
        return (x[indices] for indices in order.split(BATCH_SIZE))

    return batches


def main(make_batches):
    torch.manual_seed(1)
    model = ConventionalVAE()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    train_batches = make_batches("train")
    test_batches = make_batches("test")
    for epoch in range(EPOCHS):
        model.train()
        for images in train_batches():
            optimizer.zero_grad()
            model.loss(images).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            total = sum(model.loss(images).item() for images in test_batches())
        print(f"epoch {epoch}: test L_tot {total / 10_000:.2f}", flush=True)


if __name__ == "__main__":
    main(batches_of_a_tensor if "--tensors" in sys.argv else batches_as_published)
