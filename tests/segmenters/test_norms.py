"""Batch normalisation over several workers is PyTorch's own on all their images (two processes: agents/rp_pgd)."""

import pytest
import torch
from segarena.common.workers import ONE_PROCESS, Workers
from segarena.segmenters.norms import SyncBatchNorm, batchnorms, synchronise
from segarena.segmenters.unet import UNet
from torch import nn


class Alone(Workers):
    """One of one."""

    def total(self, value):
        return value


class Twice(Workers):
    """Two workers with the same images."""

    def total(self, value):
        return 2 * value


def layers(momentum=0.1, affine=True):
    torch.manual_seed(0)
    plain = nn.BatchNorm2d(3, momentum=momentum, affine=affine)
    if affine:
        nn.init.normal_(plain.weight)
        nn.init.normal_(plain.bias)
    other = nn.BatchNorm2d(3, momentum=momentum, affine=affine)
    other.load_state_dict(plain.state_dict())
    return plain, other


@pytest.mark.parametrize(("workers", "times"), [(Alone(), 1), (Twice(0, 2), 2)], ids=["one", "two"])
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("affine", [True, False])
def test_it_is_batch_normalisation_of_all_images(workers, times, momentum, affine):
    plain, other = layers(momentum, affine)
    synced = SyncBatchNorm.of(other, workers)
    for step in range(3):
        x = 5 + 2 * torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(step))
        inputs = [x.repeat(times, 1, 1, 1).requires_grad_(), x.clone().requires_grad_()]
        outputs = [layer(one) for layer, one in zip((plain, synced), inputs, strict=True)]
        torch.testing.assert_close(outputs[1], outputs[0][:4], rtol=1e-5, atol=1e-5)
        if times == 1:
            for out in outputs:
                (out**3).sum().backward()
            torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-4, atol=1e-4)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(synced.state_dict()[name], value, rtol=1e-5, atol=1e-5, msg=name)
    for layer in (plain, synced):
        layer.eval()
    torch.testing.assert_close(synced(x), plain(x), rtol=1e-5, atol=1e-5)


def test_every_layer_of_a_network_counts_all_and_keeps_its_parameters():
    net = UNet(1, 2, init_channels=2)
    before, names = dict(net.named_parameters()), list(net.state_dict())
    synchronise(net, ONE_PROCESS)
    assert not any(isinstance(layer, SyncBatchNorm) for layer in net.modules())
    synchronise(net, Twice(0, 2))
    assert all(isinstance(layer, SyncBatchNorm) for layer in batchnorms(net))
    assert list(net.state_dict()) == names
    assert all(value is before[name] for name, value in net.named_parameters())
    one = batchnorms(net)[0]
    synchronise(net, Twice(0, 2))
    assert batchnorms(net)[0] is one, "once is enough"
