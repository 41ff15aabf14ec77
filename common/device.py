"""Where the tensors live."""

import torch


def resolve_device(device: str | torch.device) -> torch.device:
    """The device named by `device`; "auto" is CUDA when there is one, else CPU.

    Raises:
        ValueError: the name is no device, or names CUDA on a machine that has none.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device is {device!r} but must be 'auto', 'cpu', 'cuda' or 'cuda:N'") from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {device!r} but this machine has no CUDA; use device='cpu' or 'auto'")
    return resolved
