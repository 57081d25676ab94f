"""Threads that share the cores: frames are encoded ahead while objects are tracked.

The image encoder needs no memory and objects do not need each other, so a frame's work falls into
independent pieces. On a CPU several small pieces at once, each on few cores, are done sooner than
one after another on all cores; large ones fill the cores by themselves.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from threading import Lock
from types import TracebackType

import torch
from torch import Tensor

from masklet import tracker
from masklet.heap import give_back_freed_memory, keep_freed_memory
from masklet.network import FrameFeatures, Network, Prediction
from masklet.out_of_memory import is_out_of_memory, raise_for_memory
from masklet.preprocess import normalize
from masklet.tracker import MemoryBank, Sweep
from masklet.transfer import bring, send

_log = logging.getLogger(__name__)

_MANY_OBJECTS, _MANY_FRAMES = 64, 4
_MOST_OBJECTS_ON_CPU = 8
_FRAMES_AHEAD = 2
_SMALL_IMAGE = 512

# of each object its prediction, which may be on its way from the device still, and its new bank
Tracked = list[tuple[Callable[[], Prediction], MemoryBank]]


class Lanes:
    """Worker threads for one network; a context manager.

    A batch that does not fit into memory is done in parts, and all later ones are as small, with
    one warning.
    """

    def __init__(self, network: Network, objects: int) -> None:
        self.network = network
        if network.model.device.type == "cpu":
            keep_freed_memory()
        self._threads = torch.get_num_threads()
        objects_per_batch, self.frames_per_batch = _batch_sizes(network, objects, self._threads)
        self._limits = {
            "objects": _Limit("objects", objects_per_batch),
            "frames": _Limit("frames", self.frames_per_batch),
        }
        pieces = 1 + -(-objects // objects_per_batch)
        lanes = min(self._threads, pieces) if _is_small(network) else 1
        self._pool = ThreadPoolExecutor(
            lanes, initializer=torch.set_num_threads, initargs=(self._threads // lanes,)
        )

    def __enter__(self) -> "Lanes":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        torch.set_num_threads(self._threads)
        give_back_freed_memory()

    def warm_up(self, banks: Sequence[MemoryBank], sweep: Sweep) -> None:
        """Compile what is to be compiled for these objects, before the first frame.

        In a lane, since what is compiled is bound to the number of threads there.
        """
        limit = self._limits["objects"]
        size = min(limit.size, max(1, len(banks)))
        while True:
            try:
                memories = [
                    memory
                    for at in range(0, len(banks), size)
                    for memory in tracker.full_memory(self.network, banks[at : at + size], sweep)
                ]
                self._pool.submit(self.network.warm_up, self.frames_per_batch, memories).result()
                return
            except RuntimeError as error:
                size = limit.lower(error, size)

    def encode(self, images: Iterator[tuple[int, Tensor]]) -> Iterator[tuple[int, FrameFeatures]]:
        """Encode frames, (position, stretched image), ahead of the one that is asked for."""
        ahead: deque[tuple[list[int], Future[list[FrameFeatures]]]] = deque()

        def submit() -> None:
            if batch := list(islice(images, self._limits["frames"].size)):
                positions, pictures = zip(*batch, strict=True)
                ahead.append((list(positions), self._pool.submit(self._encode, pictures)))

        for _ in range(max(1, _FRAMES_AHEAD // self.frames_per_batch)):
            submit()
        while ahead:
            positions, encoded = ahead.popleft()
            submit()
            yield from zip(positions, encoded.result(), strict=True)

    def track(
        self, features: FrameFeatures, position: int, banks: Sequence[MemoryBank], sweep: Sweep
    ) -> list[Future[Tracked]]:
        """Start tracking objects on a frame; the results together are in the order of `banks`."""
        size = self._limits["objects"].size
        return [
            self._pool.submit(self._track, features, position, banks[at : at + size], sweep)
            for at in range(0, len(banks), size)
        ]

    def _track(
        self, features: FrameFeatures, position: int, banks: Sequence[MemoryBank], sweep: Sweep
    ) -> Tracked:
        try:
            tracked = tracker.track(self.network, features, position, banks, sweep)
            return [(bring(prediction), bank) for prediction, bank in tracked]
        except RuntimeError as error:
            size = self._limits["objects"].lower(error, len(banks))
        return [
            one
            for at in range(0, len(banks), size)
            for one in self._track(features, position, banks[at : at + size], sweep)
        ]

    def _encode(self, images: Sequence[Tensor]) -> list[FrameFeatures]:
        try:
            return encode(self.network, images)
        except RuntimeError as error:
            size = self._limits["frames"].lower(error, len(images))
        return [
            one
            for at in range(0, len(images), size)
            for one in self._encode(images[at : at + size])
        ]


def _batch_sizes(network: Network, objects: int, threads: int) -> tuple[int, int]:
    """How many objects, and how many frames, go through the network at once.

    Large batches fill a GPU. On a CPU each lane gets one batch of objects, as large as that of the
    others; beside a single object, a lane has time to encode three frames at once.
    """
    if network.model.device.type != "cpu":
        return _MANY_OBJECTS, _MANY_FRAMES
    if not _is_small(network):
        return 2, 1
    return min(_MOST_OBJECTS_ON_CPU, -(-objects // threads)), 3 if objects == 1 else 1


def _is_small(network: Network) -> bool:
    return bool(network.model.image_size <= _SMALL_IMAGE)


class _Limit:
    """How many objects, or frames, go through the network at once; shared by all lanes."""

    def __init__(self, what: str, size: int) -> None:
        self.what, self.size = what, size
        self._is_lowered = False
        self._lock = Lock()

    def lower(self, error: RuntimeError, size: int) -> int:
        """A size to try after `size` did not fit into memory; raises all other errors again."""
        if size == 1 or not is_out_of_memory(error):
            raise_for_memory(error, f"with one of the {self.what} at a time")
        with self._lock:
            self.size = min(self.size, size // 2)
            if not self._is_lowered:
                _log.warning(
                    "out of memory with %d %s at a time; going on with %d, or with what fits",
                    size,
                    self.what,
                    self.size,
                )
            self._is_lowered = True
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return self.size


@torch.inference_mode()
def encode(network: Network, images: Sequence[Tensor]) -> list[FrameFeatures]:
    """Send stretched frames, (3, image_size, image_size) uint8, to the device and encode them."""
    return network.encode([normalize(send(image, network.model.device)) for image in images])
