"""Copies to and from the model's device that no thread waits for before it must.

A GPU works behind the thread that gives it work. A copy from or to ordinary memory holds that
thread until all that was asked for is done, and then the GPU has nothing left to do; a copy from or
to pinned memory is one more piece of the work. On a CPU there is nothing to copy.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from masklet.network import Prediction


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the processor on the device, where it can be used at once."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def bring(prediction: Prediction) -> Callable[[], Prediction]:
    """Begin to copy a prediction to the processor.

    Returns:
        A function that waits for the copy, but not for what the device was asked to do after it,
        and gives the prediction on the processor.
    """
    logits, score = prediction.logits, prediction.object_score
    if logits.device.type != "cuda":
        return lambda: Prediction(logits.cpu(), score.cpu())
    # torch pins what such a copy goes to
    copied = Prediction(logits.to("cpu", non_blocking=True), score.to("cpu", non_blocking=True))
    done = torch.cuda.current_stream(logits.device).record_event()

    def wait() -> Prediction:
        done.synchronize()
        return copied

    return wait
