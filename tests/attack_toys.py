"""Small victims of attacks, with any number of spatial axes, and the scenes that they learn in a second or two."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import nn

CLASSES = 3
MEANS = torch.tensor([[0.4, 0.6], [0.5, 0.4], [0.6, 0.5]])
"""Of each class in both channels."""
EPS = 0.08


class TinyNet(nn.Module):
    """Two convolutions on a grid of half the size, with batch statistics and dropout, and a head; sides are odd."""

    def __init__(self, axes=2, channels=2, classes=CLASSES, width=12, activation=nn.SiLU):
        super().__init__()
        conv, norm = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1], (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
        self.mode = ("linear", "bilinear", "trilinear")[axes - 1]
        self.stem = nn.Sequential(conv(channels, width, 3, 1, 1), norm[axes - 1](width), activation())
        self.features = nn.Sequential(conv(width, width, 3, 2, 1), activation())
        self.dropout = nn.Dropout(0.5)
        self.head = conv(2 * width, classes, 1)

    def forward(self, x):
        stem = self.stem(8 * (x - 0.5))
        low = F.interpolate(self.features(stem), size=x.shape[2:], mode=self.mode, align_corners=True)
        return self.head(self.dropout(torch.cat([stem, low], dim=1)))


def scene(number, axes=2, side=11, seed=0):
    """Images [B, 2, *spatial] in [0, 1] and labels [B, *spatial]: boxes of two classes on a ground, with noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.zeros(number, *[side] * axes, dtype=torch.int64)
    for image in range(number):
        for label in (1, 2):
            corner = torch.randint(0, side - 5, (axes,), generator=generator).tolist()
            labels[(image, *(slice(c, c + 6) for c in corner))] = label
    images = MEANS[labels].movedim(-1, 1)
    images = images + 0.05 * torch.randn(images.shape, generator=generator)
    return images.clamp(0, 1), labels


@cache
def trained(axes=2):
    """A victim that is right in most pixels, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = TinyNet(axes)
        images, labels = scene(16, axes, side=11, seed=7)
        adam = torch.optim.Adam(net.parameters(), 0.02)
        for _ in range(40):
            adam.zero_grad()
            F.cross_entropy(net(images), labels).backward()
            adam.step()
        adam.zero_grad()
    return net.eval()


@cache
def small_victim(channels=3, classes=6):
    """A victim that has learned nothing, for images of any size, by ReLU: SiLU's last bit depends on the batch."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return TinyNet(channels=channels, classes=classes, activation=nn.ReLU).eval()


def accuracy(net, images, labels, ignore_index=255):
    valid = labels != ignore_index
    with torch.no_grad():
        return (net(images).argmax(dim=1) == labels)[valid].float().mean().item()


def mean_loss(net, images, labels):
    with torch.no_grad():
        return F.cross_entropy(net(images), labels, ignore_index=255).item()
