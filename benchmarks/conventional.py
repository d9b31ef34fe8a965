"""The conventional VAE example with 2 latents, as the yardstick of speed.py.

Model, loss, optimizer, batch size and data pipeline are those of the well-known PyTorch example
(784-400-2-400-784, ReLU, sigmoid and BCE, Adam at 1e-3, batches of 128, a DataLoader that turns one
PIL image after the other into a tensor). Needs torchvision.
"""

import torch
import torch.nn.functional as F
from common import MNIST, load_digits
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import ToTensor

EPOCHS = 10


class Digits(Dataset):
    """What torchvision's MNIST does for each image, on the files that are shipped here."""

    def __init__(self, split):
        self.images, self.labels = load_digits(MNIST, split)
        self.transform = ToTensor()

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
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


def main():
    torch.manual_seed(1)
    model = ConventionalVAE()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    train_loader = DataLoader(Digits("train"), batch_size=128, shuffle=True)
    test_loader = DataLoader(Digits("test"), batch_size=128)
    for epoch in range(EPOCHS):
        model.train()
        for images, _ in train_loader:
            optimizer.zero_grad()
            model.loss(images).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            total = sum(model.loss(images).item() for images, _ in test_loader)
        print(f"epoch {epoch}: test L_tot {total / len(test_loader.dataset):.2f}", flush=True)


if __name__ == "__main__":
    main()
