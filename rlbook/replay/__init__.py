"""Stored experience: buffers, storages, samplers and writers."""

from rlbook.replay.buffer import ReplayBuffer
from rlbook.replay.frames import FrameStorage
from rlbook.replay.her import HER
from rlbook.replay.images import CompressedStorage
from rlbook.replay.lists import ListStorage
from rlbook.replay.memmap import MemmapStorage
from rlbook.replay.minibatches import minibatches
from rlbook.replay.mixtures import MixedBuffer
from rlbook.replay.nstep import NStep
from rlbook.replay.prioritized import PrioritizedSampler, RankSampler
from rlbook.replay.samplers import Sampler, StalenessSampler, UniformSampler, WithoutReplacementSampler
from rlbook.replay.shared import SharedReplayBuffer
from rlbook.replay.slices import EpisodeSampler, SliceSampler
from rlbook.replay.storages import Storage, TensorStorage
from rlbook.replay.trajectories import Trajectories
from rlbook.replay.trees import SumTree
from rlbook.replay.writers import ImmutableWriter, ReservoirWriter, RingWriter, TopKWriter, Writer

__all__ = [
    "HER",
    "CompressedStorage",
    "EpisodeSampler",
    "FrameStorage",
    "ImmutableWriter",
    "ListStorage",
    "MemmapStorage",
    "MixedBuffer",
    "NStep",
    "PrioritizedSampler",
    "RankSampler",
    "ReplayBuffer",
    "ReservoirWriter",
    "RingWriter",
    "Sampler",
    "SharedReplayBuffer",
    "SliceSampler",
    "StalenessSampler",
    "Storage",
    "SumTree",
    "TensorStorage",
    "TopKWriter",
    "Trajectories",
    "UniformSampler",
    "WithoutReplacementSampler",
    "Writer",
    "minibatches",
]
